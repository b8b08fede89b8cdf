import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1)).astype(np.float32))


def make(**options):
    options = {"projector": (24, 6), "predictor": (12, 6), "neighbors": 3, "queue_size": 24, **options}
    return METHODS["msf"](models.create("resnet8", stages=(1,)), RUN, **options)


@functools.cache
def first():
    """Params, and a state whose teacher is unlike them."""
    return drawn.with_other_teacher(*jax.device_get(make().init(jax.random.key(1), VIEWS[0])))


@functools.cache
def step():
    """The output of a step, the student's predictions of the first view and the teacher's projections of the second."""
    method = make()

    @jax.jit
    def run(params, state, views):
        output = method.loss(params, state, {"views": views}, jax.random.key(2))
        teacher = state["teacher"]
        p = drawn.through(method.networks, params, state["batch_stats"], views[0])
        return output, p, drawn.through(method.teacher_networks, teacher["params"], teacher["batch_stats"], views[1])

    return jax.device_get(run(*first(), VIEWS))


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_a_prediction_is_drawn_to_the_targets_neighbors_of_which_it_is_itself_the_first():
    output, p, t = step()
    p, t = unit(p), unit(t)
    rows = np.concatenate([t, first()[1]["queue"]["rows"][8:]])
    nearest = np.argsort(-t @ rows.T, axis=1)[:, :3]
    assert list(nearest[:, 0]) == list(range(8))
    expected = np.mean(np.sum((p[:, None] - rows[nearest]) ** 2, axis=-1))
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)


def test_the_teachers_projections_join_the_queue():
    output, _, t = step()
    queue = output.state["queue"]
    np.testing.assert_allclose(queue["rows"][:8], unit(t), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(queue["rows"][8:], first()[1]["queue"]["rows"][8:])
    assert queue["pointer"] == 8


def test_the_health_metrics_see_the_projections_of_both_networks():
    output, _, t = step()
    assert output.embeddings.shape == (2, 8, 6)
    np.testing.assert_allclose(output.embeddings[1], t, rtol=1e-4, atol=1e-5)


def test_the_decay_is_constant():
    method, (params, state) = make(decay=0.9), first()
    for step in (0, 50, 100):
        moved = method.update(params, state, jnp.array(step))["teacher"]["params"]
        jax.tree.map(
            lambda m, t, p: np.testing.assert_allclose(m, 0.9 * t + 0.1 * p, rtol=1e-4, atol=1e-6),
            moved,
            state["teacher"]["params"],
            {name: params[name] for name in moved},
        )


def test_heads_are_the_authors():
    shapes = jax.tree.map(np.shape, first()[0])
    for name, widths in (("projector", (16, 24, 6)), ("predictor", (6, 12, 6))):
        assert shapes[name] == {
            "Dense_0": {"kernel": widths[:2], "bias": widths[1:2]},
            "BatchNorm_0": {"scale": widths[1:2], "bias": widths[1:2]},
            "Dense_1": {"kernel": widths[1:], "bias": widths[2:]},
        }


@pytest.mark.parametrize(
    "options, message",
    [
        ({"queue_size": 20}, "queue_size=20 is not a multiple of batch_size=8; use 16"),
        ({"neighbors": 25}, "neighbors=25 are more than the queue_size=24; use 24 or less"),
        ({"neighbors": 0}, "neighbors must be at least 1, got 0"),
        ({"decay": 1.1}, r"decay must be in 0..1, got 1.1"),
        ({"predictor": (12, 5)}, "ends in 5 dimensions, not in the projector's 6"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
