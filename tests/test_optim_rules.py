"""Optimizers step by step against the rules of PyTorch, apex and the authors' codes, each written here in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from ssl_jax import optim, recipes
from ssl_jax.optim import of_run

STEPS, FROZEN = 6, 2
SHAPES = {
    "backbone": {"conv": {"kernel": (3, 4), "bias": (4,)}, "norm": {"scale": (4,), "bias": (4,)}, "unused": (2, 3)},
    "head": {"last": {"kernel": (4, 5), "gain": (5,)}},
    "mask_token": (4,),
}
VECTORS = ("backbone/conv/bias", "backbone/norm/scale", "backbone/norm/bias")


def draw(seed):
    """(parameters, gradients of STEPS steps): those of "unused" are 0, as is the norm's offset at first."""
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    params = jax.tree.map(lambda shape: rng.normal(size=shape), SHAPES, is_leaf=is_shape)
    grads = jax.tree.map(lambda shape: rng.normal(size=(STEPS, *shape)), SHAPES, is_leaf=is_shape)
    params["backbone"]["norm"]["bias"] *= 0.0
    grads["backbone"]["unused"] *= 0.0
    return params, grads


def leaves(tree):
    return {optim.leaf_path(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def course(tx):
    """{path: parameters [STEPS, ...] after each step}"""
    params, grads = jax.tree.map(jnp.float32, draw(0))

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return leaves(jax.jit(lambda: lax.scan(step, (params, tx.init(params)), grads)[1])())


def check(tx, rule):
    """rule(path, parameter, gradients) -> the parameter after each step, for every leaf."""
    params, grads = (leaves(tree) for tree in draw(0))
    for path, found in course(tx).items():
        expected = rule(path, params[path], grads[path])
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5, err_msg=path)  # float32 beside float64


def norm(x):
    return np.sqrt(np.sum(x * x))


LR = [0.1 + 0.05 * t for t in range(STEPS)]  # only a rate that changes tells where it stands
DECAY = [0.3 + 0.1 * t for t in range(STEPS)]


def rising(start, slope):
    return lambda step: start + slope * step


def torch_adamw(p, grads, *, decayed, frozen=0, still=0):
    """frozen: torch skips a parameter without gradient, and makes its state when it gets one. still: rate 0."""
    m, v, count, after = np.zeros_like(p), np.zeros_like(p), 0, []
    for t, g in enumerate(grads):
        if t >= frozen:
            count += 1
            rate = 0.0 if t < still else LR[t]
            p = p * (1 - rate * DECAY[t] * decayed)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p = p - rate * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
        after.append(p)
    return np.stack(after)


def made(name, monkeypatch, *, decay=DECAY, **options):
    """`optim.create` with the rates above in place of its schedules."""
    monkeypatch.setattr(of_run, "warmup_cosine", lambda *_, **__: rising(LR[0], 0.05))
    monkeypatch.setattr(of_run, "_cosine_at", lambda start, end, steps, step: decay[0] + (decay[1] - decay[0]) * step)
    return optim.create(name, lr=1.0, warmup_steps=0, steps=STEPS, weight_decay=1.0, final_weight_decay=1.0, **options)[
        0
    ]


@pytest.mark.parametrize("kind", ["frozen", "still"])
def test_adamw_is_torchs_and_thaws_prototypes_as_dino_and_dinov2(kind, monkeypatch):
    """DINO takes the gradient away, so that Adam starts afresh with its prototypes; DINOv2 has a learning rate of 0.

    The gain of the prototypes and the mask token, of two dimensions in the authors' codes, are decayed.
    """
    tx = made("adamw", monkeypatch, **{f"{kind}_steps": {"head/last": FROZEN}})

    def rule(path, p, grads):
        late = {kind: FROZEN} if path.startswith("head/last") else {}
        return torch_adamw(p, grads, decayed=path not in VECTORS, **late)

    check(tx, rule)


def test_a_frozen_leaf_begins_where_adam_begins(monkeypatch):
    """Its first step is one learning rate long. With a count that had gone on it would be up to three times as long."""
    tx = made("adamw", monkeypatch, frozen_steps={"head/last": FROZEN}, decay=[0.0, 0.0])
    kernel = course(tx)["head/last/kernel"]
    np.testing.assert_array_equal(kernel[0], kernel[FROZEN - 1])
    np.testing.assert_allclose(np.abs(kernel[FROZEN] - kernel[FROZEN - 1]), LR[FROZEN], rtol=1e-4)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs(nesterov):
    """VISSL decays biases, but neither scales nor offsets of normalizations."""
    exempt = ("scale", "offset") if nesterov else ()
    tx = optim.sgd(rising(LR[0], 0.05), weight_decay=rising(DECAY[0], 0.1), nesterov=nesterov, exempt=exempt)

    def rule(path, p, grads):
        decayed = not (nesterov and path.startswith("backbone/norm"))
        buffer, after = None, []
        for t, g in enumerate(grads):
            g = g + DECAY[t] * decayed * p
            buffer = g if buffer is None else 0.9 * buffer + g
            p = p - LR[t] * (g + 0.9 * buffer if nesterov else buffer)
            after.append(p)
        return np.stack(after)

    check(tx, rule)


def plain_momentum(p, grads):
    velocity, after = np.zeros_like(p), []
    for t, g in enumerate(grads):
        velocity = 0.9 * velocity + g
        p = p - LR[t] * velocity
        after.append(p)
    return np.stack(after)


@pytest.mark.parametrize("kind", ["simclr", "barlow_twins"])
def test_lars_is_that_of_the_authors(kind):
    """SimCLR's accumulates the learning rate in the momentum; Barlow Twins' and VICReg's multiplies the sum by it.

    A parameter that the loss does not depend on has no gradient in torch, and stays.
    """
    options = dict(lr_in_momentum=True) if kind == "simclr" else dict(vector_lr_scale=0.25)
    tx = optim.lars(rising(LR[0], 0.05), weight_decay=rising(DECAY[0], 0.1), trust_coefficient=0.02, **options)

    def rule(path, p, grads):
        velocity, after = np.zeros_like(p), []
        for t, g in enumerate(grads):
            if "unused" not in path:
                if path not in VECTORS:
                    g = g + DECAY[t] * p
                    g = g * 0.02 * norm(p) / norm(g)
                if kind == "simclr":
                    velocity = 0.9 * velocity + LR[t] * g
                    p = p - velocity
                else:
                    velocity = 0.9 * velocity + g
                    p = p - LR[t] * velocity * (0.25 if path in VECTORS else 1.0)
            after.append(p)
        return np.stack(after)

    check(tx, rule)


def test_lamb_is_timms():
    """Theirs: a parameter that is 0 is decayed but not scaled; biases and vectors are neither."""
    tx = optim.lamb(rising(LR[0], 0.05), weight_decay=rising(DECAY[0], 0.1), b2=0.95)

    def rule(path, p, grads):
        m, v, after = np.zeros_like(p), np.zeros_like(p), []
        for t, g in enumerate(grads):
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
            u = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.95 ** (t + 1))) + 1e-6)
            if path not in VECTORS and "unused" not in path:  # which has no gradient in torch, and stays
                u = u + DECAY[t] * p
                u = u * norm(p) / norm(u)
            p = p - LR[t] * u
            after.append(p)
        return np.stack(after)

    check(tx, rule)


@pytest.mark.parametrize("kind", ["apex", "solo_learn", "emp_ssl"])
def test_larc_is_that_of_apex_and_of_solo_learn(kind):
    """Theirs: a parameter that is 0, or whose gradient is, is neither decayed nor adapted."""
    clip, nesterov = kind != "apex", kind == "emp_ssl"
    exempt = recipes.VECTORS if clip else ()
    trust = {"apex": 0.001, "solo_learn": 0.3, "emp_ssl": 0.3}[kind]  # so large that some steps are capped, some not
    tx = optim.larc(
        rising(LR[0], 0.05),
        weight_decay=rising(DECAY[0], 0.1),
        trust_coefficient=trust,
        clip=clip,
        nesterov=nesterov,
        exempt=exempt,
    )
    capped = set()

    def rule(path, p, grads):
        buffer, after = None, []
        for t, g in enumerate(grads):
            if not (clip and path in VECTORS) and norm(p) != 0 and norm(g) != 0:
                ratio = trust * norm(p) / (norm(g) + norm(p) * DECAY[t] + 1e-8)
                if clip:
                    capped.add(ratio / LR[t] > 1)
                    ratio = min(ratio / LR[t], 1)
                g = (g + DECAY[t] * p) * ratio
            buffer = g if buffer is None else 0.9 * buffer + g
            p = p - LR[t] * (g + 0.9 * buffer if nesterov else buffer)
            after.append(p)
        return np.stack(after)

    check(tx, rule)
    assert not clip or capped == {False, True}


def test_vectors_of_lars_are_plain_sgd():
    tx = optim.lars(rising(LR[0], 0.05), weight_decay=0.5)
    params, grads = (leaves(tree) for tree in draw(0))
    found = course(tx)
    for path in VECTORS:
        np.testing.assert_allclose(found[path], plain_momentum(params[path], grads[path]), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["larc", "lars"])
def test_an_epoch_without_gradients_leaves_the_weights(name):
    """At SwAV's and DeepCluster-v2's settings for ImageNet in batches of 256; their decay is 1e-6.

    A trust ratio of the decay alone would multiply them by 1 - 0.01 * learning rate at each step.
    """
    config = recipes.imagenet("resnet50", batch_size=256, epochs=800)
    steps = recipes.imagenet_steps(1, 256)
    config.optimizer = {**recipes.larc(config, 0.3, warmup_steps=10 * steps), "name": name}
    tx, _ = optim.create(**config.optimizer.to_dict(), steps=800 * steps)
    params = {"kernel": jnp.full((3, 3), 0.5), "scale": jnp.ones(3)}
    zero = jax.tree.map(jnp.zeros_like, params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(zero, state, params)
        return (optax.apply_updates(params, updates), state), None

    after, _ = jax.jit(lambda: lax.scan(step, (params, tx.init(params)), length=steps)[0])()
    for path, p in leaves(params).items():
        np.testing.assert_allclose(norm(leaves(after)[path]), norm(p), rtol=0.01)
