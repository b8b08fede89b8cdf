"""Optimizers, schedules of learning rate and other numbers, and averages of weights."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[Any], Any]  # step (from 0) -> number


def warmup_cosine(
    lr: float, *, warmup_steps: int, steps: int, final_lr: float = 0.0, first_lr: float = 0.0
) -> optax.Schedule:
    """Linear from `first_lr` to `lr` over `warmup_steps`, then half a cosine down to `final_lr` at `steps`.

    A run no longer than its warm-up ends within it.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=first_lr if warmup_steps else lr,
        peak_value=lr,
        warmup_steps=warmup_steps,
        decay_steps=max(steps, warmup_steps + 1),
        end_value=final_lr,
    )


def cosine(start: float, end: float, step: Any, steps: int) -> Any:
    """From `start` at step 0 by half a cosine to `end` at `steps`, and there from then on: teachers' decay."""
    share = jnp.minimum(step / steps, 1.0)
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * share))


def linear(start: float, end: float, step: Any, steps: int) -> Any:
    """From `start` at step 0 in a straight line to `end` at `steps`, and there from then on: teachers' temperature."""
    share = jnp.minimum(step / steps, 1.0) if steps else 1.0
    return start + (end - start) * share


def ema(average: Any, new: Any, decay: Any) -> Any:
    """decay * average + (1 - decay) * new, leaf by leaf, in float32. 1 freezes the average."""
    return jax.tree.map(lambda a, n: a + (1.0 - decay) * (n.astype(jnp.float32) - a), average, new)


def is_weight(params: Any) -> Any:
    """True for the leaves of two dimensions and more: not for biases and normalization scales."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def adamw(lr: Schedule, *, weight_decay: float | Schedule, b1: float = 0.9, b2: float = 0.999):
    """AdamW; biases and normalization scales are not decayed."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay, is_weight),
        optax.scale_by_learning_rate(lr),
    )


def adam(lr: Schedule, *, weight_decay: float | Schedule, b1: float = 0.9, b2: float = 0.999):
    """Adam; the decay is added to the gradient, on every parameter, as torch's."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(lr, b1=b1, b2=b2))


def sgd(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    momentum: float = 0.9,
    nesterov: bool = False,
    exclude_vectors: bool = False,
):
    """SGD with momentum; the decay is added to the gradient, on every parameter, as torch's.

    exclude_vectors: biases and normalization scales are not decayed.
    """
    decay = optax.add_decayed_weights(weight_decay, is_weight if exclude_vectors else None)
    return optax.chain(decay, optax.sgd(lr, momentum=momentum, nesterov=nesterov))


def lars(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    lr_in_momentum: bool = False,
    exclude_vectors: bool = True,
    vector_lr_scale: float = 1.0,
    clip: bool = False,
):
    """LARS: each leaf's gradient, its decay added, is scaled to trust_coefficient times the norm of the leaf.

    Args:
      lr_in_momentum: the learning rate is part of what the momentum accumulates, as in SimCLR's code; else it
        multiplies what has been accumulated, as in Barlow Twins', VICReg's, MoCo v3's and DINO's.
      exclude_vectors: biases and normalization scales are neither decayed nor scaled by the trust ratio; False is
        SwAV's and DeepCluster v2's LARC.
      clip: the trust ratio times the gradient is no longer than the learning rate times the gradient: SGD, whose steps
        are capped, as solo-learn's settings for CIFAR have it (clip_lr there).
      vector_lr_scale: their learning rate over that of the weights: 0.0048 / 0.2 in Barlow Twins'.
    Source: You et al. 2017, arXiv:1708.03888.
    """
    mask = is_weight if exclude_vectors else lambda params: jax.tree.map(lambda p: True, params)
    order = [optax.trace(momentum), optax.scale_by_learning_rate(lr)]
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(_trust_ratio(trust_coefficient, lr if clip else None), mask),
        *(reversed(order) if lr_in_momentum else order),
        _scale_leaves(lambda path, p: vector_lr_scale if p.ndim <= 1 else 1.0),
    )


def _trust_ratio(coefficient: float, clip_lr: Schedule | None) -> optax.GradientTransformation:
    """Leaves scaled by coefficient * |parameter| / |update|, 1 where either is 0; with `clip_lr` by
    min(that / clip_lr(step), 1), to be multiplied by the learning rate."""

    def init(params):
        return jnp.zeros((), jnp.int32)

    def update(updates, count, params):
        def scale(u, p):
            update_norm, norm = jnp.linalg.norm(u.ravel()), jnp.linalg.norm(p.ravel())
            valid = (update_norm > 0.0) & (norm > 0.0)
            ratio = jnp.where(valid, coefficient * norm / jnp.where(valid, update_norm, 1.0), 1.0)
            if clip_lr is not None:
                ratio = jnp.minimum(ratio, clip_lr(count)) / jnp.maximum(clip_lr(count), 1e-30)
            return ratio * u

        return jax.tree.map(scale, updates, params), count + 1

    return optax.GradientTransformation(init, update)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adamw,
    "lars": lars,
    "sgd": sgd,
}


def create(
    name: str,
    *,
    lr: float,
    warmup_steps: int,
    steps: int,
    final_lr: float = 0.0,
    first_lr: float = 0.0,
    weight_decay: float = 0.0,
    final_weight_decay: float | None = None,
    clip_norm: float | None = None,
    clip_each: float | None = None,
    layer_decay: float = 1.0,
    patch_embed_lr_scale: float = 1.0,
    schedule_stretch: float = 1.0,
    depth: int = 0,
    frozen_steps: Mapping[str, int] = {},
    constant_lr: Sequence[str] = (),
    **options: Any,
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer of a run, and its learning-rate schedule.

    Args:
      name, options: of OPTIMIZERS, and what that function takes beside lr and weight_decay.
      lr, warmup_steps, final_lr, first_lr, steps: see `warmup_cosine`.
      weight_decay, final_weight_decay: from the one to the other by half a cosine over `steps`; None: constant.
      clip_norm: the most that the norm of the whole gradient may be; clip_each: that of each leaf; None: any.
      layer_decay, depth: see `scale_layers`.
      patch_embed_lr_scale: a ViT's patch embedding's learning rate over that of its layer (DINOv2: 0.2).
      schedule_stretch: the schedules are those of a run this much longer, of which the last part is left out (MSN's and
        I-JEPA's code: 1.25).
      frozen_steps: see `freeze`.
      constant_lr: paths of leaves whose learning rate stays at `lr`: SimSiam's predictor.
    Raises: ValueError for a number out of its range.
    """
    for limit_name, limit in (("clip_norm", clip_norm), ("clip_each", clip_each)):
        if limit is not None and limit <= 0:
            raise ValueError(f"{limit_name} must be above 0, got {limit}; leave it out for no clipping")
    if first_lr < 0.0:
        raise ValueError(f"first_lr must be at least 0, got {first_lr}")
    if not 0.0 < layer_decay <= 1.0:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}")
    if schedule_stretch < 1.0:
        raise ValueError(f"schedule_stretch must be at least 1, got {schedule_stretch}")
    steps = round(steps * schedule_stretch)
    schedule = warmup_cosine(lr, warmup_steps=warmup_steps, steps=steps, final_lr=final_lr, first_lr=first_lr)
    decay: Any = weight_decay
    if final_weight_decay is not None:
        decay = functools.partial(_cosine_at, weight_decay, final_weight_decay, steps)
    tx = OPTIMIZERS[name](schedule, weight_decay=decay, **options)
    if constant_lr:
        tx = constant_for(tx, OPTIMIZERS[name](lambda _: lr, weight_decay=decay, **options), constant_lr)
    clips = [optax.clip_by_global_norm(clip_norm)] if clip_norm is not None else []
    clips += [clip_leaves(clip_each)] if clip_each is not None else []
    layers = [scale_layers(layer_decay, depth)] if layer_decay < 1.0 else []
    if patch_embed_lr_scale != 1.0:
        layers += [_scale_leaves(lambda path, _: patch_embed_lr_scale if "patch_embed/" in path else 1.0)]
    return freeze(optax.chain(*clips, tx, *layers) if clips or layers else tx, frozen_steps), schedule


def _cosine_at(start: float, end: float, steps: int, step: Any) -> Any:
    return cosine(start, end, step, steps)


def clip_leaves(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient of each leaf, on its own, to a norm of at most `max_norm`: DINO's clipping."""

    def clip(g):
        norm = jnp.sqrt(jnp.sum(jnp.square(g)))
        return g * jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def freeze(tx: optax.GradientTransformation, frozen_steps: Mapping[str, int]) -> optax.GradientTransformation:
    """`tx`, but for leaves that do not move, nor gather momentum, for their first steps.

    Args:
      frozen_steps: {a regular expression for the beginning of a leaf's path, "backbone/patch_embed": steps}.
    """
    if not frozen_steps:
        return tx

    def stop(tree, count):
        def one(path, x):
            steps = max((n for pattern, n in frozen_steps.items() if re.match(pattern, leaf_path(path))), default=0)
            return jnp.where(count < steps, jnp.zeros_like(x), x) if steps else x

        return jax.tree_util.tree_map_with_path(one, tree)

    def init(params):
        return jnp.zeros((), jnp.int32), tx.init(params)

    def update(grads, state, params):
        count, inner = state
        # As if they were 0 for that long: neither gradients nor weight decay gather in their momentum.
        updates, inner = tx.update(stop(grads, count), inner, stop(params, count))
        return stop(updates, count), (count + 1, inner)

    return optax.GradientTransformation(init, update)


def constant_for(
    tx: optax.GradientTransformation, constant: optax.GradientTransformation, patterns: Sequence[str]
) -> optax.GradientTransformation:
    """`constant` for the leaves whose path begins as one of `patterns` says, `tx` for the others."""

    def labels(params):
        def label(path, _):
            return "constant" if any(re.match(pattern, leaf_path(path)) for pattern in patterns) else "other"

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.partition({"constant": constant, "other": tx}, labels)


def scale_layers(layer_decay: float, depth: int) -> optax.GradientTransformation:
    """Updates of a ViT's block i (from 0) times layer_decay ** (depth - i), of what precedes the blocks times
    layer_decay ** (depth + 1), of the rest 1.

    Source: BEiT's code (arXiv:2106.08254), as MAE's and DINOv2's.
    """

    def scale(path, _):
        found = re.search(r"(?:^|/)(?:blocks_(\d+)|(patch_embed|pos_embed|cls_token))(?:/|$)", path)
        if found is None:
            return 1.0
        return layer_decay ** (depth + 1 if found[2] else depth - int(found[1]))

    return _scale_leaves(scale)


def _scale_leaves(scale: Callable[[str, Any], float]) -> optax.GradientTransformation:
    def update(updates, _):
        return jax.tree_util.tree_map_with_path(lambda path, u: scale(leaf_path(path), u) * u, updates)

    return optax.stateless(update)


def leaf_path(path: Any) -> str:
    """ "backbone/conv1/kernel" """
    return "/".join(str(getattr(key, "key", key)) for key in path)
