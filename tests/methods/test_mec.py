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
    options = {"projector": (24, 24, 6), "predictor": (12, 6), "distortion": 3.0, "warmup_epochs": 2, **options}
    return METHODS["mec"](models.create("resnet8", stages=(1,)), RUN, **options)


@functools.cache
def first():
    """Params, and a state whose teacher is unlike them."""
    return drawn.with_other_teacher(*jax.device_get(make().init(jax.random.key(1), VIEWS[0])))


@functools.cache
def run():
    """Of a state: the output, the largest gradient for the teacher's weights, predictions and targets of both views."""
    method = make()

    @jax.jit
    def run(params, state, views):
        def loss(teacher):
            moved = {**state, "teacher": {**state["teacher"], "params": teacher}}
            output = method.loss(params, moved, {"views": views}, jax.random.key(2))
            return output.loss, output

        teacher = state["teacher"]
        (_, output), gradient = jax.value_and_grad(loss, has_aux=True)(teacher["params"])
        p = [drawn.through(method.networks, params, state["batch_stats"], x) for x in views]
        t = [drawn.through(method.teacher_networks, teacher["params"], teacher["batch_stats"], x) for x in views]
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(gradient)]))
        return output, largest, p, t

    return run


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def series(p, t, distortion):
    c = 6 / (8 * distortion)
    eigenvalues = np.linalg.eigvals(c * unit(p) @ unit(t).T)
    return -np.real(sum((-1) ** (k + 1) / k * np.sum(eigenvalues**k) for k in range(1, 5))) / (c * 8)


@pytest.mark.parametrize("step, distortion", [(0, 24.0), (10, 13.5), (20, 3.0), (50, 3.0)])
def test_loss_is_the_series_of_each_view_with_the_teachers_other_at_a_distortion_that_falls(step, distortion):
    params, state = first()
    output, gradient, (p1, p2), (t1, t2) = jax.device_get(run()(params, {**state, "step": jnp.array(step)}, VIEWS))
    expected = (series(p1, t2, distortion) + series(p2, t1, distortion)) / 2
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
    assert gradient == 0.0  # the teacher is constant
    assert output.embeddings.shape == (2, 8, 6)


@pytest.mark.parametrize("step, decay", [(0, 0.9), (50, 0.95), (100, 1.0)])
def test_the_teachers_decay_goes_to_one_and_the_state_counts_the_steps(step, decay):
    params, state = first()
    moved = make(decay=0.9).update(params, state, jnp.array(step))
    old = state["teacher"]["params"]
    jax.tree.map(
        lambda m, t, p: np.testing.assert_allclose(m, decay * t + (1 - decay) * p, rtol=1e-4, atol=1e-6),
        moved["teacher"]["params"],
        old,
        {name: params[name] for name in old},
    )
    assert moved["step"] == step


@pytest.mark.parametrize(
    "options, message",
    [
        ({"distortion": 0.0}, "distortion must be above 0, got 0.0"),
        ({"warmup_factor": 0.5}, "warmup_factor must be at least 1, got 0.5"),
        ({"order": 0}, "order must be at least 1, got 0"),
        ({"predictor": (12, 5)}, "ends in 5 dimensions, not in the projector's 6"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
