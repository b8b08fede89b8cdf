import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ssl_jax.methods.toolkit import memories
from tests.losses.checks import mesh_of

AXIS = "i"


def mapped(function, devices):
    """`function(state, *rows, axis_name) -> state` over devices: the state is the same on each, the rows are shards."""
    whole, sharded = PartitionSpec(), PartitionSpec(AXIS)
    on_device = functools.partial(function, axis_name=AXIS)

    def call(state, *rows):
        in_specs = (whole, *[sharded] * len(rows))
        return jax.shard_map(on_device, mesh=mesh_of(devices), in_specs=in_specs, out_specs=whole)(state, *rows)

    return call


def pmapped(function, devices=8):
    """As `mapped`, for one argument of rows, by jax.pmap. It does not check what is the same on all devices."""
    compiled = jax.pmap(functools.partial(function, axis_name=AXIS), axis_name=AXIS, in_axes=(None, 0))

    def call(state, rows):
        states = jax.device_get(compiled(state, jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), rows)))
        assert all(np.all(leaf == leaf[0]) for leaf in jax.tree.leaves(states))  # the same on every device
        return jax.tree.map(lambda x: x[0], states)

    return call


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def rows(count, dim=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def queue_of(size, dim=3, seed=9):
    return {"rows": unit(rows(size, dim, seed)), "pointer": np.zeros((), np.int32)}


push = jax.jit(functools.partial(memories.push, axis_name=None))


def test_a_new_queue_has_unit_rows_that_follow_its_key():
    create = jax.jit(lambda key: (memories.create(key, 32, 4), memories.create_bank(key, 32, 4)))
    (queue, bank), (other, _) = (jax.device_get(create(jax.random.key(seed))) for seed in (0, 1))
    assert queue["rows"].shape == bank.shape == (32, 4) and queue["pointer"] == 0
    for new in (queue["rows"], bank):
        np.testing.assert_allclose(np.linalg.norm(new, axis=-1), 1.0, rtol=1e-6)
        assert np.linalg.norm(np.mean(new, axis=0)) < 0.4  # every direction: 1 / sqrt(32) = 0.18 is expected
    assert np.all(queue["rows"] == create(jax.random.key(0))[0]["rows"])
    assert np.all(queue["rows"] != other["rows"])


def test_a_large_bank_has_a_few_rows_more_which_are_zero_and_the_rows_of_its_images_are_those_of_a_queue():
    count = memories.PADDED_FROM + 1
    bank, queue = jax.device_get(
        jax.jit(lambda key: (memories.create_bank(key, count, 2), memories.create(key, count, 2)))(jax.random.key(0))
    )
    assert len(bank) == memories.bank_rows(count) == memories.PADDED_FROM + 1024
    np.testing.assert_array_equal(bank[:count], queue["rows"])
    assert np.all(bank[count:] == 0)
    assert [memories.bank_rows(n) for n in (10, 65_535, 65_536, 1_281_167)] == [10, 65_535, 65_536, 1_282_048]


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_push_overwrites_the_oldest_rows_in_turn(dtype):
    queue = queue_of(6)
    expected = np.array(queue["rows"])
    for step, at in enumerate([0, 2, 4, 0, 2]):  # the fourth wraps around
        new = (5.0 * rows(2, seed=step)).astype(dtype)
        queue = push(queue, new)
        expected[at : at + 2] = unit(new.astype(np.float32))
        assert queue["rows"].dtype == np.float32
        np.testing.assert_allclose(queue["rows"], expected, rtol=1e-6, atol=1e-7)
        assert np.asarray(queue["pointer"]) == (at + 2) % 6


def test_push_of_a_batch_as_large_as_the_queue_replaces_it():
    queue = jax.device_get(push(queue_of(4), rows(4)))
    np.testing.assert_allclose(queue["rows"], unit(rows(4)), rtol=1e-6)
    assert queue["pointer"] == 0


def test_push_over_devices_is_that_of_the_whole_batch():
    ways = [push, *(jax.jit(mapped(memories.push, devices)) for devices in (1, 8)), pmapped(memories.push)]
    queues = [queue_of(16)] * len(ways)
    for step in range(3):
        queues = [jax.device_get(way(queue, rows(8, seed=step))) for way, queue in zip(ways, queues, strict=True)]
        for queue in queues:
            np.testing.assert_allclose(queue["rows"], queues[0]["rows"], rtol=1e-6)
            assert queue["pointer"] == (8 * (step + 1)) % 16


def test_push_leaves_the_old_queue_without_the_current_keys():
    queue, keys = queue_of(4), unit(rows(4))
    pushed = np.asarray(push(queue, keys)["rows"])
    assert np.max(keys @ queue["rows"].T) < 0.99999
    np.testing.assert_allclose(np.max(keys @ pushed.T, axis=-1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("size, count, remedy", [(100, 32, 96), (120, 32, 128), (8, 32, 32)])
def test_push_refuses_a_size_that_batches_do_not_fill(size, count, remedy):
    with pytest.raises(ValueError, match=f"{size} rows .* batches of {count}; use {remedy}"):
        jax.eval_shape(push, queue_of(size), rows(count))


def test_push_counts_the_rows_of_all_devices():
    queue = queue_of(12)  # a multiple of one device's 2 rows, not of 16
    with pytest.raises(ValueError, match="use 16"):
        jax.eval_shape(mapped(memories.push, 8), queue, rows(16))


def test_nearest_is_the_row_of_largest_cosine():
    nearest, z, queue = jax.jit(memories.nearest), rows(5), unit(rows(7, seed=1))
    expected = [queue[np.argmax([x @ q for q in queue])] for x in z]
    for scale in (1e-6, 1.0, 1e6):
        np.testing.assert_array_equal(nearest(np.float32(scale) * z, queue), expected)


def test_nothing_has_a_gradient():
    @jax.jit
    def gradients(z, rows, index):
        def total(z, rows):
            queue = {"rows": rows, "pointer": jnp.zeros((), jnp.int32)}
            pushed, moved = memories.push(queue, z, None)["rows"], memories.update_bank(rows, index, z, None)
            return jnp.sum(memories.nearest(z, rows) ** 3), jnp.sum(pushed**3), jnp.sum(moved**3)

        return jax.jacrev(total, argnums=(0, 1))(z, rows)

    nearest, pushed, moved = jax.device_get(gradients(rows(4), unit(rows(8, seed=1)), np.arange(4)))
    for gradient in (*nearest, pushed[0], moved[0]):
        np.testing.assert_array_equal(gradient, 0.0)


def test_update_bank_moves_the_rows_of_its_images():
    bank, index, new = unit(rows(7, seed=1)), np.array([5, 0, 3]), 4.0 * rows(3)
    momenta = 0.0, 0.5, 0.9
    run = jax.jit(lambda *arrays: [memories.update_bank(*arrays, None, momentum=momentum) for momentum in momenta])
    for momentum, updated in zip(momenta, run(bank, index, new), strict=True):
        expected = np.array(bank)
        for i, row in zip(index, new, strict=True):
            expected[i] = unit(momentum * expected[i] + (1 - momentum) * unit(row))
        np.testing.assert_allclose(updated, expected, rtol=1e-5, atol=1e-7)


def test_update_bank_takes_the_first_row_of_an_image():
    bank, index, new = unit(rows(5, seed=1)), np.array([2, 4, 2, 2, 0, 4, 2, 0]), rows(8)
    expected = np.array(bank)
    for image, first in [(2, 0), (4, 1), (0, 4)]:
        expected[image] = unit(0.5 * expected[image] + 0.5 * unit(new[first]))

    @jax.jit
    def run(*arrays):
        return [memories.update_bank(*arrays, None), *(mapped(memories.update_bank, n)(*arrays) for n in (1, 8))]

    def pair(bank, index_and_rows, axis_name):
        return memories.update_bank(bank, *index_and_rows, axis_name)

    for updated in (*run(bank, index, new), pmapped(pair)(bank, (index, new))):
        np.testing.assert_allclose(updated, expected, rtol=1e-5, atol=1e-7)
