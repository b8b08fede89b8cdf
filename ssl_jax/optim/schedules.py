"""Numbers that change from step to step: learning rates, teachers' decay and temperature, weight decay."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

Schedule = Callable[[Any], Any]  # step (from 0) -> number


def warmup_cosine(
    lr: float, *, warmup_steps: int, steps: int, final_lr: float = 0.0, first_lr: float = 0.0
) -> optax.Schedule:
    """Linear from `first_lr` to `lr` over `warmup_steps`, then half a cosine down to `final_lr` at `steps`.

    A run that is no longer than its warm-up ends within the warm-up.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=first_lr if warmup_steps else lr,
        peak_value=lr,
        warmup_steps=warmup_steps,
        decay_steps=max(steps, warmup_steps + 1),
        end_value=final_lr,
    )


def multistep(
    lr: float,
    *,
    warmup_steps: int,
    steps: int,
    milestones: Sequence[float],
    gamma: float = 0.1,
    first_lr: float = 0.0,
) -> optax.Schedule:
    """Linear from `first_lr` to `lr` over `warmup_steps`, then `lr`, multiplied by `gamma` at each milestone.

    milestones: shares of `steps`. Of 200 epochs, (0.6, 0.8) are epochs 120 and 160, whose first steps have the new
      rates. () keeps `lr` to the end.
    """
    starts = np.array([round(share * steps) for share in milestones])

    def schedule(step):
        rate = lr * gamma ** jnp.sum(step >= starts)
        if not warmup_steps:
            return rate
        return jnp.where(step < warmup_steps, first_lr + (lr - first_lr) * step / warmup_steps, rate)

    return schedule


def cosine(start: float, end: float, step: Any, steps: int) -> Any:
    """Half a cosine from `start` at step 0 to `end` at `steps`, and `end` from then on: for teachers' decay."""
    share = jnp.minimum(step / steps, 1.0)
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * share))


def linear(start: float, end: float, step: Any, steps: int) -> Any:
    """A line from `start` at step 0 to `end` at `steps`, and `end` from then on: for teachers' temperature."""
    share = jnp.minimum(step / steps, 1.0) if steps else 1.0
    return start + (end - start) * share
