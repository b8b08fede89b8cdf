"""Optimizers and learning-rate schedules."""

from collections.abc import Callable
from typing import Any

import jax
import optax


def warmup_cosine(lr: float, *, warmup_steps: int, steps: int, final_lr: float = 0.0) -> optax.Schedule:
    """Linear from 0 to `lr` over `warmup_steps`, then half a cosine down to `final_lr` at `steps`.

    A run no longer than its warm-up ends within it.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else lr,
        peak_value=lr,
        warmup_steps=warmup_steps,
        decay_steps=max(steps, warmup_steps + 1),
        end_value=final_lr,
    )


def is_weight(params: Any) -> Any:
    """True for the leaves of two dimensions and more: not for biases and normalization scales."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def adamw(lr: optax.Schedule, *, weight_decay: float, b1: float = 0.9, b2: float = 0.999):
    """AdamW; biases and normalization scales are not decayed."""
    return optax.adamw(lr, b1=b1, b2=b2, weight_decay=weight_decay, mask=is_weight)


def sgd(lr: optax.Schedule, *, weight_decay: float, momentum: float = 0.9, nesterov: bool = False):
    """SGD with momentum; the decay is added to the gradient, on every parameter, as torch's."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(lr, momentum=momentum, nesterov=nesterov))


def lars(lr: optax.Schedule, *, weight_decay: float, momentum: float = 0.9, trust_coefficient: float = 0.001):
    """LARS; biases and normalization scales are neither decayed nor scaled by the trust ratio.

    Source: You et al. 2017, arXiv:1708.03888, as in SimCLR's code: the learning rate is part of what the momentum
    accumulates.
    """
    return optax.lars(
        lr,
        weight_decay=weight_decay,
        weight_decay_mask=is_weight,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=is_weight,
        momentum=momentum,
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adamw": adamw, "sgd": sgd, "lars": lars}
