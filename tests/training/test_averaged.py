"""Exponential moving averages of a method's weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax import dist, models
from ssl_jax.methods import Schedule
from ssl_jax.methods.supervised import Supervised
from ssl_jax.training.averaged import Averaged
from ssl_jax.training.state import create_state
from ssl_jax.training.step import TrainStep

MODEL = dict(name="resnet8", stages=(1,), base_width=4)


def states(decay, steps):
    """The states of training with averages: before the first step, and after each."""
    run = Schedule(batch_size=8, steps=10, steps_per_epoch=1, num_images=8, num_classes=2)
    method, tx = Averaged(Supervised(models.create(**MODEL), run), decay), optax.sgd(0.3)
    mesh = dist.make_mesh()
    state = dist.create_state(lambda: create_state(method, tx, jnp.zeros((1, 8, 8, 1)), 0), mesh)
    step = TrainStep(method=method, tx=tx, augment=lambda rng, rows: rows, axis_name=dist.AXIS, log_every=1)
    mapped = dist.map_step(step, mesh)
    rng = np.random.default_rng(0)
    views = (rng.normal(size=(8, 8, 8, 1)).astype(np.float32),)
    batch = {"views": views, "index": np.arange(8, dtype=np.int32), "label": np.arange(8, dtype=np.int32) % 2}
    found = [jax.device_get((state.params, state.model_state))]
    for _ in range(steps):
        state, _ = mapped(state, dist.shard_batch(batch, mesh))
        found.append(jax.device_get((state.params, state.model_state)))
    return method, found


def test_the_average_is_the_recursion_and_training_ignores_it():
    method, found = states(0.3, 4)
    _, plain = states(0.0001, 4)
    params, batch_stats = found[0][0], found[0][1]["batch_stats"]
    for t, (of_step, state) in enumerate(found[1:], 1):
        decay = min(0.3, (1 + t) / (10 + t))
        params = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, params, of_step)
        batch_stats = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, batch_stats, state["batch_stats"])
        averaged, own = method.averages(state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), averaged, params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), own["batch_stats"], batch_stats
        )
        assert "average" not in own
    jax.tree.map(np.testing.assert_array_equal, found[-1][0], plain[-1][0])
    assert any(np.max(np.abs(a - b)) > 1e-3 for a, b in zip(*map(jax.tree.leaves, (params, found[-1][0])), strict=True))
