"""A page for each method: its docstring, scales, keys, settings beside the authors', and results."""

import inspect
import re

from ml_collections import ConfigDict

from benchmarks import config_page, fidelity
from ssl_jax.configs import scales
from ssl_jax.keys import keys_of
from ssl_jax.methods import METHODS
from website.pages import ROOT, rows_of, sections

FOLDER = "methods"
WITHOUT_FAMILY = "others"
# Section of docs/results.md -> what stands before its rows.
RESULTS = {
    "": "Its `tiny` config on Fashion-MNIST, test accuracy in percent; in parentheses the untrained network. "
    "[Results](docs/results.md) says how it was measured, and has the other methods.",
    "Which gains show": "Its gain over the untrained network, in points, with 95 % intervals:",
    "Fine-tuned": "The whole network trained on 10 labels per class:",
    "Not above their untrained network": "It is not above its untrained network everywhere. After five times as many "
    "steps:",
}


def families() -> dict[str, list[str]]:
    """Family -> its methods, as the table of README.md has them; a method that it does not name is in the last one."""
    table = sections((ROOT / "README.md").read_text(encoding="utf-8"))["Methods"]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")][1:]
    found = {
        family.strip(): [name for name in dict.fromkeys(re.findall(r"`(\w+)`", cell)) if name in METHODS]
        for family, cell in rows
    }
    named = {name for names in found.values() for name in names}
    found[WITHOUT_FAMILY] = [name for name in METHODS if name not in named]
    return {family: names for family, names in found.items() if names}


def index() -> str:
    """The table of README.md, each method with a link to its page."""
    text = sections((ROOT / "README.md").read_text(encoding="utf-8"))["Methods"]

    def link(match: re.Match[str]) -> str:
        return f"[{match[0]}](docs/{FOLDER}/{match[1]}.md)" if match[1] in METHODS else match[0]

    linked = "\n".join(re.sub(r"`(\w+)`", link, line) if line.startswith("|") else line for line in text.splitlines())
    return f"# Methods\n{linked}\n\n[Which method](docs/choosing.md) says which one suits your images.\n"


def page(name: str) -> str:
    kind = METHODS[name]
    where = f"{kind.__module__}.{kind.__qualname__}"
    parts = [
        f"# {name}",
        f"::: {where}\n    options: {{members: false, show_signature: false, show_root_toc_entry: false}}",
        "## Start it",
        start(name),
        "## Scales",
        scales_table(name),
        "## Keys",
        f"`--config.method.KEY=VALUE`; [all other keys](docs/configs.md).\n\n{keys(name)}",
        *results(name),
        *settings(name),
        *others(name),
    ]
    return "\n\n".join(parts) + "\n"


def start(name: str) -> str:
    scale = "folder" if "folder" in scales(name) else next(iter(scales(name)))
    config = scales(name)[scale]()
    given = " --config.data.path=MY_IMAGES" if config.data.name == "folder" else ""
    given += "".join(f" --config.method.{key}={key.upper()}" for key, value in config.method.items() if value == "")
    return f"    ssl_jax train --config {name}:{scale}{given} --workdir runs/{name}"


def scales_table(name: str) -> str:
    lines = ["| `--config` | network | images | views | batch | length | |", "|---|---|---|---|---|---|---|"]
    for scale, make in scales(name).items():
        config = make()
        about = (inspect.getdoc(make) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        cells = [
            f"`{name}:{scale}`",
            f"`{config.model.name}`",
            "yours" if config.data.name == "folder" else f"`{config.data.name}`",
            ", ".join(dict.fromkeys(sides(view.size) for view in config.augment.values())),
            f"{config.batch_size:,}",
            length(config),
            "" if scale == "folder" else about,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sides(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]} x {size[1]}"


def length(config: ConfigDict) -> str:
    return f"{config.steps:,} steps" if config.get("steps") else f"{config.epochs:,} epochs"


def keys(name: str) -> str:
    found = keys_of(METHODS[name])
    return "\n".join(config_page.table(found, "method.")) if found else "It has none of its own."


def results(name: str) -> list[str]:
    parts = sections((ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    found = {said: rows_of(name, parts.get(title, "")) for title, said in RESULTS.items()}
    shown = [line for said, rows in found.items() if rows for line in (said, *rows)]
    return ["## Results", *shown] if shown else []


def settings(name: str) -> list[str]:
    rows = fidelity.rows(name) if (fidelity.SHIPPED / "fidelity" / f"{name}.csv").exists() else []
    if not rows:
        return []
    counts = ", ".join(f"{sum(row.status == status for row in rows)} {status}" for status in fidelity.STATUSES)
    text = f"{counts}. [Fidelity](docs/fidelity.md) says what these words mean, and has the views in full."
    return ["## Settings beside the authors'", text, "\n".join(fidelity.table(rows))]


def others(name: str) -> list[str]:
    found = rows_of(name, (ROOT / "docs" / "peers.md").read_text(encoding="utf-8"))
    if not found:
        return []
    return ["## In other libraries", "An empty cell: not there. [All methods](docs/peers.md).", *found]
