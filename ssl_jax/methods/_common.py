"""What the methods share: the facts of a run, and networks applied as in training."""

import dataclasses
from typing import Any

import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Run:
    """The facts of a run that schedules and chance levels depend on.

    batch_size: images a step over all devices. steps: optimizer steps of the whole run.
    steps_per_epoch, num_images, num_classes (0 without labels): of the data that it trains on.
    """

    batch_size: int
    steps: int
    steps_per_epoch: int
    num_images: int
    num_classes: int = 0


def train_apply(module: nn.Module, params: Any, batch_stats: Any, *inputs: Any, axis_name: str | None):
    """`module` in training mode -> (its output, its new BatchNorm statistics)."""
    output, updated = module.apply(
        {"params": params, "batch_stats": batch_stats},
        *inputs,
        train=True,
        axis_name=axis_name,
        mutable=["batch_stats"],
    )
    return output, updated.get("batch_stats", {})
