"""Optimizers, schedules of learning rate and other numbers, and averages of weights."""

import functools
import inspect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax import keys
from ssl_jax.keys import INNER_SHARE, NOT_NEGATIVE, POSITIVE, OneOf, Range

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


def ema(average: Any, new: Any, decay: Any) -> Any:
    """decay * average + (1 - decay) * new, leaf by leaf, in float32. A decay of 1 freezes the average."""
    return jax.tree.map(lambda a, n: a + (1.0 - decay) * (n.astype(jnp.float32) - a), average, new)


# Kinds that `exempt` may name. All other leaves are of kind "weight".
KINDS = ("bias", "offset", "scale", "gain", "prototypes", "cls_token", "pos_embed", "mask_token")
VECTORS = ("bias", "offset", "scale")  # what papers mean by "biases and normalization"
_NAMED = (*KINDS[3:], "relative_position_bias_table")


def kinds(params: Any) -> Any:
    """The kind of each leaf, by its name and not by its rank: one of `KINDS`, or "weight".

    "scale": of a normalization or LayerScale, named "scale" or "gamma". "offset": a "bias" beside a "scale". "bias":
    any other "bias". "gain" (of prototypes), "prototypes", "cls_token", "pos_embed" and "mask_token" are leaves of that
    name; a ViT's registers are of kind "cls_token". A leaf of another name is a bias if it has at most one dimension,
    otherwise a weight. The authors' codes decide by the rank in this way.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    normalizations = {path[:-1] for path in paths if leaf_path(path[-1:]) == "scale"}

    def kind(path, p):
        name = leaf_path(path).rpartition("/")[2]
        if name in ("scale", "gamma"):
            return "scale"
        if name == "bias":
            return "offset" if path[:-1] in normalizations else "bias"
        if name == "reg_token":
            return "cls_token"
        if name in _NAMED:
            return name if name in KINDS else "weight"
        return "weight" if p.ndim > 1 else "bias"

    return jax.tree_util.tree_map_with_path(kind, params)


def all_but(exempt: Sequence[str]) -> Callable[[Any], Any]:
    """params -> True for each leaf that is of none of these kinds."""
    return lambda params: jax.tree.map(lambda kind: kind not in exempt, kinds(params))


# Annotations of keys that several optimizers have. Their lr and weight_decay come from `create`, which has those keys.
Beta1 = Annotated[float, Range(0.0, 1.0, below=True), "Decay of Adam's running mean of gradients."]
Beta2 = Annotated[float, Range(0.0, 1.0, below=True), "Decay of Adam's running mean of squared gradients."]
Momentum = Annotated[
    float, Range(0.0, 1.0, below=True), "Share of the accumulated update that each step keeps; 0: no momentum."
]
Nesterov = Annotated[bool, "Nesterov's momentum."]
Exempt = Annotated[tuple[str, ...], OneOf(KINDS), "Kinds of parameters, see optim.kinds, that are not decayed."]
UnscaledToo = Annotated[
    tuple[str, ...],
    OneOf(KINDS),
    "Kinds of parameters, see optim.kinds, that are neither decayed nor scaled by the ratio of norms.",
]
TrustCoefficient = Annotated[
    float, POSITIVE, "Factor of the ratio of norms, by which the gradient of each parameter is multiplied."
]


@keys.checked
def adamw(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    b1: Beta1 = 0.9,
    b2: Beta2 = 0.999,
    exempt: Exempt = VECTORS,
):
    """AdamW: the decay is not part of the gradient."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay, all_but(exempt)),
        optax.scale_by_learning_rate(lr),
    )


@keys.checked
def adam(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    b1: Beta1 = 0.9,
    b2: Beta2 = 0.999,
    exempt: Exempt = (),
):
    """Adam. The decay is added to the gradient, as in torch."""
    return optax.chain(optax.add_decayed_weights(weight_decay, all_but(exempt)), optax.adam(lr, b1=b1, b2=b2))


@keys.checked
def lamb(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    b1: Beta1 = 0.9,
    b2: Beta2 = 0.999,
    exempt: UnscaledToo = VECTORS,
):
    """LAMB: Adam's step u of each leaf p, with its decay, is scaled to the norm of p.

    u + weight_decay * p is multiplied by |p| / |u + weight_decay * p|, or by 1 where p is 0. A leaf without gradients
    is not decayed, as in `lars`.

    Source: You et al. 2019, arXiv:1904.00962; exempt leaves and Adam's eps of 1e-6 as in timm's Lamb, which SparK has.
    """

    def adapt(u, p, decay, _):
        u = u + decay * p
        return u, _norm(p) / jnp.maximum(_norm(u), 1e-30)

    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=1e-6),
        optax.masked(_adapted(adapt, weight_decay), all_but(exempt)),
        optax.scale_by_learning_rate(lr),
    )


@keys.checked
def sgd(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    momentum: Momentum = 0.9,
    nesterov: Nesterov = False,
    exempt: Exempt = (),
):
    """SGD with momentum. The decay is added to the gradient, as in torch."""
    decay = optax.add_decayed_weights(weight_decay, all_but(exempt))
    return optax.chain(decay, optax.sgd(lr, momentum=momentum, nesterov=nesterov))


@keys.checked
def lars(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    momentum: Momentum = 0.9,
    trust_coefficient: TrustCoefficient = 0.001,
    lr_in_momentum: Annotated[
        bool,
        "The learning rate is part of what the momentum accumulates, as in SimCLR's code. If not, it multiplies what",
        "has been accumulated, as in the code of Barlow Twins, VICReg, MoCo v3 and DINO.",
    ] = False,
    exempt: UnscaledToo = VECTORS,
    vector_lr_scale: Annotated[
        float, NOT_NEGATIVE, "Learning rate of biases, offsets and scales over that of the weights."
    ] = 1.0,
):
    """LARS: the gradient g of each leaf p, with its decay, is scaled to trust_coefficient times the norm of p.

    g + weight_decay * p is multiplied by trust_coefficient * |p| / |g + weight_decay * p|, or by 1 where p is 0.
    A leaf whose gradient is 0 is not decayed: the ratio would turn the decay into a step of trust_coefficient * |p|, a
    thousand times as long. PyTorch, too, does not update a leaf that the loss does not depend on.

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


@keys.checked
def larc(
    lr: Schedule,
    *,
    weight_decay: float | Schedule,
    momentum: Momentum = 0.9,
    nesterov: Nesterov = False,
    trust_coefficient: TrustCoefficient = 0.001,
    clip: Annotated[
        bool,
        "Divides the ratio of norms by the learning rate, and uses at most 1: SGD with capped steps.",
        "With exempt=('bias', 'offset', 'scale') this is the LARS of solo-learn with clip_lr, and of EMP-SSL.",
    ] = False,
    exempt: UnscaledToo = (),
):
    """LARC: SGD on the gradient g of each leaf p, with its decay, times a ratio of norms.

    g + weight_decay * p is multiplied by trust_coefficient * |p| / (|g| + weight_decay * |p| + 1e-8). A leaf that is 0
    or whose gradient is 0 is neither decayed nor scaled.

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
    """Replaces each gradient by direction * ratio, where adapt(gradient, parameter, decay, count) gives both.

    If the gradient or the leaf is 0, the gradient stays as it is.
    """

    def init(params):
        return jnp.zeros((), jnp.int32)

    def update(updates, state, params=None):
        count: Any = state
        decay = weight_decay(count) if callable(weight_decay) else weight_decay

        def one(gradient, p):
            direction, ratio = adapt(gradient, p, decay, count)
            return jnp.where((_norm(gradient) > 0.0) & (_norm(p) > 0.0), direction * ratio, gradient)

        return jax.tree.map(one, updates, params), count + 1

    return optax.GradientTransformation(init, update)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adamw,
    "lamb": lamb,
    "larc": larc,
    "lars": lars,
    "sgd": sgd,
}


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
        layers += [_scale_paths(lambda path: patch_embed_lr_scale if "patch_embed/" in path else 1.0)]
    if bool(scaled_paths) != (path_lr_scale != 1.0):
        raise ValueError(
            f"scaled_paths={tuple(scaled_paths)} and path_lr_scale={path_lr_scale} go together: set both, or leave () "
            "and 1.0"
        )
    if scaled_paths:
        layers += [
            _scale_paths(lambda path: path_lr_scale if any(re.match(one, path) for one in scaled_paths) else 1.0)
        ]
    choices = ({False, bool(constant_lr)}, {False, bool(without_momentum)})
    tables = [*choices, {0, *frozen_steps.values()}, {0, *still_steps.values()}]
    treatments = list(itertools.product(*map(sorted, tables)))
    tx = made(*treatments[0])
    if len(treatments) > 1:
        tx = optax.partition(
            {_label(one): made(*one) for one in treatments},
            lambda params: _map_paths(lambda path: _label(treatment(path)), params),
        )
    tx = optax.chain(*clips, tx, *layers) if clips or layers else tx
    return freeze_first(tx, freeze_blocks) if freeze_blocks else tx, rate


def freeze_first(tx: optax.GradientTransformation, blocks: int) -> optax.GradientTransformation:
    """`tx` for all but a ViT's first `blocks` blocks and what is before them, which do not move.

    `tx` does not see the frozen leaves: they have no moments, and their gradients do not count where it clips. A mask
    token, which weights do not come with, is trained.
    """

    def label(path):
        layer = None if path.endswith("mask_token") else _layer(path)
        return "trained" if layer is None or layer > blocks else "frozen"

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, functools.partial(_map_paths, label))


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
    """Scales the gradient of each leaf to a norm of at most `max_norm`: DINO's clipping."""

    def clip(g):
        norm = jnp.sqrt(jnp.sum(jnp.square(g)))
        return g * jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def clip_parts(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient of each network to a norm of at most `max_norm`: DINOv2's clipping.

    Each entry at the top of the parameters is a network. A leaf there, such as a mask token, belongs to the backbone.
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
    """`tx` that starts after `steps` steps: it does not see them, and moves nothing in them.

    PyTorch's optimizers treat parameters without a gradient in this way: they make the state when the first gradient
    comes.
    """

    def init(params):
        return jnp.zeros((), jnp.int32), tx.init(params)

    def update(updates, state, params=None):
        count, before = state
        updates, after = tx.update(updates, before, params)
        begun = count >= steps
        updates = jax.tree.map(lambda u: jnp.where(begun, u, jnp.zeros_like(u)), updates)
        return updates, (count + 1, jax.tree.map(lambda a, b: jnp.where(begun, a, b), after, before))

    return optax.GradientTransformation(init, update)


def scale_layers(layer_decay: float, depth: int) -> optax.GradientTransformation:
    """Multiplies the updates of a ViT's block i (from 0) by layer_decay ** (depth - i).

    The updates of the patch embedding, tokens and positions, which are before the blocks, are multiplied by
    layer_decay ** (depth + 1). All other updates stay, such as those of a decoder's blocks.

    Source: the code of BEiT (arXiv:2106.08254), MAE and DINOv2.
    """

    def scale(path):
        layer = _layer(path)
        return 1.0 if layer is None else layer_decay ** (depth + 1 - layer)

    return _scale_paths(scale)


def _layer(path: str) -> int | None:
    """The layer of a leaf of a ViT: i + 1 in block i, 0 before the blocks, None after them and in other networks."""
    found = re.match(
        r"(?:(?:backbone|low_rank)/(?:.*/)?)?"
        r"(?:blocks_(\d+)|(?:patch_embed|pos_embed|cls_token|reg_token|norm_pre|mask_token))(?:/|$)",
        path,
    )
    if found is None:
        return None
    return int(found[1]) + 1 if found[1] else 0


def _scale_paths(scale: Callable[[str], float]) -> optax.GradientTransformation:
    return _scale_leaves(functools.partial(_map_paths, scale))


def _scale_leaves(scales: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Multiplies the updates by `scales(updates)`, a tree with a number for each leaf."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, scale: scale * u, updates, scales(updates)))


def _map_paths(function: Callable[[str], Any], tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: function(leaf_path(path)), tree)


def leaf_path(path: Any) -> str:
    """ "backbone/conv1/kernel" """
    return "/".join(str(getattr(key, "key", key)) for key in path)
