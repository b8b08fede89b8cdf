import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run

RUN = Run(batch_size=8, steps=100, steps_per_epoch=5, num_images=40)
VIEWS = tuple(jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1)))


def make(**options):
    defaults = dict(projector=(16, 6), predictor=(12, 6), groups=4, beta=0.5, decay=0.75, queue_size=16, reset_every=3)
    return METHODS["smog"](models.create("resnet8", stages=(1,)), RUN, **{**defaults, "temperature": 0.3, **options})


@functools.cache
def start():
    """With a teacher that is not the online network."""
    method = make()
    params, state = method.init(jax.random.key(1), VIEWS[0])
    other, _ = method.init(jax.random.key(2), VIEWS[0])
    state["teacher"]["params"] = {name: other[name] for name in method.encoder}
    return params, state


@functools.cache
def loss_at(step):
    params, state = start()
    return jax.jit(make().loss)(params, {**state, "step": jnp.int32(step)}, {"views": VIEWS}, jax.random.key(3))


def through(networks, variables, x):
    outputs = []
    for name, module in networks.items():
        given = {"params": variables["params"][name], "batch_stats": variables["batch_stats"][name]}
        x, _ = module.apply(given, x, train=True, mutable=["batch_stats"])
        outputs.append(np.asarray(x, np.float64))
    return outputs[1:]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("step", [0, 1])
def test_predicts_the_teachers_group_among_the_moved_ones_with_the_views_in_turn(step):
    method, (params, state) = make(), start()
    x1, x2 = VIEWS if step == 0 else VIEWS[::-1]
    z, p = through(method.networks, {"params": params, "batch_stats": state["batch_stats"]}, x1)
    (t,) = through(method.encoder, state["teacher"], x2)
    old, z = np.asarray(state["groups"], np.float64), unit(z)
    nearest, label = np.argmax(z @ old.T, axis=1), np.argmax(unit(t) @ old.T, axis=1)
    new = old.copy()
    for g in set(nearest):
        new[g] = 0.5 * old[g] + 0.5 * z[nearest == g].mean(axis=0)
    logits = unit(p) @ unit(new).T / 0.3
    expected = np.mean(np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(8), label])
    value, (after, metrics) = loss_at(step)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(after["groups"], new, atol=1e-4)
    np.testing.assert_allclose(after["queue"]["rows"][:8], z, atol=1e-4)
    np.testing.assert_array_equal(after["queue"]["rows"][8:], state["queue"]["rows"][8:])
    np.testing.assert_allclose(metrics["embeddings"], [z, unit(t)], atol=1e-4)


def test_the_gradient_also_flows_through_the_groups():
    params, state = start()

    def gradient(beta):
        method = make(beta=beta)
        # A predictor without weights stops what comes through the predictions.
        blind = {**params, "predictor": jax.tree.map(jnp.zeros_like, params["predictor"])}
        blind["predictor"]["Dense_1"]["bias"] = jnp.arange(6.0)
        grads = jax.grad(lambda p: method.loss(p, state, {"views": VIEWS}, jax.random.key(3))[0])(blind)
        return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads["projector"]))

    assert gradient(1.0) == 0.0
    assert gradient(0.5) > 1e-4


def test_groups_are_reset_to_centroids_of_the_queue():
    params, _ = start()
    _, (state, _) = loss_at(0)
    update = jax.jit(make().update)
    kept = update(params, state, 2)
    np.testing.assert_array_equal(kept["groups"], state["groups"])
    groups = np.asarray(update(params, state, 3)["groups"])
    rows = np.asarray(state["queue"]["rows"])
    label = np.argmax(rows @ groups.T, axis=1)
    for g in set(label):  # ten moves settle so few points
        np.testing.assert_allclose(groups[g], unit(rows[label == g].mean(axis=0)), atol=1e-4)
    assert kept["step"] == 2 and len(set(label)) > 1


@pytest.mark.parametrize("reset_teacher, step, decay", [(False, 3, 0.75), (True, 2, 0.75), (True, 3, 0.0)])
def test_the_teacher_follows_and_becomes_the_student_at_a_reset_if_asked_to(reset_teacher, step, decay):
    params, state = start()
    moved = make(reset_teacher=reset_teacher).update(params, state, step)["teacher"]["params"]
    student = {name: params[name] for name in moved}
    expected = jax.tree.map(lambda t, p: decay * t + (1 - decay) * p, state["teacher"]["params"], student)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, expected)


def test_heads_and_chance_level():
    params, state = start()
    assert jax.tree.map(jnp.shape, params["projector"]["Dense_1"]) == {"kernel": (16, 6)}
    assert jax.tree.map(jnp.shape, params["predictor"]["Dense_1"]) == {"kernel": (12, 6), "bias": (6,)}
    assert set(params["projector"]) == {"Dense_0", "Dense_1", "BatchNorm_0"}  # the last BatchNorm has no parameters
    assert set(state["batch_stats"]["projector"]) == {"BatchNorm_0", "BatchNorm_1"}
    assert set(state["teacher"]["params"]) == {"backbone", "projector"}
    np.testing.assert_allclose(make().chance_level, math.log(4))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"queue_size": 20}, "no multiple of batch_size=8; use 16"),
        ({"queue_size": 32}, "not filled by the 3 batches of 8 before the first reset; use 24 or less"),
        ({"groups": 17}, "groups=17 must be from 2 to queue_size=16"),
        ({"predictor": (12, 5)}, "not in the projector's 6"),
        ({"beta": 1.5}, "beta must be in 0..1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
