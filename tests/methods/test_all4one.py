import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1)).astype(np.float32))
RATE = 0.25


def make(**options):
    schedule = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=20)
    options = dict(projector=(16, 12, 4), predictor=(10, 4), queue_size=24, layers=1, heads=2, dropout=0.0) | options
    options = dict(temperature=0.3, neighbors=3, transformer_rate=RATE) | options
    return METHODS["all4one"](models.create("resnet8", stages=(1,)), schedule, **options)


@functools.cache
def first():
    """Params, and a state whose teacher is unlike them."""
    return drawn.with_other_teacher(*jax.device_get(jax.jit(make().init)(jax.random.key(1), VIEWS[0])))


@functools.cache
def run(**options):
    method = make(**dict(options))

    @jax.jit
    def run(params, state):
        def loss(params, teacher):
            moved = {**state, "teacher": {**state["teacher"], "params": teacher}}
            output = method.loss(params, moved, {"views": tuple(map(jnp.asarray, VIEWS))}, jax.random.key(2))
            return output.loss, output

        gradients, output = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, state["teacher"]["params"])
        return output, *gradients

    return jax.device_get(run(*first()))


def apply(params, batch_stats, x, *names):
    for name in names:
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        x, _ = make().networks[name].apply(variables, x, train=True, mutable=["batch_stats"])
    return np.asarray(x, np.float64)


def contrast(query, key, temperature):
    query, key = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, key))
    logits = query @ key.T / temperature
    return np.mean(np.log(np.sum(np.exp(logits), axis=1)) - np.diagonal(logits))


def test_loss_is_the_sum_of_three():
    params, state = first()
    output, _, of_teacher = run()
    queue = np.asarray(state["queue"]["rows"], np.float64)
    teacher, stats = state["teacher"], state["batch_stats"]
    t = [apply(teacher["params"], teacher["batch_stats"], x, "backbone", "projector") for x in VIEWS]
    z = [apply(params, stats, x, "backbone", "projector") for x in VIEWS]
    p, other_p = ([apply(params, stats, one, name) for one in z] for name in ("predictor", "centroid_predictor"))
    found = [np.stack([queue[np.argsort(-queue @ row)[:3]] for row in one]) for one in t]
    mixed = [np.concatenate([one[:, None], near[:, :2]], axis=1) for one, near in zip(other_p, found, strict=True)]

    def centroid(tokens):
        return apply(params, {"transformer": {}}, tokens[:, None], "transformer")[:, 0]

    neighbor = (contrast(found[0][:, 0], p[1], 0.3) + contrast(found[1][:, 0], p[0], 0.3)) / 2
    whole = [contrast(centroid(found[i]), centroid(mixed[1 - i]), 0.1) for i in range(2)]
    feature = losses.all4one_features(*(jnp.asarray(x, jnp.float32) for x in (*z, *t)))
    np.testing.assert_allclose(output.metrics["neighbor_loss"], neighbor, rtol=1e-4)
    np.testing.assert_allclose(output.metrics["centroid_loss"], np.mean(whole), rtol=1e-3)
    np.testing.assert_allclose(output.metrics["feature_loss"], feature, rtol=1e-4)
    np.testing.assert_allclose(output.loss, 0.5 * neighbor + 0.5 * np.mean(whole) + 5.0 * feature, rtol=1e-3)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_teacher))
    joined = t[0] / np.linalg.norm(t[0], axis=1, keepdims=True)
    np.testing.assert_allclose(output.state["queue"]["rows"][:8], joined, atol=1e-5)


close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_transformers_gradient_is_slowed_and_no_others():
    (output, slowed, _), (same, whole, _) = run(), run(transformer_rate=1.0)
    assert output.loss == same.loss
    for name, gradient in whole.items():
        rate = RATE if name == "transformer" else 1.0
        jax.tree.map(
            lambda a, b, r=rate: np.testing.assert_allclose(a, r * b, rtol=1e-4, atol=1e-6), slowed[name], gradient
        )


def test_the_teachers_decay_goes_to_one():
    params, state = first()
    method = make(decay=0.9)
    for step, decay in ((0, 0.9), (50, 0.95), (100, 1.0)):
        moved = method.update(params, state, jnp.array(step))["teacher"]["params"]["projector"]
        old = state["teacher"]["params"]["projector"]
        expected = jax.tree.map(lambda t, p, d=decay: d * t + (1 - d) * p, old, params["projector"])
        jax.tree.map(close, moved, expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"heads": 3}, "heads=3 does not divide the projector's last width, 4"),
        ({"predictor": (10, 5)}, "ends in 5 dimensions, not in the projector's 4"),
        ({"queue_size": 20}, "queue_size=20 is not a multiple of batch_size=8; use 16"),
        ({"neighbors": 25}, "neighbors=25 are more than queue_size=24"),
        ({"neighbors": 1}, "neighbors must be at least 2, got 1"),
        ({"dropout": 1.0}, "dropout must be"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
