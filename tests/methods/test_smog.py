import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

SCHEDULE = Schedule(batch_size=8, steps=100, steps_per_epoch=5, num_images=40)
VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1)).astype(np.float32))


def make(**options):
    defaults = dict(projector=(16, 6), predictor=(12, 6), groups=4, beta=0.5, decay=0.75, queue_size=16, reset_every=3)
    return METHODS["smog"](
        models.create("resnet8", stages=(1,)), SCHEDULE, **{**defaults, "temperature": 0.3, **options}
    )


@functools.cache
def start():
    """With a teacher that is not the online network."""
    init = jax.jit(make().init)
    (params, state), (other, _) = (jax.device_get(init(jax.random.key(seed), VIEWS[0])) for seed in (1, 2))
    state["teacher"]["params"] = {name: other[name] for name in make().encoder}
    return params, state


def through(networks, variables, x):
    """The outputs of the networks after the backbone."""
    outputs = []
    for name, module in networks.items():
        given = {"params": variables["params"][name], "batch_stats": variables["batch_stats"][name]}
        x, _ = module.apply(given, x, train=True, mutable=["batch_stats"])
        outputs.append(x)
    return outputs[1:]


@jax.jit
def compiled(params, state, views):
    """The output, and for each order of the views [z, p] of the first and [t] of the other."""
    method, online = make(), {"params": params, "batch_stats": state["batch_stats"]}
    orders = [
        through(method.networks, online, x) + through(method.encoder, state["teacher"], other)
        for x, other in (views, views[::-1])
    ]
    return method.loss(params, state, {"views": views}, jax.random.key(3)), orders


@functools.cache
def loss_at(step):
    params, state = start()
    return jax.device_get(compiled(params, {**state, "step": np.int32(step)}, VIEWS))


update = jax.jit(make().update)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("step", [0, 1])
def test_predicts_the_teachers_group_among_the_moved_ones_with_the_views_in_turn(step):
    _, state = start()
    output, orders = loss_at(step)
    after = output.state
    z, p, t = (x.astype(np.float64) for x in orders[step])
    old, z = state["groups"].astype(np.float64), unit(z)
    nearest, label = np.argmax(z @ old.T, axis=1), np.argmax(unit(t) @ old.T, axis=1)
    new = old.copy()
    for g in set(nearest):
        new[g] = 0.5 * old[g] + 0.5 * z[nearest == g].mean(axis=0)
    logits = unit(p) @ unit(new).T / 0.3
    expected = np.mean(np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(8), label])
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
    np.testing.assert_allclose(after["groups"], new, atol=1e-4)
    np.testing.assert_allclose(after["queue"]["rows"][:8], z, atol=1e-4)
    np.testing.assert_array_equal(after["queue"]["rows"][8:], state["queue"]["rows"][8:])
    np.testing.assert_allclose(output.embeddings, [z, unit(t)], atol=1e-4)


def test_the_gradient_also_flows_through_the_groups():
    params, state = start()
    # A predictor without weights stops what comes through the predictions.
    blind = {**params, "predictor": jax.tree.map(np.zeros_like, params["predictor"])}
    blind["predictor"]["Dense_1"]["bias"] = np.arange(6, dtype=np.float32)

    @jax.jit
    def gradients(params, state, views):
        def gradient(beta):
            def loss(projector):
                changed = {**params, "projector": projector}
                return make(beta=beta).loss(changed, state, {"views": views}, jax.random.key(3)).loss

            return jax.grad(loss)(params["projector"])

        return gradient(1.0), gradient(0.5)

    def largest(tree):
        return max(np.abs(x).max() for x in jax.tree.leaves(jax.device_get(tree)))

    none, some = gradients(blind, state, VIEWS)
    assert largest(none) == 0.0
    assert largest(some) > 1e-4


def test_groups_are_reset_to_centroids_of_the_queue():
    params, _ = start()
    state = loss_at(0)[0].state
    kept = jax.device_get(update(params, state, 2))
    np.testing.assert_array_equal(kept["groups"], state["groups"])
    groups = np.asarray(update(params, state, 3)["groups"])
    rows = state["queue"]["rows"]
    label = np.argmax(rows @ groups.T, axis=1)
    for g in set(label):  # ten moves settle so few points
        np.testing.assert_allclose(groups[g], unit(rows[label == g].mean(axis=0)), atol=1e-4)
    assert kept["step"] == 2 and len(set(label)) > 1


def test_the_teacher_follows_and_becomes_the_student_at_a_reset_if_asked_to():
    params, state = start()
    resetting = jax.jit(make(reset_teacher=True).update)
    for function, step, decay in ((update, 3, 0.75), (resetting, 2, 0.75), (resetting, 3, 0.0)):
        moved = function(params, state, step)["teacher"]["params"]
        student = {name: params[name] for name in moved}
        expected = jax.tree.map(lambda t, p: decay * t + (1 - decay) * p, state["teacher"]["params"], student)  # noqa: B023
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
        ({"queue_size": 20}, "not a multiple of batch_size=8; use 16"),
        ({"queue_size": 32}, "not filled by the 3 batches of 8 before the first reset; use 24 or less"),
        ({"groups": 17}, r"groups=17 must be in 2\.\.queue_size=16"),
        ({"predictor": (12, 5)}, "not in the projector's 6"),
        ({"beta": 1.5}, "beta must be in 0..1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
