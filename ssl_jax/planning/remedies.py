"""Changes of a run that does not fit, the cheapest first."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ssl_jax.models.recompute import REMATS

# Key -> what changing it does to memory.
WHY = {
    "shard_state": "each device keeps a shard of the state",
    "model.remat": "activations are computed again instead of kept",
    "compute_dtype": "activations take half the memory",
}


def at_same_batch(settings: Mapping[str, Any], images: int, devices: int) -> list[tuple[str, Any]]:
    """Changes of the config's keys that leave the batch as it is, such as ("model.remat", "block").

    First those that do not change the results: shard_state, which sends the weights twice more; model.remat, from
    "dots", which needs hardly more arithmetic, to "full", which needs two thirds more; a ViT's model.microbatch. Then
    bfloat16.

    Args:
      settings: the config's compute_dtype, shard_state, and all options of its model under "model".
      images: number of images on each device.
    """
    model, changes = settings["model"], []
    if devices > 1 and not settings["shard_state"]:
        changes.append(("shard_state", True))
    if model.get("remat"):
        changes += [("model.remat", more) for more in REMATS[REMATS.index(model["remat"]) + 1 :]]
    if "microbatch" in model and (images := model["microbatch"] or images) % 4 == 0:
        group = model.get("drop_path_group", 0)  # must divide a microbatch
        if not group or images // 4 % group == 0:
            changes.append(("model.microbatch", images // 4))
    if settings["compute_dtype"] == "float32":
        changes.append(("compute_dtype", "bfloat16"))
    return changes


def remedies(settings: Mapping[str, Any], kept: Mapping[str, Any], devices: int) -> Iterator[dict[str, Any]]:
    """Changes to try, one after the other: first `at_same_batch`, then batches of half the size, down to one image on
    each device.

    settings: as in `at_same_batch`, and the batch_size. kept: the earlier changes that stay; the caller fills it
    between two changes.
    """
    batch = settings["batch_size"]
    for key, value in at_same_batch(settings, batch // devices, devices):
        yield {key: value}
    microbatch = kept.get("model.microbatch", settings["model"].get("microbatch", 0))
    group = settings["model"].get("drop_path_group", 0)
    views = group // math.gcd(group, batch // devices) if group else 0  # the fewest that fill whole groups
    while batch % (2 * devices) == 0:
        batch //= 2
        images, change = batch // devices, {"batch_size": batch}
        if microbatch and images % microbatch:
            change["model.microbatch"] = images
        if group and images * views % group:
            smaller = math.gcd(group, images * views)
            change["model.drop_path_group"] = smaller if smaller > 1 else 0
        yield change


def spelled(changes: Mapping[str, Any]) -> str:
    """The changes as the command line takes them."""
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())
