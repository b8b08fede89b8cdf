"""What config.mix makes of a run's views: one set of sizes for each of its entries."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ssl_jax import config as configs
from ssl_jax.config import Config
from ssl_jax.data.augment import Augmentation, OwnAugmentation
from ssl_jax.data.mix import Mix
from ssl_jax.methods import Method

Crops = list[Augmentation | OwnAugmentation]  # one for each of the method's views


def mix(config: Config, method: Method, crops: Sequence[Augmentation | OwnAugmentation]) -> tuple[Mix, list[Crops]]:
    """(config.mix, the crops of each of its entries). Raises: ConfigError for sizes that do not fit."""
    configs.check_names(config.mix, ["shares", *dict.fromkeys(method.views)], "config.mix")
    if "shares" not in config.mix:
        raise configs.ConfigError("config.mix has no shares; give the probability of each entry of sizes")
    sides = {name: value for name, value in config.mix.items() if name != "shares"}
    found: Mix = configs.call(Mix, {"shares": config.mix["shares"], "sides": sides}, "config.mix")
    entries = [_sized(config, found, method, crops, number) for number in range(len(found.shares))]
    # Otherwise a size that the network refuses would end the run at the first step that draws it.
    for size in sorted({crop.size for entry in entries for crop in entry}):
        images = jax.ShapeDtypeStruct((1, *size, config.data.channels), jnp.float32)
        where = f"config.mix, views of {size[0]}x{size[1]} pixels"
        configs.call(jax.eval_shape, {}, where, method.backbone.init, jax.random.key(0), images)
    return found, entries


def _sized(
    config: Config, mixed: Mix, method: Method, crops: Sequence[Augmentation | OwnAugmentation], entry: int
) -> Crops:
    sized = list(crops)
    for place, (view, crop) in enumerate(zip(method.views, crops, strict=True)):
        if view not in mixed.sides:
            continue
        where = f"config.mix.{view}"
        if not isinstance(crop, Augmentation):
            raise configs.ConfigError(f"{where}: the view's own function decides its size; leave it out")
        sized[place] = new = dataclasses.replace(crop, size=(mixed.sides[view][entry],) * 2)
        configs.call(new.check, {}, where, config.data.channels)
    return sized
