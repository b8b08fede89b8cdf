"""Writes the report of a run, or a comparison of several runs.

ssl_jax report RUN          -> RUN/report.html; with --files also RUN/pictures/
ssl_jax report RUN RUN ...  -> comparison.html beside the first run
"""

import argparse
import sys
from pathlib import Path

from ssl_jax import report


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="ssl_jax report", description=report.__doc__)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="workdir of ssl_jax train, finished or not")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the page goes")
    parser.add_argument("--files", action="store_true", help="also writes each RUN's charts and images to RUN/pictures")
    flags = parser.parse_args(argv)
    try:
        if len(flags.runs) == 1:
            print(report.write(flags.runs[0], flags.output))
        else:
            print(report.write_comparison(flags.runs, flags.output))
        for run in flags.runs if flags.files else ():
            print(*report.write_files(run), sep="\n")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
