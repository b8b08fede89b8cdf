import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1)).astype(np.float32))


def make(model=(), **options):
    schedule = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=20)
    options = dict(projector=(12, 6), queue_size=24, temperature=0.3, target_temperature=0.1) | options
    return METHODS["ressl"](models.create("resnet8", stages=(1,), **dict(model)), schedule, **options)


@functools.cache
def first():
    """Params, and a state whose teacher is unlike them."""
    return drawn.with_other_teacher(*jax.device_get(make().init(jax.random.key(1), VIEWS[0])))


def apply(method, params, batch_stats, x):
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return x


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def softmax(x):
    return np.exp(x) / np.sum(np.exp(x), axis=1, keepdims=True)


@functools.cache
def step():
    """((loss, output), the loss's gradient for the teacher), and what the networks give for both views."""
    method = make()

    @jax.jit
    def run(params, state, views):
        def loss(teacher):
            moved = {**state, "teacher": {**state["teacher"], "params": teacher}}
            output = method.loss(params, moved, {"views": views}, jax.random.key(2))
            return output.loss, output

        strong, weak = views
        teacher = state["teacher"]
        q = apply(method, params, state["batch_stats"], strong)
        k = apply(method, teacher["params"], teacher["batch_stats"], weak)
        return jax.value_and_grad(loss, has_aux=True)(teacher["params"]), q, k

    return jax.device_get(run(*first(), VIEWS))


def test_loss_is_the_cross_entropy_of_likenesses_to_the_queue():
    _, state = first()
    ((loss, output), _), q, k = step()
    q, k, queue = unit(q), unit(k), np.asarray(state["queue"]["rows"], np.float64)
    expected = -np.mean(np.sum(softmax(k @ queue.T / 0.1) * np.log(softmax(q @ queue.T / 0.3)), axis=1))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert output.embeddings.shape == (2, 8, 6)
    # The keys, and not the queries, join the queue once they have been compared.
    np.testing.assert_allclose(output.state["queue"]["rows"][:8], k, atol=1e-5)
    np.testing.assert_array_equal(output.state["queue"]["rows"][8:], state["queue"]["rows"][8:])


def test_shuffling_changes_which_keys_share_their_batch_statistics():
    """With one group the order is nothing: the reference above is not shuffled, the method is."""
    assert make().shuffle
    grouped = {"batch_norm": "grouped", "batch_norm_groups": 4}.items()

    @jax.jit
    def run(params, state, views):
        methods = make(model=grouped), make(model=grouped, shuffle=False)
        return [m.loss(params, state, {"views": views}, jax.random.key(2)).embeddings[1] for m in methods]

    shuffled, in_order = jax.device_get(run(*first(), VIEWS))
    assert np.max(np.abs(shuffled - in_order)) > 1e-3


def test_projector_is_the_authors_without_batch_norm():
    params, state = first()
    expected = {
        "Dense_0": {"kernel": (16, 12), "bias": (12,)},
        "Dense_1": {"kernel": (12, 6), "bias": (6,)},
    }
    assert jax.tree.map(jnp.shape, params["projector"]) == expected
    assert jax.tree.map(jnp.shape, state["teacher"]["params"]["projector"]) == expected


def test_decay_goes_by_half_a_cosine_to_its_final_value():
    _, state = first()
    update = jax.jit(make(decay=0.9, final_decay=0.98).update)
    params = jax.tree.map(lambda p: p + 1.0, state["teacher"]["params"])
    for number, decay in ((0, 0.9), (50, 0.94), (100, 0.98)):
        moved = update(params, state, number)["teacher"]["params"]
        for new, old in zip(jax.tree.leaves(moved), jax.tree.leaves(state["teacher"]["params"]), strict=True):
            np.testing.assert_allclose(np.asarray(new) - old, 1.0 - decay, atol=1e-6)


def test_no_gradient_reaches_the_teacher():
    (_, gradient), *_ = step()
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0.0)


def test_chance_level_is_that_of_uniform_likenesses():
    np.testing.assert_allclose(make().chance_level, np.log(24))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"target_temperature": 0.3}, "target_temperature=0.3 must be below temperature=0.3.*use 0.12"),
        ({"final_decay": 1.1}, "final_decay must be in"),
        ({"queue_size": 20}, "queue_size=20 is not a multiple of batch_size=8; use 16"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
