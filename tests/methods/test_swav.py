import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from ssl_jax import losses, models, optim, parallel, step
from ssl_jax.methods import METHODS, Run

BATCH = 8


def make(**options):
    run = Run(batch_size=BATCH, steps=100, steps_per_epoch=10, num_images=1000)
    options = {"projector": (16, 8), "prototypes": 5, "local_views": 1, "freeze_steps": 0, **options}
    return METHODS["swav"](models.create("resnet8", stages=(1,)), run, **options)


def draw(seed=0, local_views=1):
    rngs = jax.random.split(jax.random.key(seed), 2 + local_views)
    sizes = [16, 16] + [8] * local_views
    return tuple(jax.random.normal(r, (BATCH, s, s, 1)) for r, s in zip(rngs, sizes, strict=True))


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def projections(method, params, state, views):
    """Crops of one size together through the backbone, all of them through the projector."""

    def apply(name, x):
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        return method.networks[name].apply(variables, x, train=True, mutable=["batch_stats"])[0]

    h = [apply("backbone", x) for x in (jnp.concatenate(views[:2]), jnp.concatenate(views[2:]))]
    return unit(apply("projector", jnp.concatenate(h))).reshape(len(views), BATCH, -1)


def test_loss_is_swav_of_the_cosines_with_the_prototypes():
    method = make(temperature=0.2, epsilon=0.1, iterations=4)
    views = draw()
    params, state = method.init(jax.random.key(1), views[0][:1])
    loss, (_, metrics) = method.loss(params, state, {"views": views}, jax.random.key(2))
    z = projections(method, params, state, views)
    scores = jnp.einsum("vbd,kd->vbk", z, params["prototypes"])
    expected = losses.swav(scores[:2], scores[2:], temperature=0.2, epsilon=0.1, iterations=4)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["embeddings"], z[:2], rtol=1e-4, atol=1e-5)


def test_networks_are_the_authors():
    params, _ = make().init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    layers = jax.tree.map(jnp.shape, params["projector"])
    assert layers["Dense_0"] == {"kernel": (16, 16), "bias": (16,)}
    assert layers["Dense_1"] == {"kernel": (16, 8), "bias": (8,)} and "BatchNorm_1" not in layers
    assert params["prototypes"].shape == (5, 8)  # no bias
    np.testing.assert_allclose(jnp.linalg.norm(params["prototypes"], axis=1), 1.0, rtol=1e-5)


def test_chance_level_is_the_loss_of_equal_scores():
    np.testing.assert_allclose(make().chance_level, losses.swav(jnp.ones((2, BATCH, 5))), rtol=1e-6)
    assert make().chance_level == math.log(5)


def test_prototypes_stay_for_the_first_steps_and_stay_unit_vectors():
    method = make(freeze_steps=2)
    tx, _ = optim.create("sgd", lr=1.0, warmup_steps=0, steps=100, frozen_steps=method.frozen_steps)
    mesh = Mesh(np.asarray(jax.devices()[:1]), (parallel.AXIS,))
    one_step = parallel.map_step(
        step.TrainStep(
            method=method,
            tx=tx,
            augment=lambda rng, batch: batch,
            axis_name=parallel.AXIS,
            log_every=100,
        ),
        mesh,
    )
    state = parallel.replicate(step.create_state(method, tx, jnp.zeros((1, 16, 16, 1)), seed=0), mesh)
    history = [np.asarray(state.params["prototypes"])]
    for _ in range(4):
        state, _ = one_step(state, parallel.split_batch({"views": draw()}, mesh))
        history.append(np.asarray(state.params["prototypes"]))
    moved = [np.abs(new - old).max() > 1e-3 for old, new in itertools.pairwise(history)]
    assert moved == [False, False, True, True]
    np.testing.assert_allclose(np.linalg.norm(history[-1], axis=1), 1.0, rtol=1e-5)


def test_queue_begins_when_told_counts_when_full_and_holds_past_batches():
    method = make(local_views=0, queue_size=2 * BATCH, queue_start=1)
    views = draw(local_views=0)
    params, state = method.init(jax.random.key(1), views[0][:1])
    plain = make(local_views=0)
    expected, _ = plain.loss(params, state, {"views": views}, jax.random.key(2))
    compiled = jax.jit(method.loss)
    for number in range(1, 5):
        loss, (new, metrics) = compiled(params, state, {"views": views}, jax.random.key(2))
        pushed = [int(new["pushed"]), [int(q["pointer"]) for q in new["queues"]]]
        assert pushed == [[0, [0, 0]], [8, [8, 8]], [16, [0, 0]], [16, [8, 8]]][number - 1]
        if number < 4:
            np.testing.assert_allclose(loss, expected, rtol=1e-6)
        state = method.update(params, {**new, "batch_stats": state["batch_stats"]}, jnp.int32(number))
    z = metrics["embeddings"]
    for crop in range(2):  # each crop its own
        np.testing.assert_allclose(state["queues"][crop]["rows"], jnp.tile(z[crop], (2, 1)), atol=1e-5)
    scores = z @ params["prototypes"].T
    with_queue = losses.swav(scores, queue_scores=jnp.tile(scores, (1, 2, 1)))
    np.testing.assert_allclose(loss, with_queue, rtol=1e-5)

    # Another queue, for one that makes a difference, with other prototypes than those it was filled under.
    rows = unit(jax.random.normal(jax.random.key(3), (2, 2 * BATCH, 8)))
    other = [{**queue, "rows": rows[crop]} for crop, queue in enumerate(state["queues"])]
    state, params = {**state, "queues": other}, {**params, "prototypes": params["prototypes"][:, ::-1]}
    loss, (new, _) = compiled(params, state, {"views": views}, jax.random.key(2))
    queue_scores = rows @ params["prototypes"].T
    with_queue = losses.swav(z @ params["prototypes"].T, queue_scores=queue_scores)
    np.testing.assert_allclose(loss, with_queue, rtol=1e-5)
    assert abs(with_queue - losses.swav(z @ params["prototypes"].T)) > 1e-3

    def on_devices(state, batch):
        loss, (state, _) = method.loss(params, state, batch, jax.random.key(2), axis_name="data")
        return jax.lax.pmean(loss, "data"), state["queues"]

    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    split = PartitionSpec("data")
    mapped = jax.shard_map(on_devices, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=PartitionSpec())
    on_two, queues = jax.jit(mapped)(state, {"views": views})
    np.testing.assert_allclose(on_two, loss, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), queues, new["queues"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epsilon": 0.0}, "epsilon must be above 0, got 0"),
        ({"prototypes": 1}, "prototypes must be at least 2.*got 1"),
        ({"local_views": -1}, "local_views must be at least 0, got -1"),
        ({"queue_size": 12}, "queue_size=12 is no multiple of batch_size=8; use 16"),
        ({"freeze_steps": -1}, "freeze_steps must be at least 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
