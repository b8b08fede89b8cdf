"""What a run that does not fit can be changed to, in the order in which it costs least."""

from collections.abc import Iterator, Mapping
from typing import Any


def remedies(settings: Mapping[str, Any], devices: int) -> Iterator[dict[str, Any]]:
    """Changes of the config's keys, {"model.remat": True}, each together with those before it.

    First those that change nothing of what comes out: shard_state, which sends the weights twice more; model.remat, a
    third more arithmetic; a ViT's model.microbatch. Then bfloat16, and at last batches of half the size, down to an
    image on each device.

    Args:
      settings: the config's batch_size, compute_dtype, shard_state, and all that its model takes under "model".
    """
    model = settings["model"]
    changes: dict[str, Any] = {}
    if devices > 1 and not settings["shard_state"]:
        yield (changes := changes | {"shard_state": True})
    if model.get("remat") is False:
        yield (changes := changes | {"model.remat": True})
    if "microbatch" in model:
        images = model["microbatch"] or settings["batch_size"] // devices
        if images % 4 == 0:
            yield (changes := changes | {"model.microbatch": images // 4})
    if settings["compute_dtype"] == "float32":
        yield (changes := changes | {"compute_dtype": "bfloat16"})
    batch = settings["batch_size"]
    while batch % (2 * devices) == 0:
        batch //= 2
        microbatch = changes.get("model.microbatch", 0)
        if microbatch and batch // devices % microbatch:
            changes = changes | {"model.microbatch": batch // devices}
        yield (changes := changes | {"batch_size": batch})


def spelled(changes: Mapping[str, Any]) -> str:
    """As the command line has them."""
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())
