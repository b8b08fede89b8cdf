"""Writes the report of a run, or a comparison of several runs.

ssl_jax report RUN          -> RUN/report.html; with --files also RUN/pictures/
ssl_jax report RUN RUN ...  -> comparison.html beside the first run
"""

import argparse
from collections.abc import Callable
from typing import Any

from ssl_jax import paths, report
from ssl_jax.cli import showing
from ssl_jax.cli.flags import check_file, user_errors


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="ssl_jax report", description=report.__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="workdir of a run of ssl_jax train, finished or not")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file for the page; default: report.html in RUN, or comparison.html beside the first RUN",
    )
    parser.add_argument("--files", action="store_true", help="also write each RUN's charts and images to RUN/pictures")
    parser.add_argument(
        "--bands",
        type=_numbers(int),
        default=(),
        metavar="R,G,B",
        help=showing.FLAGS["bands"],
    )
    parser.add_argument(
        "--stretch",
        type=_numbers(float),
        metavar="LOW,HIGH",
        help=showing.FLAGS["stretch"],
    )
    flags = parser.parse_args(argv)
    with user_errors(ValueError, FileNotFoundError):
        runs = [paths.path(run) for run in flags.runs]
        output = paths.path(flags.output) if flags.output else None
        if output:
            check_file("output", output)
        shown = {"bands": flags.bands, "stretch": flags.stretch}
        if len(runs) == 1:
            print(report.write(runs[0], output, **shown))
        else:
            print(report.write_comparison(runs, output))
        for run in runs if flags.files else ():
            print(*report.write_files(run, **shown), sep="\n")


def _numbers(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def numbers(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(","))

    return numbers
