"""Optimizers: how gradients become steps. `create` adds schedules, clipping, and what holds for some leaves only."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from ssl_jax import keys
from ssl_jax.keys import NOT_NEGATIVE, POSITIVE, OneOf, Range
from ssl_jax.optim.leaves import KINDS, VECTORS, all_but, kinds, norm
from ssl_jax.optim.parts import scale_leaves
from ssl_jax.optim.schedules import Schedule

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
        return u, norm(p) / jnp.maximum(norm(u), 1e-30)

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
        return u, trust_coefficient * norm(p) / jnp.maximum(norm(u), 1e-30)

    order = [optax.trace(momentum), optax.scale_by_learning_rate(lr)]
    return optax.chain(
        optax.masked(_adapted(adapt, weight_decay), all_but(exempt)),
        *(reversed(order) if lr_in_momentum else order),
        scale_leaves(
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
        ratio = trust_coefficient * norm(p) / (norm(gradient) + decay * norm(p) + 1e-8)
        if clip:
            ratio = jnp.minimum(ratio / lr(count), 1.0)
        return gradient + decay * p, ratio

    return optax.chain(
        optax.masked(_adapted(adapt, weight_decay), all_but(exempt)),
        optax.sgd(lr, momentum=momentum, nesterov=nesterov),
    )


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
            return jnp.where((norm(gradient) > 0.0) & (norm(p) > 0.0), direction * ratio, gradient)

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
