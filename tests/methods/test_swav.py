import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from ssl_jax import dist, losses, models, optim
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.training import step
from ssl_jax.training.state import create_state
from tests.losses.checks import mesh_of

BATCH = 8
# Two large crops and a small one.
rng = np.random.default_rng(0)
VIEWS = tuple(rng.normal(size=(BATCH, size, size, 1)).astype(np.float32) for size in (8, 8, 4))


def make(**options):
    schedule = Schedule(batch_size=BATCH, steps=100, steps_per_epoch=10, num_images=1000)
    options = {"projector": (16, 8), "prototypes": 5, "local_views": 1, "freeze_steps": 0, **options}
    return METHODS["swav"](models.create("resnet8", stages=(1,)), schedule, **options)


QUEUE = dict(local_views=0, queue_size=2 * BATCH, queue_start=1, iterations=1)


@functools.cache
def start():
    """Any params, and a new state with queues, which a method without them leaves alone."""
    params, state = jax.eval_shape(make(**QUEUE).init, jax.random.key(1), VIEWS[0][:1])
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), params)
    return {**params, "prototypes": unit(params["prototypes"])}, jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), state
    )


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def projections(method, params, state, views):
    """Crops of one size together through the backbone, all of them through the projector; not of unit length."""

    def apply(name, x):
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        return method.networks[name].apply(variables, x, train=True, mutable=["batch_stats"])[0]

    h = [apply("backbone", x) for x in (jnp.concatenate(views[:2]), jnp.concatenate(views[2:]))]
    return apply("projector", jnp.concatenate(h)).reshape(len(views), BATCH, -1)


def test_loss_is_swav_of_the_cosines_with_the_prototypes():
    options = dict(temperature=0.2, epsilon=0.1, iterations=2)
    method = make(**options)

    @jax.jit
    def run(params, state, views):
        z = projections(method, params, state, views)
        z /= jnp.linalg.norm(z, axis=-1, keepdims=True)
        scores = jnp.einsum("vbd,kd->vbk", z, params["prototypes"])
        expected = losses.swav(scores[:2], scores[2:], **options)
        return method.loss(params, state, {"views": views}, jax.random.key(2)), z, expected

    output, z, expected = jax.device_get(run(*start(), VIEWS))
    np.testing.assert_allclose(output.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(output.embeddings, z[:2], rtol=1e-4, atol=1e-5)


def test_networks_are_the_authors():
    params, _ = start()
    layers = jax.tree.map(jnp.shape, params["projector"])
    assert layers["Dense_0"] == {"kernel": (16, 16), "bias": (16,)}
    assert layers["Dense_1"] == {"kernel": (16, 8), "bias": (8,)} and "BatchNorm_1" not in layers
    assert params["prototypes"].shape == (5, 8)  # no bias


def test_chance_level_is_the_loss_of_equal_scores():
    np.testing.assert_allclose(make().chance_level, losses.swav(np.ones((2, BATCH, 5), np.float32)), rtol=1e-6)
    assert make().chance_level == math.log(5)


def test_prototypes_stay_for_the_first_steps_and_stay_unit_vectors():
    method = make(freeze_steps=2, local_views=0, iterations=1)
    tx, _ = optim.create("sgd", lr=1.0, warmup_steps=0, steps=100, frozen_steps=method.frozen_steps)
    mesh = Mesh(np.asarray(jax.devices()[:1]), (dist.AXIS,))
    one_step = dist.map_step(
        step.TrainStep(
            method=method,
            tx=tx,
            augment=lambda rng, batch: batch,
            axis_name=dist.AXIS,
            log_every=100,
        ),
        mesh,
    )
    state = dist.create_state(lambda: create_state(method, tx, jnp.zeros((1, 8, 8, 1)), seed=0), mesh)
    history = [np.asarray(state.params["prototypes"])]
    for _ in range(4):
        state, _ = one_step(state, dist.shard_batch({"views": VIEWS[:2]}, mesh))
        history.append(np.asarray(state.params["prototypes"]))
    moved = [np.abs(new - old).max() > 1e-3 for old, new in itertools.pairwise(history)]
    assert moved == [False, False, True, True]
    for prototypes in (history[0], history[-1]):
        np.testing.assert_allclose(np.linalg.norm(prototypes, axis=1), 1.0, rtol=1e-5)


def test_queue_begins_when_told_counts_when_full_and_holds_past_batches():
    method, views = make(**QUEUE), VIEWS[:2]

    @jax.jit
    def run(params, state, views, number):
        """The step by itself and on two devices, and the state after it."""

        def on_device(state, batch):
            output = method.loss(params, state, batch, jax.random.key(2), axis_name="i")
            return jax.lax.pmean(output.loss, "i"), output.state["queues"]

        specs = (PartitionSpec(), PartitionSpec("i"))
        mapped = jax.shard_map(on_device, mesh=mesh_of(2), in_specs=specs, out_specs=PartitionSpec())
        output = method.loss(params, state, {"views": views}, jax.random.key(2))
        after = method.update(params, {**output.state, "batch_stats": state["batch_stats"]}, number)
        return output.loss, output.state, output.embeddings, after, mapped(state, {"views": views})

    @jax.jit
    def reference(z, prototypes, rows):
        scores, queue_scores = z @ prototypes.T, rows @ prototypes.T
        return losses.swav(scores, iterations=1), losses.swav(scores, queue_scores=queue_scores, iterations=1)

    params, state = start()
    values = []
    for number in range(1, 5):
        loss, new, z, state, _ = jax.device_get(run(params, state, views, number))
        pushed = [int(new["pushed"]), [int(q["pointer"]) for q in new["queues"]]]
        assert pushed == [[0, [0, 0]], [8, [8, 8]], [16, [0, 0]], [16, [8, 8]]][number - 1]
        values.append(loss)
    for crop in range(2):  # each crop its own
        np.testing.assert_allclose(state["queues"][crop]["rows"], np.tile(z[crop], (2, 1)), atol=1e-5)
    plain, with_queue = reference(z, params["prototypes"], np.tile(z, (1, 2, 1)))
    np.testing.assert_allclose(values, [plain, plain, plain, with_queue], rtol=1e-5)

    # Another queue, for one that makes a difference, with other prototypes than those it was filled under.
    rows = unit(np.random.default_rng(3).normal(size=(2, 2 * BATCH, 8))).astype(np.float32)
    other = [{**queue, "rows": rows[crop]} for crop, queue in enumerate(state["queues"])]
    state, params = {**state, "queues": other}, {**params, "prototypes": params["prototypes"][:, ::-1]}
    loss, new, z, _, (on_two, queues) = jax.device_get(run(params, state, views, 5))
    plain, with_queue = map(float, reference(z, params["prototypes"], rows))
    np.testing.assert_allclose(loss, with_queue, rtol=1e-5)
    assert abs(with_queue - plain) > 1e-3
    np.testing.assert_allclose(on_two, loss, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), queues, new["queues"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epsilon": 0.0}, "epsilon must be above 0, got 0"),
        ({"prototypes": 1}, "prototypes must be at least 2.*got 1"),
        ({"local_views": -1}, "local_views must be at least 0, got -1"),
        ({"queue_size": 12}, "queue_size=12 is not a multiple of batch_size=8; use 16"),
        ({"freeze_steps": -1}, "freeze_steps must be at least 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
