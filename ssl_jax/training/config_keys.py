"""The keys that a config may have: the common keys, and those of the model, method, optimizer, ... that it names."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import models, optim
from ssl_jax.config.schema import SUBSECTIONS, Config
from ssl_jax.data.augment import Augmentation
from ssl_jax.data.masks import Mask
from ssl_jax.data.mix import Mix, sides_key
from ssl_jax.keys import Key, keys_of
from ssl_jax.methods import METHODS

COMPUTED = {"model": ("dtype",)}  # keys whose value another key decides: config.compute_dtype


def of_sections(config: ConfigDict) -> dict[str, Mapping[str, Key]]:
    """{section: {name: key}} of all keys that the config may have. A section is "data", "augment.view", or "" for the
    top level."""
    found: dict[str, Mapping[str, Key]] = {"": keys_of(Config)}
    found |= {name: keys_of(kind) for name, kind in SUBSECTIONS.items()}
    tables: dict[str, Mapping[str, Any]] = {"model": models.MODELS, "method": METHODS, "optimizer": optim.OPTIMIZERS}
    for section, table in tables.items():
        name = config.get(section, {}).get("name")
        if name in table:
            found[section] = dict(keys_of(table[name]))
    if "optimizer" in found:
        found["optimizer"] = {**keys_of(optim.create), **found["optimizer"]}
    for section, names in COMPUTED.items():
        found[section] = {name: key for name, key in found.get(section, {}).items() if name not in names}
    views = {f"augment.{view}": keys_of(Augmentation) for view in config.get("augment", {})}
    found |= views | {"mask": {name: key for name, key in keys_of(Mask).items() if name != "patch_size"}}
    return found | {"mix": {**keys_of(Mix), **{view: sides_key(view) for view in config.get("augment", {})}}}
