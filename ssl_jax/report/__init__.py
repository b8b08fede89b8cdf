"""Self-contained pages: about one run (what it was worth, how its embeddings look), comparing several runs, about the
scores of any backbone, a data set, a segmenter, or the images that are most similar to given ones."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_jax.data.inspection import Inspection
from ssl_jax.report import comparison, files, inspection, page, read, retrieval, scores_page, segmentation
from ssl_jax.report.display import displayed
from ssl_jax.report.retrieval import Retrieval
from ssl_jax.workdir.files import replacing

NAME, COMPARISON_NAME = "report.html", "comparison.html"


def write(
    workdir: str | Path,
    output: str | Path | None = None,
    *,
    bands: Sequence[int] = (),
    stretch: tuple[float, ...] | None = None,
) -> Path:
    """Writes `workdir`/report.html, or `output`, from the run's files. The page names the command for missing ones.

    bands, stretch: of the images that are shown, see `display.check`.
    Raises: FileNotFoundError if `workdir` is no directory; ValueError as `display.check`.
    """
    record = displayed(read.read(Path(workdir)), bands, stretch)
    return _put(Path(output or record.workdir / NAME), page.render(record))


def write_comparison(workdirs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes comparison.html beside the first of the runs, or `output`.

    Raises:
      FileNotFoundError if a workdir is no directory.
      ValueError for fewer than two different ones.
    """
    paths = list(dict.fromkeys(Path(workdir).resolve() for workdir in workdirs))
    if len(paths) < 2:
        raise ValueError(f"a comparison needs two or more different runs, got {', '.join(map(str, paths)) or 'none'}")
    return _put(Path(output or paths[0].parent / COMPARISON_NAME), comparison.render([read.read(p) for p in paths]))


def write_inspection(found: Inspection, output: str | Path, start: str = "") -> Path:
    """Writes the page about a data set to `output`. `start`: the command that training starts with, to be shown."""
    return _put(Path(output), inspection.render(found, start))


def write_scores(
    evaluation: Mapping[str, Any],
    folder: str | Path,
    output: str | Path,
    *,
    bands: Sequence[int] = (),
    stretch: tuple[float, ...] | None = None,
) -> Path:
    """Writes the page about the scores of a backbone to `output`.

    evaluation: as evaluation.json has it. folder: with the samples/ that the evaluation wrote, or with none.
    bands, stretch: of the images that are shown, see `display.check`.
    Raises: FileNotFoundError if `folder` is no directory; ValueError as `display.check`.
    """
    record = dataclasses.replace(read.read(Path(folder)), evaluation=evaluation)
    return _put(Path(output), scores_page.render(displayed(record, bands, stretch)))


def write_retrieval(found: Retrieval, output: str | Path) -> Path:
    """Writes the page about the images that are most similar to given ones to `output`."""
    return _put(Path(output), retrieval.render(found))


def write_segmentation(found: segmentation.Segmented, output: str | Path) -> Path:
    """Writes the page about a segmenter to `output`."""
    return _put(Path(output), segmentation.render(found))


def write_files(
    workdir: str | Path, *, bands: Sequence[int] = (), stretch: tuple[float, ...] | None = None
) -> list[Path]:
    """Writes `workdir`/pictures/: the run's charts as SVG and its images as PNG, as far as it has them.

    Arguments and errors are those of `write`.
    """
    return files.write(displayed(read.read(Path(workdir)), bands, stretch))


def _put(path: Path, html: str) -> Path:
    # A file's name may hold bytes that are not UTF-8. Python reads them as characters that UTF-8 cannot encode.
    with replacing(path) as file:
        file.write(html.encode("utf-8", "backslashreplace"))
    return path
