import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)


def make(**options):
    options = {"projector": (24, 6), "predictor": (12, 6), "queue_size": 24, **options}
    return METHODS["nnbyol"](models.create("resnet8", stages=(1,)), RUN, **options)


def start(method):
    """With a teacher that is not the online network."""
    x1, x2 = jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1))
    params, state = method.init(jax.random.key(1), x1[:1])
    other, _ = method.init(jax.random.key(2), x1[:1])
    state["teacher"]["params"] = {name: other[name] for name in method.teacher_networks}
    return params, state, (x1, x2)


def through(networks, params, batch_stats, x):
    for name, module in networks.items():
        x, _ = module.apply(
            {"params": params[name], "batch_stats": batch_stats[name]}, x, train=True, mutable=["batch_stats"]
        )
    return np.asarray(x, np.float64)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_each_view_predicts_the_past_projection_nearest_to_the_others():
    method = make()
    params, state, views = start(method)
    p1, p2 = (unit(through(method.networks, params, state["batch_stats"], x)) for x in views)
    teacher, queue = state["teacher"], np.asarray(state["queue"]["rows"])
    t1, t2 = (unit(through(method.teacher_networks, teacher["params"], teacher["batch_stats"], x)) for x in views)
    near1, near2 = ([queue[np.argmax([row @ t for row in queue])] for t in target] for target in (t1, t2))
    expected = np.mean(2 - 2 * np.sum(p1 * near2, axis=1)) + np.mean(2 - 2 * np.sum(p2 * near1, axis=1))
    output = method.loss(params, state, {"views": views}, jax.random.key(3))
    np.testing.assert_allclose(output.loss, expected, rtol=1e-5)
    assert output.embeddings.shape == (2, 8, 6)
    # The teacher's projections of the first view have overwritten the oldest, after they were compared.
    new_queue = output.state["queue"]
    np.testing.assert_allclose(new_queue["rows"], np.concatenate([t1, queue[8:]]), rtol=1e-4, atol=1e-6)
    assert new_queue["pointer"] == 8


@pytest.mark.parametrize("step, decay", [(0, 0.9), (50, 0.95), (100, 1.0)])
def test_teacher_decay_goes_to_one(step, decay):
    method = make(decay=0.9)
    params, state, _ = start(method)
    moved = method.update(params, state, jnp.array(step))
    old = state["teacher"]["params"]
    jax.tree.map(
        lambda m, t, p: np.testing.assert_allclose(m, decay * t + (1 - decay) * p, rtol=1e-4, atol=1e-6),
        moved["teacher"]["params"],
        old,
        {name: params[name] for name in old},
    )
    assert moved["queue"] is state["queue"]


def test_heads_are_byols():
    params, _, _ = start(make())
    shapes = jax.tree.map(jnp.shape, params)
    for name, widths in (("projector", (16, 24, 6)), ("predictor", (6, 12, 6))):
        assert shapes[name] == {
            "Dense_0": {"kernel": widths[:2], "bias": widths[1:2]},
            "BatchNorm_0": {"scale": widths[1:2], "bias": widths[1:2]},
            "Dense_1": {"kernel": widths[1:]},
        }


@pytest.mark.parametrize(
    "options, message",
    [
        ({"queue_size": 20}, "queue_size=20 is not a multiple of batch_size=8; use 16"),
        ({"queue_size": 0}, "queue_size must be at least 1, got 0"),
        ({"decay": 1.1}, r"decay must be in 0..1, got 1.1"),
        ({"predictor": (12, 5)}, "ends in 5 dimensions, not in the projector's 6"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
