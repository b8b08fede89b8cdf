"""What DINO, iBOT and DINOv2 share: their views, their schedules, and the centers of the teacher's scores."""

# pyright: reportUnknownMemberType=false

from collections.abc import Mapping
from typing import Protocol, cast, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, Shaped

from ssl_jax import optim
from ssl_jax.methods.contract import Batch, Params, Schedule, State
from ssl_jax.methods.toolkit import masking
from ssl_jax.models.abilities import without_drop_path

GLOBAL = ("global1", "global2")


@runtime_checkable
class SelfDistillation(Protocol):
    """The fields of DINO, iBOT and DINOv2 that the functions below read."""

    @property
    def backbone(self) -> nn.Module: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def local_views(self) -> int: ...
    @property
    def student_temperature(self) -> float: ...
    @property
    def warmup_temperature_epochs(self) -> int: ...
    @property
    def freeze_epochs(self) -> int: ...


def views(method: SelfDistillation) -> tuple[str, ...]:
    """Two large crops, which the teacher sees too, and `local_views` small ones."""
    return (*GLOBAL, *("local",) * method.local_views)


def check_sharper(method: SelfDistillation, *names: str) -> None:
    """Raises: ValueError for one of these temperatures of the teacher that is not below the student's."""
    most = method.student_temperature
    for name in names:
        value = getattr(method, name)
        if value >= most:
            raise ValueError(
                f"{name}={value} must be below student_temperature={most}: without sharpening every "
                "class becomes equally likely; the authors found 0.07 to be the highest stable value "
                "beside 0.1"
            )


def temperature(method: SelfDistillation, start: float, end: float, step: Int[Array, ""]) -> float | Float[Array, ""]:
    """The teacher's temperature: a straight line from `start` to `end` over `warmup_temperature_epochs`.

    The authors' temperature changes once an epoch, this one every step.
    """
    return optim.linear(start, end, step, method.warmup_temperature_epochs * method.schedule.steps_per_epoch)


def frozen_steps(method: SelfDistillation, *paths: str) -> Mapping[str, int]:
    """{path: the steps of the first `freeze_epochs`}, in which these parameters stay as they are."""
    steps = method.freeze_epochs * method.schedule.steps_per_epoch
    return {path: steps for path in paths if steps}


def encode(
    method: SelfDistillation,
    params: Params,
    state: State,
    batch: Batch,
    rng: Key[Array, ""],
    axis_name: str | None,
) -> tuple[
    Float[Array, "views batch dim"],
    Float[Array, "2 batch patches dim"],
    Float[Array, "2 batch dim"],
    Float[Array, "2 batch patches dim"],
]:
    """(the student's class tokens, its patches of the large crops, the teacher's class tokens, the teacher's patches)

    The student sees the large crops with patches masked, and the small ones whole. The teacher sees the large crops
    whole.
    """
    views, count = batch["views"], len(GLOBAL)
    sizes = [views[:count], views[count:]] if method.local_views else [views]
    (h, patches), *local = masking.encode_sizes(
        method.backbone,
        params["backbone"],
        sizes,
        masks=batch["masks"],
        mask_token=params["mask_token"],
        axis_name=axis_name,
        rngs=list(jax.random.split(rng))[: len(sizes)],
    )
    h = jnp.concatenate([h, *(of_size for of_size, _ in local)])
    teacher = state["teacher"]["params"]["backbone"]
    whole = masking.encode(without_drop_path(method.backbone), teacher, views[:count], axis_name=axis_name)
    return h, patches, *lax.stop_gradient(whole)


def move_center(
    center: Float[Array, " classes"],
    scores: Float[Array, "*batch classes"],
    decay: float,
    axis_name: str | None,
    weights: Shaped[Array, "*batch"] | None = None,
) -> Float[Array, " classes"]:
    """decay * center + (1 - decay) * the mean of the teacher's scores over all axes and devices.

    weights: [*batch], 0 where a row does not count. The center stays where it is if none counts.
    """
    weights = jnp.ones(scores.shape[:-1]) if weights is None else weights.astype(jnp.float32)
    total, count = jnp.einsum("...k,...->k", scores, weights, precision="highest"), jnp.sum(weights)
    if axis_name is not None:
        total, count = cast(tuple[Array, Array], lax.psum((total, count), axis_name))
    mean = jnp.where(count > 0, total / jnp.maximum(count, 1.0), center)
    return decay * center + (1.0 - decay) * lax.stop_gradient(mean)


def entropy(probabilities: Float[Array, "*batch classes"]) -> Float[Array, ""]:
    """The mean entropy of the teacher's targets. Near 0 or log(classes), the targets have collapsed."""
    logs = jnp.log(jnp.maximum(probabilities, 1e-30))
    return -jnp.mean(jnp.sum(probabilities * logs, axis=-1))
