"""Our settings beside the authors': python benchmarks/fidelity.py writes docs/fidelity.md and prints the counts.

The rows are in ssl_jax/configs/fidelity, a file for each method, with the columns of `Row`. tests/test_fidelity.py
holds them to the configs.
"""

import ast
import collections
import csv
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes
from ssl_jax.config import SHIPPED, flatten
from ssl_jax.configs import NAMES, scales
from ssl_jax.keys import keys_of
from ssl_jax.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "fidelity.md"
VIEWS = "views"  # views.csv: scales are the names of recipes' views
STATUSES = ("equal", "declared", "no source")

# What a config says of the machine, the data set, given weights and the reports, which is no setting of the method.
MACHINE = (
    "begin", "lora_", "data.", "checkpoint_", "evaluate_every", "log_every", "online_knn.", "reduce_dtype", "seed",
    "shard_state", "stop_after_skipped", "compute_dtype", "model.remat", "model.scan", "model.mean", "model.std",
    "method.name",
)  # fmt: skip

HEAD = """# Fidelity: our settings beside the authors'

For each method, every setting of its configs and what its code does beyond them, beside the authors'. `tiny` is not
here: it is ours. Made by `python benchmarks/fidelity.py` of `ssl_jax/configs/fidelity/*.csv`; a test compares each
number with its config, and fails if a number has no row.

- **equal**: the source has the same, be it in other units (epochs for steps).
- **declared**: ours differs, and the row says why.
- **no source**: neither code nor paper of the authors has it; the row says what ours rests on.

Code was read for this page, and so were the places of papers that are named by section, table, equation or appendix. A
paper that is named alone is quoted as others have it.

`augment.x = recipes.NAME` stands for all settings of that view, which has a [table of its own](#views), and
`optimizer = recipes.NAME` for a schedule in many steps; other rows change single ones of them. Rows without a scale
are of all scales.

"""


@dataclasses.dataclass(frozen=True)
class Row:
    """scale: the config's scales that it is of, separated by spaces; none: what the method's code does.

    setting: a key of the config; without a scale any words.
    ours: as Python spells it, or, for a whole section or a view, the part of recipes that has it, "recipes.MOCO_V2";
      without a scale any words.
    authors: the same in any words. status: one of STATUSES.
    source: where the authors say so; where ours differs, then "; " and the reason.
    """

    scale: str
    setting: str
    ours: str
    authors: str
    status: str
    source: str


def rows(name: str) -> list[Row]:
    with (SHIPPED / "fidelity" / f"{name}.csv").open(newline="") as file:
        return [Row(**row) for row in csv.DictReader(file, strict=True)]


def configs(method: str) -> dict[str, ConfigDict]:
    """Those at scales that the authors have, too."""
    return {
        scale: make()
        for scale, make in scales(method).items()
        if not scale.startswith("tiny") and scale not in ("folder", "continue")
    }


def settings(config: ConfigDict) -> dict[str, Any]:
    """The config's, and those of the method that it leaves as they are."""
    found = flatten(
        {"method": {name: key.default for name, key in keys_of(METHODS[config.method.name]).items()}}
    ) | flatten(config)
    if len({"epochs", "steps"} & {key for key in found if found[key] == 0}) == 1:
        found = {key: value for key, value in found.items() if key not in ("epochs", "steps") or value}
    return {key: value for key, value in found.items() if not key.startswith(MACHINE)}


def claims(of: Sequence[Row], scale: str) -> dict[str, Any]:
    """What the rows say that the config has: {setting: value}.

    Raises: ValueError for two rows of one setting, and for a value that Python cannot read.
    """
    shared: dict[str, Any] = {}
    single: dict[str, Any] = {}
    for row in of:
        if scale not in row.scale.split():
            continue
        if row.ours.startswith("recipes."):
            whole = getattr(recipes, row.ours.removeprefix("recipes."))
            shared |= {f"{row.setting}.{key}": value for key, value in whole.items()}
        elif row.setting in single:
            raise ValueError(f"{scale} has two rows of {row.setting}")
        else:
            single[row.setting] = ast.literal_eval(row.ours)
    return shared | single


def without_code() -> list[str]:
    """The table of methods, or scales, that no code of their authors stands behind, and of what they rest on."""
    with (SHIPPED / "fidelity" / "without_code.csv").open(newline="") as file:
        columns, *cells = csv.reader(file, strict=True)
    return _table(columns, cells)


def tables() -> dict[str, list[Row]]:
    return {name: rows(name) for name in [*NAMES, VIEWS]}


def page(of: dict[str, list[Row]]) -> str:
    counts = {name: collections.Counter(row.status for row in table) for name, table in of.items()}
    summary = [[f"[{name}](#{name})", *(str(counts[name][status]) for status in STATUSES)] for name in of]
    total = sum(counts.values(), collections.Counter())
    summary.append(["**all**", *(f"**{total[status]}**" for status in STATUSES)])
    parts = [HEAD, "\n".join(_table(("method", *STATUSES), summary)), ""]
    parts += ["\n## What no code of its authors stands behind\n", "\n".join(without_code())]
    for name, of_name in of.items():
        parts += [f"\n## {name}\n", "\n".join(table(of_name))]
    return "\n".join(parts) + "\n"


def table(of: Sequence[Row]) -> list[str]:
    """The lines of a Markdown table."""
    cells = [[_escaped(cell) for cell in dataclasses.astuple(row)] for row in of]
    return _table([field.name for field in dataclasses.fields(Row)], cells)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("*", "\\*")


def _table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [list(columns), ["---"] * len(columns), *cells]]


def main() -> None:
    of = tables()
    PAGE.write_text(page(of))
    total = collections.Counter(row.status for table in of.values() for row in table)
    for status in sorted(total):
        print(f"{status}: {total[status]}")
    sys.exit(any(status not in STATUSES for status in total))


if __name__ == "__main__":
    main()
