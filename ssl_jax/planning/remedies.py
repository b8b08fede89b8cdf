"""What a run that does not fit can be changed to, in the order in which it costs least."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

# What a key that is changed does to memory.
WHY = {
    "shard_state": "each device keeps a part of the state",
    "model.remat": "activations computed again in place of kept",
    "compute_dtype": "activations of half the size",
}


def at_same_batch(settings: Mapping[str, Any], images: int, devices: int) -> dict[str, Any]:
    """Changes of the config's keys, {"model.remat": True}, that leave the batch as it is.

    First those that change nothing of what comes out: shard_state, which sends the weights twice more; model.remat, a
    third more arithmetic; a ViT's model.microbatch. Then bfloat16.

    Args:
      settings: the config's compute_dtype, shard_state, and all that its model takes under "model".
      images: on each device.
    """
    model, changes = settings["model"], {}
    if devices > 1 and not settings["shard_state"]:
        changes["shard_state"] = True
    if model.get("remat") is False:
        changes["model.remat"] = True
    if "microbatch" in model and (images := model["microbatch"] or images) % 4 == 0:
        group = model.get("drop_path_group", 0)  # which must divide a microbatch
        if not group or images // 4 % group == 0:
            changes["model.microbatch"] = images // 4
    if settings["compute_dtype"] == "float32":
        changes["compute_dtype"] = "bfloat16"
    return changes


def remedies(settings: Mapping[str, Any], kept: Mapping[str, Any], devices: int) -> Iterator[dict[str, Any]]:
    """Changes, one after the other: `at_same_batch`, and at last batches of half the size, down to an image on each
    device. `settings` has the batch_size, too; `kept`: of the changes so far those that stay, filled in meanwhile."""
    batch = settings["batch_size"]
    for key, value in at_same_batch(settings, batch // devices, devices).items():
        yield {key: value}
    microbatch = kept.get("model.microbatch", settings["model"].get("microbatch", 0))
    group = settings["model"].get("drop_path_group", 0)
    views = group // math.gcd(group, batch // devices) if group else 0  # so many of an image make whole groups
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
    """As the command line has them."""
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())
