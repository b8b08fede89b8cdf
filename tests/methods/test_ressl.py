import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run

VIEWS = tuple(jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1)))


def make(model=(), **options):
    run = Run(batch_size=8, steps=100, steps_per_epoch=10, num_images=20)
    options = dict(projector=(12, 6), queue_size=24, temperature=0.3, target_temperature=0.1) | options
    return METHODS["ressl"](models.create("resnet8", width=0.25, **dict(model)), run, **options)


def first(method):
    """Params, and a state whose teacher is unlike them."""
    params, state = method.init(jax.random.key(1), VIEWS[0])
    teacher = jax.tree.map(lambda p: 1.5 * p + 0.1, state["teacher"]["params"])
    return params, {**state, "teacher": {**state["teacher"], "params": teacher}}


def apply(method, params, batch_stats, x):
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def softmax(x):
    return np.exp(x) / np.sum(np.exp(x), axis=1, keepdims=True)


def test_loss_is_the_cross_entropy_of_likenesses_to_the_queue():
    method = make()
    params, state = first(method)
    strong, weak = VIEWS
    loss, (new_state, metrics) = method.loss(params, state, {"views": VIEWS}, jax.random.key(2))
    q = apply(method, params, state["batch_stats"], strong)
    k = apply(method, state["teacher"]["params"], state["teacher"]["batch_stats"], weak)
    queue = np.asarray(state["queue"]["rows"], np.float64)
    expected = -np.mean(np.sum(softmax(k @ queue.T / 0.1) * np.log(softmax(q @ queue.T / 0.3)), axis=1))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert metrics["embeddings"].shape == (2, 8, 6)
    # The keys, and not the queries, join the queue once they have been compared.
    np.testing.assert_allclose(new_state["queue"]["rows"][:8], k, atol=1e-5)
    np.testing.assert_array_equal(new_state["queue"]["rows"][8:], state["queue"]["rows"][8:])


def test_shuffling_changes_which_keys_share_their_batch_statistics():
    batch = {"views": VIEWS}

    def keys(**options):
        method = make(**options)
        params, state = first(method)
        return method.loss(params, state, batch, jax.random.key(2))[1][1]["embeddings"][1]

    grouped = {"batch_norm": "grouped", "batch_norm_groups": 4}.items()
    assert np.max(np.abs(keys(model=grouped) - keys(model=grouped, shuffle=False))) > 1e-3
    np.testing.assert_allclose(keys(), keys(shuffle=False), atol=1e-4)  # one group: the order is nothing


def test_projector_is_the_authors_without_batch_norm():
    params, state = make().init(jax.random.key(0), VIEWS[0])
    expected = {
        "Dense_0": {"kernel": (16, 12), "bias": (12,)},
        "Dense_1": {"kernel": (12, 6), "bias": (6,)},
    }
    assert jax.tree.map(jnp.shape, params["projector"]) == expected
    assert jax.tree.map(jnp.shape, state["teacher"]["params"]["projector"]) == expected


@pytest.mark.parametrize("step, decay", [(0, 0.9), (50, 0.94), (100, 0.98)])
def test_decay_goes_by_half_a_cosine_to_its_final_value(step, decay):
    method = make(decay=0.9, final_decay=0.98)
    params, state = method.init(jax.random.key(0), VIEWS[0])
    moved = method.update(jax.tree.map(lambda p: p + 1.0, params), state, step)["teacher"]["params"]
    change = jax.tree.map(lambda new, old: new - old, moved, state["teacher"]["params"])
    for leaf in jax.tree.leaves(change):
        np.testing.assert_allclose(leaf, 1.0 - decay, atol=1e-6)


def test_no_gradient_reaches_the_teacher():
    method = make()
    params, state = first(method)

    def loss(teacher):
        moved = {**state, "teacher": {**state["teacher"], "params": teacher}}
        return method.loss(params, moved, {"views": VIEWS}, jax.random.key(2))[0]

    for leaf in jax.tree.leaves(jax.grad(loss)(state["teacher"]["params"])):
        np.testing.assert_array_equal(leaf, 0.0)


def test_chance_level_is_that_of_uniform_likenesses():
    np.testing.assert_allclose(make().chance_level, np.log(24))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"target_temperature": 0.3}, "target_temperature=0.3 is not below temperature=0.3.*use 0.12"),
        ({"final_decay": 1.1}, "final_decay must be in"),
        ({"queue_size": 20}, "queue_size=20 is no multiple of batch_size=8; use 16"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
