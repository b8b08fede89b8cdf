"""Optimizers, schedules of learning rate and other numbers, and averages of weights."""

import functools
import inspect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


def multistep(
    lr: float,
    *,
    warmup_steps: int,
    steps: int,
    milestones: Sequence[float],
    gamma: float = 0.1,
    first_lr: float = 0.0,
) -> optax.Schedule:
    """Linear from `first_lr` to `lr` over `warmup_steps`, then `lr`, times `gamma` from each milestone on.

    milestones: shares of `steps`; of 200 epochs (0.6, 0.8) are epochs 120 and 160, whose first step has the new rate.
    () keeps `lr` to the end.
    """
    starts = np.array([round(share * steps) for share in milestones])

    def schedule(step):
        rate = lr * gamma ** jnp.sum(step >= starts)
        if not warmup_steps:
            return rate
        return jnp.where(step < warmup_steps, first_lr + (lr - first_lr) * step / warmup_steps, rate)

    return schedule


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


# What `exempt` may name; all else is a "weight".
KINDS = ("bias", "offset", "scale", "gain", "prototypes", "cls_token", "pos_embed", "mask_token")
VECTORS = ("bias", "offset", "scale")  # what papers mean by "biases and normalization"
_NAMED = (*KINDS[3:], "relative_position_bias_table")


def kinds(params: Any) -> Any:
    """What each leaf is, by its name and not by its rank: one of `KINDS`, or "weight".

    "scale": of a normalization or LayerScale ("scale", "gamma"). "offset": a "bias" beside a "scale". "bias": another
    "bias". "gain" (of prototypes), "prototypes", "cls_token", "pos_embed" and "mask_token" are called so. A leaf of
    another name is a weight; one of at most one dimension is a bias, as in the authors' codes, which go by the rank.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    normalizations = {path[:-1] for path in paths if leaf_path(path[-1:]) == "scale"}

    def kind(path, p):
        name = leaf_path(path).rpartition("/")[2]
        if name in ("scale", "gamma"):
            return "scale"
        if name == "bias":
            return "offset" if path[:-1] in normalizations else "bias"
        if name in _NAMED:
            return name if name in KINDS else "weight"
        return "weight" if p.ndim > 1 else "bias"

    return jax.tree_util.tree_map_with_path(kind, params)


def all_but(exempt: Sequence[str]) -> Callable[[Any], Any]:
    """params -> True for each leaf that is of none of these kinds. Raises: ValueError for what is no kind."""
    unknown = [name for name in exempt if name not in KINDS]
    if unknown:
        raise ValueError(f"exempt must name some of {', '.join(KINDS)}, got {unknown[0]!r}")
    return lambda params: jax.tree.map(lambda kind: kind not in exempt, kinds(params))


def adamw(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    exempt: tuple[str, ...] = VECTORS,
):
    """AdamW; leaves of the kinds `exempt` are not decayed."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay, all_but(exempt)),
        optax.scale_by_learning_rate(lr),
    )


def adam(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    exempt: tuple[str, ...] = (),
):
    """Adam; the decay is added to the gradient, as torch's; leaves of the kinds `exempt` are not decayed."""
    return optax.chain(optax.add_decayed_weights(weight_decay, all_but(exempt)), optax.adam(lr, b1=b1, b2=b2))


def sgd(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    momentum: float = 0.9,
    nesterov: bool = False,
    exempt: tuple[str, ...] = (),
):
    """SGD with momentum; the decay is added to the gradient, as torch's; leaves of kinds `exempt` are not decayed."""
    decay = optax.add_decayed_weights(weight_decay, all_but(exempt))
    return optax.chain(decay, optax.sgd(lr, momentum=momentum, nesterov=nesterov))


def lars(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    lr_in_momentum: bool = False,
    exempt: tuple[str, ...] = VECTORS,
    vector_lr_scale: float = 1.0,
):
    """LARS: each leaf's gradient g, its decay added, is scaled to trust_coefficient times the norm of the leaf p.

    g + weight_decay * p is multiplied by trust_coefficient * |p| / |g + weight_decay * p|, or by 1 where p is 0.
    A leaf whose gradient is 0, which PyTorch does not update at all where the loss does not depend on it, is not
    decayed: the ratio would make of the decay a step of trust_coefficient * |p|, a thousand times as long.

    Args:
      lr_in_momentum: the learning rate is part of what the momentum accumulates, as in SimCLR's code; else it
        multiplies what has been accumulated, as in Barlow Twins', VICReg's, MoCo v3's and DINO's.
      exempt: kinds of leaves that are neither decayed nor scaled by the trust ratio.
      vector_lr_scale: the learning rate of biases, offsets and scales over that of the weights.
    Source: You et al. 2017, arXiv:1708.03888.
    """

    def adapt(gradient, p, decay, _):
        u = gradient + decay * p
        return u, trust_coefficient * _norm(p) / jnp.maximum(_norm(u), 1e-30)

    order = [optax.trace(momentum), optax.scale_by_learning_rate(lr)]
    return optax.chain(
        optax.masked(_adapted(adapt, weight_decay), all_but(exempt)),
        *(reversed(order) if lr_in_momentum else order),
        _scale_leaves(
            lambda updates: jax.tree.map(lambda kind: vector_lr_scale if kind in VECTORS else 1.0, kinds(updates))
        ),
    )


def larc(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    momentum: float = 0.9,
    nesterov: bool = False,
    trust_coefficient: float = 0.001,
    clip: bool = False,
    exempt: tuple[str, ...] = (),
):
    """LARC: SGD on the gradient g of each leaf p, its decay added, times a ratio of norms.

    g + weight_decay * p is multiplied by trust_coefficient * |p| / (|g| + weight_decay * |p| + 1e-8). A leaf that is 0
    or whose gradient is 0 is neither decayed nor scaled.

    Args:
      clip: the ratio over the learning rate, at most 1, in its place: SGD, whose steps are capped. solo-learn's LARS
        with clip_lr, and EMP-SSL's, is this with exempt=("bias", "offset", "scale").
      exempt: kinds of leaves that are neither decayed nor scaled.
    Source: NVIDIA's apex (apex/parallel/LARC.py), as SwAV and DeepCluster-v2 use it.
    """

    def adapt(gradient, p, decay, count):
        ratio = trust_coefficient * _norm(p) / (_norm(gradient) + decay * _norm(p) + 1e-8)
        if clip:
            ratio = jnp.minimum(ratio / lr(count), 1.0)
        return gradient + decay * p, ratio

    return optax.chain(
        optax.masked(_adapted(adapt, weight_decay), all_but(exempt)),
        optax.sgd(lr, momentum=momentum, nesterov=nesterov),
    )


def _norm(x: Any) -> Any:
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def _adapted(adapt: Callable[..., Any], weight_decay: float | Schedule) -> optax.GradientTransformation:
    """adapt(gradient, parameter, decay, count) -> (direction, ratio) of each leaf that is not 0 and whose gradient is
    not 0, as direction * ratio; other gradients stay as they are."""

    def init(params):
        return jnp.zeros((), jnp.int32)

    def update(updates, count, params):
        decay = weight_decay(count) if callable(weight_decay) else weight_decay

        def one(gradient, p):
            direction, ratio = adapt(gradient, p, decay, count)
            return jnp.where((_norm(gradient) > 0.0) & (_norm(p) > 0.0), direction * ratio, gradient)

        return jax.tree.map(one, updates, params), count + 1

    return optax.GradientTransformation(init, update)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adamw,
    "larc": larc,
    "lars": lars,
    "sgd": sgd,
}


def create(
    name: str,
    *,
    lr: float,
    warmup_steps: int,
    steps: int,
    schedule: str = "cosine",
    milestones: tuple[float, ...] = (),
    gamma: float = 0.1,
    final_lr: float = 0.0,
    first_lr: float = 0.0,
    weight_decay: float = 0.0,
    final_weight_decay: float | None = None,
    clip_norm: float | None = None,
    clip_networks: float | None = None,
    clip_each: float | None = None,
    layer_decay: float = 1.0,
    patch_embed_lr_scale: float = 1.0,
    schedule_stretch: float = 1.0,
    depth: int = 0,
    frozen_steps: Mapping[str, int] = {},
    still_steps: Mapping[str, int] = {},
    constant_lr: Sequence[str] = (),
    without_momentum: Sequence[str] = (),
    **options: Any,
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer of a run, and its learning-rate schedule.

    Args:
      name, options: of OPTIMIZERS, and what that function takes beside lr and weight_decay.
      schedule: "cosine", see `warmup_cosine`, or "multistep", see `multistep`.
      lr, warmup_steps, first_lr, steps: as both take them; final_lr is the cosine's, milestones and gamma of multistep.
      weight_decay, final_weight_decay: from the one to the other by half a cosine over `steps`; None: constant.
      clip_norm: the most that the norm of the whole gradient may be; clip_networks: that of each network by itself, see
        `clip_parts`; clip_each: that of each leaf; None: any.
      layer_decay, depth: see `scale_layers`.
      patch_embed_lr_scale: a ViT's patch embedding's learning rate over that of its layer (DINOv2: 0.2).
      schedule_stretch: the schedules are those of a run this much longer, of which the last part is left out (MSN's and
        I-JEPA's code: 1.25).
      frozen_steps: {a regular expression for the beginning of a leaf's path, "backbone/patch_embed": steps}. For so
        many steps the optimizer does not see these leaves. It starts afresh with them: with moments of 0, Adam's count
        at 1, and the learning rate of the step that it is.
      still_steps: as frozen_steps; for so many steps their learning rate is 0, while the optimizer gathers moments.
      constant_lr: regular expressions for the beginnings of paths of leaves whose learning rate stays at `lr`.
      without_momentum: as constant_lr; these leaves have momentum 0 (ODC's classifier).
    Raises: ValueError for a number out of its range, and for numbers of another schedule than the one asked for.
    """
    for limit_name, limit in (("clip_norm", clip_norm), ("clip_networks", clip_networks), ("clip_each", clip_each)):
        if limit is not None and limit <= 0:
            raise ValueError(f"{limit_name} must be above 0, got {limit}; leave it out for no clipping")
    for rate_name, value in (("first_lr", first_lr), ("final_lr", final_lr)):
        if value < 0.0:
            raise ValueError(f"{rate_name} must be at least 0, got {value}")
    if not 0.0 < layer_decay <= 1.0:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}")
    if schedule_stretch < 1.0:
        raise ValueError(f"schedule_stretch must be at least 1, got {schedule_stretch}")
    steps = round(steps * schedule_stretch)
    ramp = dict(warmup_steps=warmup_steps, steps=steps, first_lr=first_lr)
    if schedule == "cosine":
        if milestones:
            raise ValueError(f"milestones={milestones} belong to schedule='multistep', got schedule='cosine'")
        rate = warmup_cosine(lr, **ramp, final_lr=final_lr)
    elif schedule == "multistep":
        if final_lr:
            raise ValueError(f"final_lr={final_lr} belongs to schedule='cosine', got schedule='multistep'")
        if not all(0.0 < share < 1.0 for share in milestones) or list(milestones) != sorted(milestones):
            raise ValueError(f"milestones must be shares of the run in (0, 1) that grow, got {milestones}")
        rate = multistep(lr, **ramp, milestones=milestones, gamma=gamma)
    else:
        raise ValueError(f"schedule must be 'cosine' or 'multistep', got {schedule!r}")
    if without_momentum and "momentum" not in inspect.signature(OPTIMIZERS[name]).parameters:
        raise ValueError(f"without_momentum={tuple(without_momentum)} needs an optimizer with momentum, got {name!r}")
    decay: Any = weight_decay
    if final_weight_decay is not None:
        decay = functools.partial(_cosine_at, weight_decay, final_weight_decay, steps)

    def made(constant: bool, plain: bool, frozen: int, still: int) -> optax.GradientTransformation:
        """For leaves of which all four are the same."""
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
    layers = [scale_layers(layer_decay, depth)] if layer_decay < 1.0 else []
    if patch_embed_lr_scale != 1.0:
        layers += [_scale_paths(lambda path: patch_embed_lr_scale if "patch_embed/" in path else 1.0)]
    choices = ({False, bool(constant_lr)}, {False, bool(without_momentum)})
    tables = [*choices, {0, *frozen_steps.values()}, {0, *still_steps.values()}]
    treatments = list(itertools.product(*map(sorted, tables)))
    tx = made(*treatments[0])
    if len(treatments) > 1:
        tx = optax.partition(
            {_label(one): made(*one) for one in treatments},
            lambda params: _map_paths(lambda path: _label(treatment(path)), params),
        )
    return optax.chain(*clips, tx, *layers) if clips or layers else tx, rate


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


def clip_leaves(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient of each leaf, on its own, to a norm of at most `max_norm`: DINO's clipping."""

    def clip(g):
        norm = jnp.sqrt(jnp.sum(jnp.square(g)))
        return g * jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def clip_parts(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient of each network to a norm of at most `max_norm`: DINOv2's clipping.

    A network is what has an entry of its own at the top of the parameters; a leaf that stands there, such as a mask
    token, counts as the backbone's.
    """

    def clip(updates, _):
        entries = _map_paths(lambda path: path.partition("/")[0] if "/" in path else "backbone", updates)
        squares: dict[str, Any] = {}
        for entry, g in zip(jax.tree.leaves(entries), jax.tree.leaves(updates), strict=True):
            squares[entry] = squares.get(entry, 0.0) + jnp.sum(jnp.square(g))
        ratios = {entry: jnp.minimum(1.0, max_norm / jnp.maximum(jnp.sqrt(x), 1e-12)) for entry, x in squares.items()}
        return jax.tree.map(lambda entry, g: ratios[entry] * g, entries, updates)

    return optax.stateless(clip)


def start_after(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """`tx`, which sees nothing of the first `steps` steps, and moves nothing in them.

    As PyTorch's optimizers treat parameters without a gradient, whose state they make when they first get one.
    """

    def init(params):
        return jnp.zeros((), jnp.int32), tx.init(params)

    def update(grads, state, params):
        count, before = state
        updates, after = tx.update(grads, before, params)
        begun = count >= steps
        updates = jax.tree.map(lambda u: jnp.where(begun, u, jnp.zeros_like(u)), updates)
        return updates, (count + 1, jax.tree.map(lambda a, b: jnp.where(begun, a, b), after, before))

    return optax.GradientTransformation(init, update)


def scale_layers(layer_decay: float, depth: int) -> optax.GradientTransformation:
    """Updates of a ViT's block i (from 0) times layer_decay ** (depth - i), of what precedes the blocks, tokens and
    positions included, times layer_decay ** (depth + 1), of the rest 1.

    Source: BEiT's code (arXiv:2106.08254), as MAE's and DINOv2's.
    """

    def scale(path):
        found = re.search(r"(?:^|/)(?:blocks_(\d+)|(patch_embed|pos_embed|cls_token|mask_token))(?:/|$)", path)
        if found is None:
            return 1.0
        return layer_decay ** (depth + 1 if found[2] else depth - int(found[1]))

    return _scale_paths(scale)


def _scale_paths(scale: Callable[[str], float]) -> optax.GradientTransformation:
    return _scale_leaves(functools.partial(_map_paths, scale))


def _scale_leaves(scales: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Updates times what `scales` makes of their tree: a number for each leaf."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, scale: scale * u, updates, scales(updates)))


def _map_paths(function: Callable[[str], Any], tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: function(leaf_path(path)), tree)


def leaf_path(path: Any) -> str:
    """ "backbone/conv1/kernel" """
    return "/".join(str(getattr(key, "key", key)) for key in path)
