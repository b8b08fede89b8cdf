"""Self-contained pages: about one run (what it was worth, how its embeddings look), comparing several runs, about the
scores of any backbone, a data set, a segmenter, or the images that are most similar to given ones."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_jax import paths
from ssl_jax.data.inspection import Inspection
from ssl_jax.paths import AnyPath
from ssl_jax.report import comparison, files, inspection, page, read, retrieval, scores_page, segmentation
from ssl_jax.report.display import displayed
from ssl_jax.report.retrieval import Retrieval
from ssl_jax.workdir.files import replacing

NAME, COMPARISON_NAME = "report.html", "comparison.html"


def write(
    workdir: str | AnyPath,
    output: str | AnyPath | None = None,
    *,
    bands: Sequence[int] = (),
    stretch: tuple[float, ...] | None = None,
) -> AnyPath:
    """Writes `workdir`/report.html, or `output`, from the run's files. The page names the command for missing ones.

    bands, stretch: of the images that are shown, see `display.check`.
    Raises: FileNotFoundError if `workdir` is no directory; ValueError as `display.check`.
    """
    record = displayed(read.read(paths.path(workdir)), bands, stretch)
    return _put(paths.path(output or record.workdir / NAME), page.render(record))


def write_comparison(workdirs: Sequence[str | AnyPath], output: str | AnyPath | None = None) -> AnyPath:
    """Writes comparison.html beside the first of the runs, or `output`.

    Raises:
      FileNotFoundError if a workdir is no directory.
      ValueError for fewer than two different ones.
    """
    runs = list(dict.fromkeys(paths.resolved(paths.path(workdir)) for workdir in workdirs))
    if len(runs) < 2:
        raise ValueError(f"a comparison needs two or more different runs, got {', '.join(map(str, runs)) or 'none'}")
    found = comparison.render([read.read(run) for run in runs])
    return _put(paths.path(output or runs[0].parent / COMPARISON_NAME), found)


def write_inspection(found: Inspection, output: str | AnyPath, start: str = "") -> AnyPath:
    """Writes the page about a data set to `output`. `start`: the command that training starts with, to be shown."""
    return _put(paths.path(output), inspection.render(found, start))


def write_scores(
    evaluation: Mapping[str, Any],
    folder: str | AnyPath,
    output: str | AnyPath,
    *,
    bands: Sequence[int] = (),
    stretch: tuple[float, ...] | None = None,
) -> AnyPath:
    """Writes the page about the scores of a backbone to `output`.

    evaluation: as evaluation.json has it. folder: with the samples/ that the evaluation wrote, or with none.
    bands, stretch: of the images that are shown, see `display.check`.
    Raises: FileNotFoundError if `folder` is no directory; ValueError as `display.check`.
    """
    record = dataclasses.replace(read.read(paths.path(folder)), evaluation=evaluation)
    return _put(paths.path(output), scores_page.render(displayed(record, bands, stretch)))


def write_retrieval(found: Retrieval, output: str | AnyPath) -> AnyPath:
    """Writes the page about the images that are most similar to given ones to `output`."""
    return _put(paths.path(output), retrieval.render(found))


def write_segmentation(found: segmentation.Segmented, output: str | AnyPath) -> AnyPath:
    """Writes the page about a segmenter to `output`."""
    return _put(paths.path(output), segmentation.render(found))


def write_files(
    workdir: str | AnyPath, *, bands: Sequence[int] = (), stretch: tuple[float, ...] | None = None
) -> list[AnyPath]:
    """Writes `workdir`/pictures/: the run's charts as SVG and its images as PNG, as far as it has them.

    Arguments and errors are those of `write`.
    """
    return files.write(displayed(read.read(paths.path(workdir)), bands, stretch))


def _put(path: AnyPath, html: str) -> AnyPath:
    # A file's name may hold bytes that are not UTF-8. Python reads them as characters that UTF-8 cannot encode.
    with replacing(path) as file:
        file.write(html.encode("utf-8", "backslashreplace"))
    return path
