"""Writes docs/configs.md, the page of every key that a config may have, from the keys' own definitions.

python benchmarks/config_page.py
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ssl_jax import optim
from ssl_jax.config.schema import SUBSECTIONS, Config
from ssl_jax.data.augment import Augmentation
from ssl_jax.data.masks import Mask
from ssl_jax.data.mix import Mix, sides_key
from ssl_jax.keys import REQUIRED, Key, keys_of, type_name
from ssl_jax.methods import METHODS
from ssl_jax.models import MODELS

PAGE = Path(__file__).parents[1] / "docs" / "configs.md"
INTRODUCTION = """# Configs

`--config simclr:tiny` names a config of the package and its scale, from any directory. `--config mine.py:SCALE` names
a Python file of your own with a function `get_config(scale)`. A third part, `simclr:folder:satellite`, gives the views
of a kind of images ([views.md](views.md)). `--config.KEY=VALUE` changes a value:
`--config.optimizer.lr=0.3 --config.data.image_size=64,64`. In Python it is `config =
ssl_jax.get_config("simclr:tiny")` and `config.optimizer.lr = 0.3`.

`ssl_jax train --config simclr:tiny --show-config` prints every key of that config with its value, its range, its
meaning and where the value came from. A key that a config leaves out has the default below and can be set, too. The
resolved config is kept in the run's `config.json`; a start with another config in the same `--workdir` is refused,
with the difference shown.

This page is made by `python benchmarks/config_page.py` from the definitions in the code, which the checks use, too.
"""


def table(keys: Mapping[str, Key], prefix: str = "") -> list[str]:
    lines = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for name, key in keys.items():
        default = "" if key.default is REQUIRED else f"`{key.default!r}`"
        values = "; ".join([type_name(key.type), *map(str, key.limits)])
        cells = (f"`{prefix}{name}`", default, values, key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def section(title: str, text: str, keys: Mapping[str, Key], prefix: str = "") -> Iterable[str]:
    return [f"## {title}", "", *([text, ""] if text else []), *table(keys, prefix), ""]


def page() -> str:
    lines = [INTRODUCTION]
    lines += section("The run", "", keys_of(Config))
    for name, kind in SUBSECTIONS.items():
        lines += section(f"`{name}`", "", keys_of(kind), f"{name}.")
    named = ", ".join(f"`{name}`" for name in MODELS)
    lines += [f"## `model`\n\n`model.name` is one of {named}. The other keys are those of its architecture.\n"]
    of_class = {type(make()): make for make in MODELS.values()}
    for kind in of_class:
        names = ", ".join(f"`{name}`" for name, make in MODELS.items() if type(make()) is kind)
        keys = {name: key for name, key in keys_of(kind).items() if name != "dtype"}
        lines += [f"### {kind.__name__}: {names}\n", *table(keys, "model."), ""]
    lines += ["## `optimizer`\n\nOf every optimizer:\n", *table(keys_of(optim.create), "optimizer."), ""]
    for name, function in optim.OPTIMIZERS.items():
        lines += [f"### `{name}`\n", *table(keys_of(function), "optimizer."), ""]
    text = "One section for each kind of view that the method takes. One that it does not take is warned of."
    lines += section("`augment.VIEW`", text, keys_of(Augmentation), "augment.VIEW.")
    mask = {name: key for name, key in keys_of(Mask).items() if name != "patch_size"}
    lines += section("`mask`", "For methods that mask patches.", mask, "mask.")
    text = "Sizes of views that change from step to step. Empty: each view has its size in every step."
    lines += section("`mix`", text, {**keys_of(Mix), "VIEW": sides_key("VIEW")}, "mix.")
    lines += ["## `method`\n"]
    for name, kind in METHODS.items():
        summary = (kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        lines += [f"### `{name}`\n", " ".join(summary.split()), "", *table(keys_of(kind), "method."), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
