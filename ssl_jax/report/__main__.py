"""The report of a run: python -m ssl_jax.report WORKDIR -> WORKDIR/report.html"""

import argparse
import sys
from pathlib import Path

from ssl_jax import report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ssl_jax.report", description=report.__doc__)
    parser.add_argument("workdir", type=Path, help="of a run of ssl_jax.train, finished or not")
    try:
        print(report.write(parser.parse_args().workdir))
    except OSError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
