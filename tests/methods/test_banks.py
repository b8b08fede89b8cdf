"""Banks whose rows are divided over the devices within a step: the same values as where every device has all rows."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from ssl_jax import config as configs
from ssl_jax import dist
from ssl_jax.methods import odc, pcl
from ssl_jax.methods.toolkit import banks, instances, kmeans, memories, transport, whitening
from ssl_jax.ops import shards
from ssl_jax.planning import plan
from ssl_jax.training import build
from tests.methods import smaller
from tests.methods.test_every_method import load

ROWS, IMAGES, DIM, BATCH = 1024, 1000, 12, 16  # the last rows have no image
DIVIDED = (
    *("instdisc", "pirl", "cmc", "odc", "pcl", "deepcluster", "deepcluster_v2", "sela", "sela_v2"),
    *("coke", "clusterfit"),
)


def route(torus=None):
    return shards.Route(dist.AXIS, torus)


def on_eight(function, *specs, out):
    """`function` of each device's parts, as a compiled function of whole arrays."""
    mapped = jax.shard_map(function, mesh=dist.make_mesh(), in_specs=specs, out_specs=out, check_vma=True)
    return jax.jit(mapped)


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@functools.cache
def draw():
    rng = np.random.default_rng(0)
    bank, z = (unit(rng.normal(size=(count, DIM))) for count in (ROWS, BATCH))
    index = rng.permutation(IMAGES)[:BATCH].astype(np.int32)
    index[5] = index[2]  # an image that is in the batch twice
    return jnp.asarray(bank), jnp.asarray(z), jnp.asarray(index)


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_are_read_and_written_where_they_are(axis):
    bank, z, index = draw()
    bank = bank if axis == 0 else bank.T
    spec, rows = P(*[None] * axis, dist.AXIS), z if axis == 0 else z.T

    def device(bank, mine, everyone, rows):
        shard = shards.Shard(bank, axis, route())
        return banks.take(shard, mine, axis=axis), banks.put(shard, everyone, rows, axis=axis).value

    run = on_eight(device, spec, P(dist.AXIS), P(), P(), out=(spec, spec))
    different = index[jnp.array([0, 1, 2, 3, 4, *range(6, BATCH)])]
    taken, after = run(bank, index, different, jnp.delete(rows, 5, axis=axis))
    np.testing.assert_array_equal(taken, np.take(np.asarray(bank), np.asarray(index), axis=axis))
    expected = np.array(bank)
    expected[(slice(None),) * axis + (np.asarray(different),)] = np.delete(rows, 5, axis=axis)
    np.testing.assert_array_equal(after, expected)


def test_a_divided_bank_moves_as_a_whole_one():
    bank, z, index = draw()

    def device(bank, index, z):
        return memories.update_bank(shards.Shard(bank, 0, route()), index, z, dist.AXIS, momentum=0.3).value

    found = on_eight(device, P(dist.AXIS), P(dist.AXIS), P(dist.AXIS), out=P(dist.AXIS))(bank, index, z)
    expected = jax.jit(functools.partial(memories.update_bank, axis_name=None, momentum=0.3))(bank, index, z)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert np.sum(np.any(found != bank, axis=1)) == BATCH - 1


@pytest.mark.parametrize("torus", [None, shards.Torus((2, 1), (1, 4))], ids=str)
def test_instance_losses_of_a_divided_bank_and_their_gradients_are_those_of_a_whole_one(torus, monkeypatch):
    bank, z, index = draw()
    monkeypatch.setattr(banks, "TABLE", 3 * ROWS // 8)  # blocks of three images, the last of one
    losses = [
        functools.partial(instances.loss, num_images=IMAGES, negatives=negatives, softmax=softmax, temperature=0.1)
        for negatives, softmax in [(30, False), (30, True), (0, False)]
    ]
    log_z = jnp.array(-np.inf)

    def whole(z):
        return [loss(z, bank, index, jax.random.key(3), log_z, axis_name=None)[0] for loss in losses]

    def device(z, bank, index):
        def values(z):
            shard = shards.Shard(bank, 0, route(torus))
            found = [loss(z, shard, index, jax.random.key(3), log_z, axis_name=dist.AXIS)[0] for loss in losses]
            return [lax.pmean(value, dist.AXIS) for value in found]

        return values(z), jax.jacrev(values)(z)

    run = on_eight(device, P(dist.AXIS), P(dist.AXIS), P(dist.AXIS), out=(P(), P(dist.AXIS)))
    found, gradients = run(z, bank, index)
    expected, gradients_of_whole = jax.jit(lambda z: (whole(z), jax.jacrev(whole)(z)))(z)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for gradient, of_whole in zip(gradients, gradients_of_whole, strict=True):
        np.testing.assert_allclose(gradient, of_whole, rtol=1e-5, atol=1e-6 * np.abs(of_whole).max())


def clusterings(axis_name):
    """(of points and whether they are valid: what is the same on every device, what each has of its own points)"""

    def run(points, valid):
        key, prototypes = jax.random.key(1), unit(np.random.default_rng(1).normal(size=(6, DIM)))
        options = dict(valid=valid, block_size=50, axis_name=axis_name)
        centroids, clusters = kmeans.kmeans(key, points, 20, iterations=3, **options)
        # Of the invalid points' number, so that clusters start equal and become empty, and are divided.
        start = jnp.concatenate([centroids[:4], centroids[:4]])
        means, others = kmeans.kmeans(key, points, 8, iterations=2, spherical=False, divide=True, init=start, **options)
        labels, log_r = transport.balanced_labels(points, prototypes, iterations=9, tolerance=0.5, **options)
        distances = jnp.linalg.norm(points - centroids[clusters], axis=1)
        whitened = whitening.whitened(points, 5, **options)
        sizes = kmeans.sizes_of(clusters, 20, axis_name)
        spread = pcl.concentration(distances, clusters, 20, 0.2, axis_name)
        count = odc.count_up(valid, axis_name)
        return (centroids, means, log_r, sizes, spread), (clusters, others, labels, whitened, count)

    return run


def test_clusterings_that_are_divided_over_devices_are_those_of_one():
    points = np.array(draw()[0]) * np.linspace(0.5, 2.0, ROWS, dtype=np.float32)[:, None]
    valid = np.arange(ROWS) % 5 != 2
    valid[256:384] = False  # a device without a valid point
    found = on_eight(clusterings(dist.AXIS), P(dist.AXIS), P(dist.AXIS), out=(P(), P(dist.AXIS)))(points, valid)
    expected = jax.jit(clusterings(None))(points, valid)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_banks_that_are_not_divided_along_their_rows_are_gathered():
    """As of few images, or of a number that the devices do not divide."""
    tree = {"bank": jnp.zeros((1024, 8)), "memory": {"rows": jnp.zeros((2, 1024, 8)), "seen": jnp.zeros(1024)}}
    names = {"bank": 1024, "memory": 1024}
    assert jax.tree.leaves(shards.divided(tree, dist.shard_axes(tree, 8), names)) == [True] * 3
    wide = {**tree, "bank": jnp.zeros((1024, 2048))}
    assert dist.shard_axes(wide, 8)["bank"] == 1
    assert jax.tree.leaves(shards.divided(wide, dist.shard_axes(wide, 8), names)) == [False] * 3
    assert jax.tree.leaves(shards.divided(tree, dist.shard_axes(tree, 8), {"bank": 1024})) == [True, False, False]
    assert not any(jax.tree.leaves(shards.divided(tree, dist.shard_axes(tree, 3), names)))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "instdisc" else pytest.mark.every_method)
        for name in DIVIDED
    ],
)
def test_no_device_has_a_bank_whole_within_a_step(name):
    """No array of the compiled program is as large, nor the batch's rows of scores times the devices."""
    images = 60_000
    config = load(name).unlock()
    for section, values in (("model", smaller.MODEL), ("method", smaller.METHOD)):
        config[section].update({key: value for key, value in values.items() if key in config[section]})
    config.batch_size = 64
    config = configs.parse(config)
    training = build.training(config, build.schedule(config, images, 10))
    state = jax.eval_shape(training.create_state)
    names = training.method.banks
    leaves = jax.tree.leaves({name: state.model_state[name] for name in names})
    assert leaves and set(names.values()) == {images}
    step = dist.compile_step(
        training.step, dist.make_mesh(), state, plan.batch_shapes(config, training, images), shard_state=True
    )
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\[(\d[\d,]*)\]", step.as_text())}
    assert any(images // 8 in shape for shape in shapes)
    assert [shape for shape in shapes if images in shape and np.prod(shape) > images] == []
    largest = max(leaf.size for leaf in leaves)
    assert [shape for shape in shapes if np.prod(shape) >= largest > images] == []
