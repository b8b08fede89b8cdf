"""The optimizer of a run, with its schedules, clipping, and leaves that are treated apart."""

import functools
import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax.numpy as jnp
import optax

from ssl_jax import keys
from ssl_jax.keys import INNER_SHARE, NOT_NEGATIVE, POSITIVE, OneOf, Range
from ssl_jax.optim.leaves import map_paths
from ssl_jax.optim.parts import clip_leaves, clip_parts, freeze_first, scale_layers, scale_paths, start_after
from ssl_jax.optim.rules import OPTIMIZERS
from ssl_jax.optim.schedules import Schedule, cosine, multistep, warmup_cosine


@keys.checked
def create(
    name: str,
    *,
    lr: Annotated[float, POSITIVE, "Learning rate after the warm-up."],
    warmup_steps: Annotated[int, NOT_NEGATIVE, "Steps in which the learning rate rises linearly from first_lr to lr."],
    steps: int,
    schedule: Annotated[
        str,
        OneOf(("cosine", "multistep")),
        "Learning rate after the warm-up. cosine: half a cosine from lr down to final_lr at the end of the run.",
        "multistep: lr, multiplied by gamma at each of milestones.",
    ] = "cosine",
    milestones: Annotated[
        tuple[float, ...],
        INNER_SHARE,
        "Shares of the run, in rising order, at which multistep multiplies the learning rate by gamma.",
        "For 200 epochs, (0.6, 0.8) are epochs 120 and 160. Empty: lr stays to the end.",
    ] = (),
    gamma: Annotated[float, POSITIVE, "Factor of the learning rate at each of milestones."] = 0.1,
    final_lr: Annotated[float, NOT_NEGATIVE, "Learning rate at the end of the cosine."] = 0.0,
    first_lr: Annotated[float, NOT_NEGATIVE, "Learning rate at the beginning of the warm-up."] = 0.0,
    weight_decay: Annotated[
        float, NOT_NEGATIVE, "Weight decay; at the beginning if there is final_weight_decay."
    ] = 0.0,
    final_weight_decay: Annotated[
        float | None,
        NOT_NEGATIVE,
        "Weight decay at the end of the run, to which half a cosine leads. None: it is constant.",
    ] = None,
    clip_norm: Annotated[
        float | None,
        POSITIVE,
        "Largest norm of the whole gradient; a larger one is scaled down to it. None: no clipping.",
    ] = None,
    clip_networks: Annotated[
        float | None, POSITIVE, "Largest norm of each network's gradient, see optim.clip_parts. None: no clipping."
    ] = None,
    clip_each: Annotated[
        float | None, POSITIVE, "Largest norm of each parameter's gradient. None: no clipping."
    ] = None,
    layer_decay: Annotated[
        float,
        Range(0.0, 1.0, above=True),
        "Learning rate of each block of a ViT over that of the next block, see optim.scale_layers. 1: all are equal.",
    ] = 1.0,
    patch_embed_lr_scale: Annotated[
        float, NOT_NEGATIVE, "Learning rate of a ViT's patch embedding over that of its layer (DINOv2: 0.2)."
    ] = 1.0,
    scaled_paths: Annotated[
        tuple[str, ...],
        "Regular expressions for the beginnings of paths of parameters whose learning rate path_lr_scale multiplies.",
    ] = (),
    path_lr_scale: Annotated[
        float,
        POSITIVE,
        "Learning rate of the parameters of scaled_paths over that of the others (CAPI's clusters: 0.5; BigBiGAN's "
        "encoder: 10).",
    ] = 1.0,
    freeze_blocks: Annotated[
        int,
        NOT_NEGATIVE,
        "Number of a ViT's first blocks that stay as they are, with the patch embedding, tokens and positions before",
        "them: neither the gradient nor the weight decay moves them. 0: everything is trained.",
    ] = 0,
    schedule_stretch: Annotated[
        float,
        Range(1.0),
        "All schedules are those of a run this many times as long, whose last part is left out",
        "(code of MSN and I-JEPA: 1.25).",
    ] = 1.0,
    depth: int = 0,
    frozen_steps: Mapping[str, int] = {},
    still_steps: Mapping[str, int] = {},
    constant_lr: Sequence[str] = (),
    without_momentum: Annotated[
        tuple[str, ...],
        "Regular expressions for the beginnings of paths of parameters that have momentum 0 (ODC's classifier).",
    ] = (),
    **options: Any,
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer of a run, and its learning-rate schedule, `warmup_cosine` or `multistep`.

    Args:
      name, options: an optimizer of OPTIMIZERS, and its arguments other than lr and weight_decay.
      steps: number of steps of the run.
      depth: number of blocks of a ViT, see `scale_layers`; 0 for a network without blocks.
      frozen_steps: {a regular expression for the beginning of a leaf's path, "backbone/patch_embed": steps}. For this
        many steps the optimizer does not see these leaves. Then it starts afresh with them: with moments of 0 and
        Adam's count at 1, but with the learning rate of the current step.
      still_steps: as frozen_steps, but for this many steps the learning rate is 0, while the optimizer gathers moments.
      constant_lr: regular expressions for the beginnings of paths of leaves whose learning rate stays at `lr`.
    Raises: ValueError for an argument out of its range, for arguments that belong to another schedule, and for more
      frozen blocks than there are.
    """
    if freeze_blocks > depth:
        raise ValueError(
            f"freeze_blocks={freeze_blocks} is more than the backbone's {depth} blocks; only ViTs have blocks"
        )
    steps = round(steps * schedule_stretch)
    ramp: dict[str, Any] = dict(warmup_steps=warmup_steps, steps=steps, first_lr=first_lr)
    if schedule == "cosine":
        if milestones:
            raise ValueError(f"milestones={milestones} belong to schedule='multistep', got schedule='cosine'")
        rate = warmup_cosine(lr, **ramp, final_lr=final_lr)
    else:
        if final_lr:
            raise ValueError(f"final_lr={final_lr} belongs to schedule='cosine', got schedule='multistep'")
        if list(milestones) != sorted(milestones):
            raise ValueError(f"milestones must be in rising order, got {milestones}")
        rate = multistep(lr, **ramp, milestones=milestones, gamma=gamma)
    if without_momentum and "momentum" not in inspect.signature(OPTIMIZERS[name]).parameters:
        raise ValueError(f"without_momentum={tuple(without_momentum)} needs an optimizer with momentum, got {name!r}")
    decay: Any = weight_decay
    if final_weight_decay is not None:
        decay = functools.partial(_cosine_at, weight_decay, final_weight_decay, steps)

    def made(constant: bool, plain: bool, frozen: int, still: int) -> optax.GradientTransformation:
        """The optimizer of all leaves that have these four values."""
        of_step = (lambda step: jnp.asarray(lr)) if constant else rate
        if still:
            of_step = functools.partial(_zero_before, of_step, still)
        later = [functools.partial(_shifted, f, frozen) if frozen and callable(f) else f for f in (of_step, decay)]
        own = {**options, "momentum": 0.0} if plain else options
        tx = OPTIMIZERS[name](later[0], weight_decay=later[1], **own)
        return start_after(tx, frozen) if frozen else tx

    def treatment(path: str) -> tuple[bool, bool, int, int]:
        constant, plain = (any(re.match(one, path) for one in some) for some in (constant_lr, without_momentum))
        return constant, plain, _most(path, frozen_steps), _most(path, still_steps)

    clips = [optax.clip_by_global_norm(clip_norm)] if clip_norm is not None else []
    clips += [clip_parts(clip_networks)] if clip_networks is not None else []
    clips += [clip_leaves(clip_each)] if clip_each is not None else []
    if layer_decay < 1.0 and not depth:
        raise ValueError(f"layer_decay={layer_decay} needs a backbone whose depth is known, a ViT; leave it at 1.0")
    layers = [scale_layers(layer_decay, depth)] if layer_decay < 1.0 else []
    if patch_embed_lr_scale != 1.0:
        layers += [scale_paths(lambda path: patch_embed_lr_scale if "patch_embed/" in path else 1.0)]
    if bool(scaled_paths) != (path_lr_scale != 1.0):
        raise ValueError(
            f"scaled_paths={tuple(scaled_paths)} and path_lr_scale={path_lr_scale} go together: set both, or leave () "
            "and 1.0"
        )
    if scaled_paths:
        layers += [scale_paths(lambda path: path_lr_scale if any(re.match(one, path) for one in scaled_paths) else 1.0)]
    choices = ({False, bool(constant_lr)}, {False, bool(without_momentum)})
    tables = [*choices, {0, *frozen_steps.values()}, {0, *still_steps.values()}]
    treatments = list(itertools.product(*map(sorted, tables)))
    tx = made(*treatments[0])
    if len(treatments) > 1:
        tx = optax.partition(
            {_label(one): made(*one) for one in treatments},
            lambda params: map_paths(lambda path: _label(treatment(path)), params),
        )
    tx = optax.chain(*clips, tx, *layers) if clips or layers else tx
    return freeze_first(tx, freeze_blocks) if freeze_blocks else tx, rate


def _label(treatment: tuple[bool, bool, int, int]) -> str:
    constant, plain, frozen, still = treatment
    return f"constant={constant} plain={plain} frozen={frozen} still={still}"


def _most(path: str, table: Mapping[str, int]) -> int:
    return max((steps for pattern, steps in table.items() if re.match(pattern, path)), default=0)


def _zero_before(schedule: Schedule, steps: int, step: Any) -> Any:
    return jnp.where(step < steps, 0.0, schedule(step))


def _shifted(schedule: Schedule, steps: int, step: Any) -> Any:
    return schedule(step + steps)


def _cosine_at(start: float, end: float, steps: int, step: Any) -> Any:
    return cosine(start, end, step, steps)
