"""Warnings from the metrics that are logged during training."""

import math
from collections.abc import Mapping, Sequence

# A warning is given below these shares of the largest possible value. A collapse is far below, a healthy run far above.
LEAST_SPREAD, LEAST_RANK = 0.25, 0.1
# A loss that stays this near to the chance level has not left it, or has come back. The margin is a share of the chance
# level if that is more than 1. A single noisy batch may be as near, so this many logged losses must be.
CHANCE_MARGIN, LEAST_STAY = 0.002, 3


def collapse(metrics: Mapping[str, float], chance_level: float | None, losses: Sequence[float] = ()) -> dict[str, str]:
    """Warnings of a collapse from the logged metrics of a step: {metric: a sentence}, {} for a healthy run.

    Not for the first steps, in which every network is near chance. `losses`: losses of the logged steps up to this one.
    With fewer than LEAST_STAY, there is no warning about the loss.
    """
    found = {}
    if metrics.get("embedding_std", math.inf) < LEAST_SPREAD / math.sqrt(metrics.get("embedding_dim", math.inf)):
        found["embedding_std"] = (
            "The embeddings have collapsed to nearly one point: lower config.optimizer.lr or strengthen the "
            "augmentations."
        )
    if metrics.get("rankme", math.inf) < LEAST_RANK * metrics.get("rank_limit", 0.0):
        found["rankme"] = (
            "Few dimensions are in use, so the embeddings have partly collapsed: lower "
            "config.optimizer.lr or strengthen the augmentations."
        )
    margin = CHANCE_MARGIN * max(1.0, abs(chance_level or 0.0))
    last = losses[-LEAST_STAY:]
    if chance_level is not None and len(last) == LEAST_STAY and all(abs(x - chance_level) < margin for x in last):
        found["loss"] = (
            f"The loss, now {last[-1]:.5g}, stays at {chance_level:.5g}, the loss of equal "
            "embeddings: nothing is learnt. Lower config.optimizer.lr, or lengthen "
            "config.optimizer.warmup_steps."
        )
    if metrics.get("colored_share", 1.0) == 0.0:
        found["colored_share"] = (
            "No image has a color, but the method predicts colors: train on color images, with config.data.channels=3."
        )
    return found
