"""What DINO, SimDINO, iBOT, DINOv2 and DINOv3 share: views, passes, schedules, first weights, targets, KoLeo."""

# pyright: reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from ssl_jax import losses, optim
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Batch, Params, Schedule, State
from ssl_jax.methods.toolkit import masking
from ssl_jax.models.abilities import without_noise
from ssl_jax.models.heads import DINOHead

GLOBAL = ("global1", "global2")
ITERATIONS = 3  # of Sinkhorn, the authors'


@runtime_checkable
class SelfDistillation(Protocol):
    """The fields of DINO, iBOT, DINOv2 and DINOv3 that the functions below read."""

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
    return toolkit.with_local(GLOBAL, method.local_views)


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


def check_koleo(koleo_images: int, batch_size: int) -> None:
    """Raises: ValueError for groups of images that have no neighbors, or do not fill the batch; 0 is one group."""
    if koleo_images == 1 or (koleo_images and batch_size % koleo_images):
        raise ValueError(
            f"koleo_images={koleo_images} must be at least 2 and divide batch_size={batch_size}; "
            "use 0 for the global batch"
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


def init(
    backbone: nn.Module,
    heads: Mapping[str, DINOHead],
    rng: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    parts: Mapping[str, int] | None = None,
) -> tuple[dict[str, Any], State]:
    """(the parameters of backbone, heads and mask token; a state of "batch_stats", the "teacher" and "step")

    parts: {head: n} of those that see the first 1 / n of the entries of tokens. None: all see all.
    """
    rng, *rng_heads = jax.random.split(rng, 1 + len(heads))
    params, batch_stats = toolkit.init({"backbone": backbone}, rng, images)
    for (name, head), rng_head in zip(heads.items(), rng_heads, strict=True):
        seen = backbone.dim // (parts[name] if parts else 1)
        params[name], batch_stats[name] = head.init(rng_head, jnp.zeros((1, seen)))["params"], {}
    teacher = toolkit.make_teacher({"backbone": backbone, **heads}, params, batch_stats)
    params["mask_token"] = jnp.zeros(backbone.dim)
    return params, {"batch_stats": batch_stats, "teacher": teacher, "step": jnp.zeros((), jnp.int32)}


def forward(
    networks: toolkit.Networks,
    params: Params,
    state: State,
    views: Sequence[Float[Array, "batch _ _ channels"]],
    rng: Key[Array, ""],
    axis_name: str | None,
) -> tuple[tuple[Array, Array, Array], State]:
    """Both networks' passes, of a backbone and a head: the student sees all crops, the teacher the large ones.

    Crops of one size pass the backbone as one batch, and all crops pass the head as one.

    Returns: the student's features [views, batch, dim] and the outputs of its head, the outputs of the teacher's head
      [2, batch, ...]; and the new "batch_stats" and "teacher".
    """
    outputs, batch_stats = toolkit.forward_views(
        {"backbone": networks["backbone"]},
        params,
        state["batch_stats"],
        views,
        axis_name=axis_name,
        rng=rng,
        together=True,
    )
    h = outputs["backbone"]
    student, batch_stats["head"] = toolkit.train_apply(
        networks["head"], params["head"], batch_stats["head"], h, axis_name=axis_name
    )
    targets, teacher = toolkit.forward_teacher(
        networks, state["teacher"], views[: len(GLOBAL)], axis_name=axis_name, together=True
    )
    return (h, student, targets["head"]), {"batch_stats": batch_stats, "teacher": teacher}


def encode(
    method: SelfDistillation,
    params: Params,
    state: State,
    batch: Batch,
    rng: Key[Array, ""],
    axis_name: str | None,
    local_norm: Params | None = None,
) -> tuple[
    Float[Array, "views batch dim"],
    Float[Array, "2 batch patches dim"],
    Float[Array, "2 batch dim"],
    Float[Array, "2 batch patches dim"],
]:
    """(the student's class tokens, its patches of the large crops, the teacher's class tokens, the teacher's patches)

    The student sees the large crops with patches masked, and the small ones whole. The teacher sees the large crops
    whole. local_norm: "scale" and "bias" of the last LayerNorm of the small crops' class tokens; None: the backbone's.
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
        later_norm=local_norm,
    )
    h = jnp.concatenate([h, *(of_size for of_size, _ in local)])
    teacher = state["teacher"]["params"]["backbone"]
    whole = masking.encode(without_noise(method.backbone), teacher, views[:count], axis_name=axis_name)
    return h, patches, *lax.stop_gradient(whole)


def masked_first(
    masks: Bool[Array, "views batch patches"], most: int, *patches: Float[Array, "views batch patches _"]
) -> tuple[Bool[Array, "views batch most"], list[Float[Array, "views batch most _"]]]:
    """(masks, patches) of `most` patches of each image, the masked ones first. 0: all, in their order."""
    if not most:
        return masks, list(patches)
    first = jnp.argsort(~masks, axis=-1, stable=True)[..., :most]
    taken = [jnp.take_along_axis(x, first[..., None], axis=-2) for x in patches]
    return jnp.take_along_axis(masks, first, axis=-1), taken


def masked_patches(
    scores: Float[Array, "views batch patches prototypes"],
    targets: Float[Array, "views batch patches prototypes"],
    masks: Bool[Array, "views batch patches"],
    *,
    temperature: float,
    axis_name: str | None,
) -> Float[Array, ""]:
    """The mean over views of `losses.masked_patches`."""
    of_views = [
        losses.masked_patches(*view, temperature=temperature, axis_name=axis_name)
        for view in zip(scores, targets, masks, strict=True)
    ]
    return sum(of_views, start=jnp.zeros(())) / len(of_views)


def spread(
    h: Sequence[Float[Array, "batch dim"]] | Float[Array, "views batch dim"], koleo_images: int, axis_name: str | None
) -> Float[Array, ""]:
    """The sum over views of `losses.koleo`."""
    return sum((losses.koleo(x, group=koleo_images, axis_name=axis_name) for x in h), start=jnp.zeros(()))


def share_out(
    scores: Float[Array, "*rows prototypes"],
    temperature: float | Float[Array, ""],
    counts: Shaped[Array, "*rows"],
    axis_name: str | None,
) -> Float[Array, "*rows prototypes"]:
    """The teacher's targets by Sinkhorn, over all rows of the global batch. counts: 0 for rows that take no part."""
    rows, weights = scores.reshape(-1, scores.shape[-1]), counts.reshape(-1).astype(jnp.float32)
    codes = losses.sinkhorn(rows, epsilon=temperature, iterations=ITERATIONS, weights=weights, axis_name=axis_name)
    return codes.reshape(scores.shape)


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
