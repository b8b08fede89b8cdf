import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

VIEWS = tuple(jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1)))


def make(**options):
    schedule = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=20)
    options = dict(projector=(16, 12, 6), predictor=(10, 6), queue_size=24, temperature=0.3) | options
    return METHODS["nnclr"](models.create("resnet8", stages=(1,)), schedule, **options)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def apply(method, params, state, x):
    """(projection, prediction)"""
    outputs = []
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
        outputs.append(unit(x) if name != "backbone" else x)
    return outputs[1:]


def test_loss_is_of_predictions_with_the_neighbors_of_the_other_views_projections():
    method = make()
    params, state = method.init(jax.random.key(1), VIEWS[0])
    output = method.loss(params, state, {"views": VIEWS}, jax.random.key(2))
    (z1, p1), (z2, p2) = (apply(method, params, state, x) for x in VIEWS)
    queue = np.asarray(state["queue"]["rows"], np.float64)
    expected = []
    for z, p in ((z1, p2), (z2, p1)):
        for i in range(8):
            neighbor = max(queue, key=lambda row: row @ z[i])
            logits = p @ neighbor / 0.3
            expected.append(np.log(np.sum(np.exp(logits))) - logits[i])
    np.testing.assert_allclose(output.loss, np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(unit(output.embeddings[1]), z2, atol=1e-5)


def test_projections_of_the_first_view_join_the_queue_after_the_loss():
    method = make()
    params, state = method.init(jax.random.key(1), VIEWS[0])
    first = method.loss(params, state, {"views": VIEWS}, jax.random.key(2))
    queue = first.state["queue"]
    z1, _ = apply(method, params, state, VIEWS[0])
    np.testing.assert_allclose(queue["rows"][:8], z1, atol=1e-5)
    np.testing.assert_array_equal(queue["rows"][8:], state["queue"]["rows"][8:])
    assert queue["pointer"] == 8
    # Now each projection of the first view is its own neighbor, which the first loss did not know.
    second = method.loss(params, first.state, {"views": VIEWS}, jax.random.key(2))
    assert abs(second.loss - first.loss) > 1e-3


def test_heads_are_the_papers():
    params, state = make().init(jax.random.key(0), VIEWS[0])

    def layer(features, width):
        return {"kernel": (features, width), "bias": (width,)}

    def norm(width):
        return {"scale": (width,), "bias": (width,)}

    assert jax.tree.map(jnp.shape, params["projector"]) == {
        "Dense_0": layer(16, 16),
        "Dense_1": layer(16, 12),
        "Dense_2": layer(12, 6),
        "BatchNorm_0": norm(16),
        "BatchNorm_1": norm(12),
        "BatchNorm_2": norm(6),
    }
    assert jax.tree.map(jnp.shape, params["predictor"]) == {
        "Dense_0": layer(6, 10),
        "Dense_1": layer(10, 6),
        "BatchNorm_0": norm(10),
    }
    assert state["queue"]["rows"].shape == (24, 6)


@pytest.mark.slow
def test_the_gradient_is_that_of_constant_neighbors():
    method = make()
    params, state = method.init(jax.random.key(1), VIEWS[0])
    grads = jax.grad(lambda p: method.loss(p, state, {"views": VIEWS}, jax.random.key(2)).loss)(params)
    neighbors = []
    for x in VIEWS:
        z, _ = apply(method, params, state, x)
        neighbors.append(jnp.asarray([max(np.asarray(state["queue"]["rows"]), key=lambda row: row @ v) for v in z]))

    def constant(params):
        total = 0.0
        for x, n in zip(VIEWS[::-1], neighbors, strict=True):
            for name, module in method.networks.items():
                variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
                x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
            logits = n @ (x / jnp.linalg.norm(x, axis=1, keepdims=True)).T / 0.3
            total -= jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits))) / 2
        return total

    expected = jax.grad(constant)(params)
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(expected))
    assert scale > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), grads, expected)


def test_chance_level_is_the_loss_of_equal_embeddings():
    np.testing.assert_allclose(make().chance_level, np.log(8))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"queue_size": 0}, "queue_size must be at least 1, got 0"),
        ({"queue_size": 30}, "queue_size=30 is not a multiple of batch_size=8; use 32"),
        ({"predictor": (10, 5)}, "predictor"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
