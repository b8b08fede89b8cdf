"""Self-contained pages: about one run (what it was worth, how its embeddings look), or comparing several runs."""

from collections.abc import Sequence
from pathlib import Path

from ssl_jax.report import comparison, files, page, read
from ssl_jax.workdir.files import replacing

NAME, COMPARISON_NAME = "report.html", "comparison.html"


def write(workdir: str | Path, output: str | Path | None = None) -> Path:
    """Writes `workdir`/report.html, or `output`, from the run's files. The page names the command for missing ones.

    Raises: FileNotFoundError if `workdir` is no directory.
    """
    record = read.read(Path(workdir))
    return _put(Path(output or record.workdir / NAME), page.render(record))


def write_comparison(workdirs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes comparison.html beside the first of the runs, or `output`.

    Raises:
      FileNotFoundError if a workdir is no directory.
      ValueError for fewer than two different ones.
    """
    paths = list(dict.fromkeys(Path(workdir).resolve() for workdir in workdirs))
    if len(paths) < 2:
        raise ValueError(f"a comparison takes two runs or more, got {', '.join(map(str, paths)) or 'none'}")
    return _put(Path(output or paths[0].parent / COMPARISON_NAME), comparison.render([read.read(p) for p in paths]))


def write_files(workdir: str | Path) -> list[Path]:
    """Writes `workdir`/pictures/: the run's charts as SVG and its images as PNG, as far as it has them.

    Raises: FileNotFoundError if `workdir` is no directory.
    """
    return files.write(read.read(Path(workdir)))


def _put(path: Path, html: str) -> Path:
    # A file's name may hold bytes that are not UTF-8. Python reads them as characters that UTF-8 cannot encode.
    with replacing(path) as file:
        file.write(html.encode("utf-8", "backslashreplace"))
    return path
