"""What DINO, iBOT and DINOv2 share: their views, their schedules, and the centers of the teacher's scores."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax import optim
from ssl_jax.methods import _common, _tokens

GLOBAL = ("global1", "global2")


def views(method: Any) -> tuple[str, ...]:
    """Two large crops, which the teacher sees, too, and `local_views` small ones."""
    return (*GLOBAL, *("local",) * method.local_views)


def check(method: Any) -> None:
    """Raises: ValueError for the first of the fields that DINO, iBOT and DINOv2 share that no run can have."""
    _common.check_positive(method, "prototypes", "student_temperature", "teacher_temperature")
    _common.check_positive(method, "warmup_teacher_temperature")
    _common.check_share(method, "decay", "center_decay")
    for name in ("local_views", "warmup_temperature_epochs", "freeze_epochs"):
        if getattr(method, name) < 0:
            raise ValueError(f"{name} must be at least 0, got {getattr(method, name)}")
    for name in ("warmup_teacher_temperature", "teacher_temperature"):
        check_sharper(method, name)


def check_sharper(method: Any, name: str) -> None:
    """Raises: ValueError for a teacher's temperature that is not below the student's."""
    value, most = getattr(method, name), method.student_temperature
    if value >= most:
        raise ValueError(
            f"{name}={value} must be below student_temperature={most}: without sharpening every class becomes equally "
            "likely; the authors found 0.07 the most that is stable beside 0.1"
        )


def temperature(method: Any, start: float, end: float, step: Any) -> Any:
    """The teacher's, in a straight line from `start` to `end` over `warmup_temperature_epochs`.

    The authors' changes once an epoch, this one every step.
    """
    return optim.linear(start, end, step, method.warmup_temperature_epochs * method.run.steps_per_epoch)


def frozen_steps(method: Any, *paths: str) -> dict[str, int]:
    """These parameters and the steps of the first `freeze_epochs`, in which they stay as they are."""
    steps = method.freeze_epochs * method.run.steps_per_epoch
    return {path: steps for path in paths if steps}


def encode(method: Any, params: Any, state: Any, batch: Any, rng: Any, axis_name: str | None) -> Any:
    """(student's class tokens [views, batch, dim] and patches [2, batch, patches, dim], both [2, ...] of the teacher)

    The student sees the large crops with patches masked, the small ones whole; the teacher the large ones whole.
    """
    views, count = batch["views"], len(GLOBAL)
    rng_global, rng_local = jax.random.split(rng)
    h, patches = _tokens.encode(
        method.backbone,
        params["backbone"],
        views[:count],
        masks=batch["masks"],
        mask_token=params["mask_token"],
        axis_name=axis_name,
        rng=rng_global,
    )
    if method.local_views:
        local, _ = _tokens.encode(
            method.backbone, params["backbone"], views[count:], axis_name=axis_name, rng=rng_local
        )
        h = jnp.concatenate([h, local])
    teacher = state["teacher"]["params"]["backbone"]
    whole = _tokens.encode(_common.without_drop_path(method.backbone), teacher, views[:count], axis_name=axis_name)
    return h, patches, *lax.stop_gradient(whole)


def move_center(
    center: Float[Array, " classes"],
    scores: Float[Array, "*batch classes"],
    decay: float,
    axis_name: str | None,
    weights: Any = None,
) -> Float[Array, " classes"]:
    """decay * center + (1 - decay) * the mean of the teacher's scores over all axes and devices.

    weights: [*batch], 0 where a row does not count; the center stays where none counts.
    """
    weights = jnp.ones(scores.shape[:-1]) if weights is None else weights.astype(jnp.float32)
    total, count = jnp.einsum("...k,...->k", scores, weights, precision="highest"), jnp.sum(weights)
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    mean = jnp.where(count > 0, total / jnp.maximum(count, 1.0), center)
    return decay * center + (1.0 - decay) * lax.stop_gradient(mean)


def entropy(probabilities: Float[Array, "*batch classes"]) -> Float[Array, ""]:
    """The mean entropy of the teacher's targets: towards 0 or log(classes) it has collapsed."""
    logs = jnp.log(jnp.maximum(probabilities, 1e-30))
    return -jnp.mean(jnp.sum(probabilities * logs, axis=-1))
