import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1)).astype(np.float32))


def make(**options):
    options = {"projector": (24, 24, 6), "predictor": (12, 6), "queue_size": 24, **options}
    return METHODS["nnsiam"](models.create("resnet8", stages=(1,)), RUN, **options)


def through(method, params, state, x):
    """(projection, prediction) of one view by itself."""
    outputs = []
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
        outputs.append(x)
    return outputs[1:]


@functools.cache
def step():
    """(params, state, output, what the networks give for each view)"""
    method = make()
    params, state = method.init(jax.random.key(1), jnp.asarray(VIEWS[0]))

    @jax.jit
    def run(params, state, views):
        output = method.loss(params, state, {"views": views}, jax.random.key(2))
        return output, [through(method, params, state, x) for x in views]

    return jax.device_get((params, state, *run(params, state, VIEWS)))


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_each_view_predicts_the_past_projection_nearest_to_the_others():
    _, state, output, ((z1, p1), (z2, p2)) = step()
    queue = state["queue"]["rows"]
    near1, near2 = (queue[np.argmax(unit(z) @ queue.T, axis=1)] for z in (z1, z2))
    expected = -(np.mean(np.sum(unit(p1) * near2, axis=1)) + np.mean(np.sum(unit(p2) * near1, axis=1))) / 2
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
    np.testing.assert_allclose(output.embeddings, [z1, z2], rtol=1e-4, atol=1e-5)


def test_the_first_views_projections_overwrite_the_oldest_after_the_comparison():
    _, state, output, ((z1, _), _) = step()
    queue = output.state["queue"]
    np.testing.assert_allclose(queue["rows"][:8], unit(z1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(queue["rows"][8:], state["queue"]["rows"][8:])
    assert queue["pointer"] == 8


def test_heads_are_simsiams_and_the_predictor_keeps_its_learning_rate():
    shapes = jax.tree.map(np.shape, step()[0])
    assert set(shapes["projector"]) == {"Dense_0", "Dense_1", "Dense_2", "BatchNorm_0", "BatchNorm_1"}
    assert shapes["projector"]["Dense_2"] == {"kernel": (24, 6)}  # and no scale after it
    assert shapes["predictor"]["Dense_0"] == {"kernel": (6, 12)}
    assert shapes["predictor"]["Dense_1"] == {"kernel": (12, 6), "bias": (6,)}
    assert make().constant_lr == ("predictor",)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"queue_size": 20}, "queue_size=20 is not a multiple of batch_size=8; use 16"),
        ({"queue_size": 0}, "queue_size must be at least 1, got 0"),
        ({"predictor": (12, 5)}, "ends in 5 dimensions, not in the projector's 6"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
