import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from ssl_jax.methods import _queue

AXIS = "i"


def over_devices(function, mapping, devices):
    """`function(state, *rows, axis_name) -> state` over devices: the state the same on each, the rows split."""
    on_device = functools.partial(function, axis_name=AXIS)
    if mapping == "shard_map":
        mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
        whole, split = PartitionSpec(), PartitionSpec(AXIS)

        def mapped(state, *rows):
            in_specs = (whole, *[split] * len(rows))
            return jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=whole))(state, *rows)

    else:

        def mapped(state, *rows):
            rows = [x.reshape(devices, -1, *x.shape[1:]) for x in rows]
            states = jax.pmap(on_device, axis_name=AXIS, in_axes=(None, *[0] * len(rows)))(state, *rows)
            assert all(np.all(leaf == leaf[0]) for leaf in jax.tree.leaves(states))  # the same on every device
            return jax.tree.map(lambda x: x[0], states)

    return mapped


MAPPINGS = [("shard_map", 1), ("shard_map", 8), ("pmap", 1), ("pmap", 8)]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def rows(count, dim=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, dim)), jnp.float32)


def test_a_new_queue_has_unit_rows_that_follow_its_key():
    queue = _queue.create(jax.random.key(0), 32, 4)
    assert queue["rows"].shape == (32, 4) and queue["pointer"] == 0
    np.testing.assert_allclose(np.linalg.norm(queue["rows"], axis=-1), 1.0, rtol=1e-6)
    assert np.linalg.norm(np.mean(queue["rows"], axis=0)) < 0.4  # every direction: 1 / sqrt(32) = 0.18 is expected
    assert np.all(queue["rows"] == _queue.create(jax.random.key(0), 32, 4)["rows"])
    assert np.all(queue["rows"] != _queue.create(jax.random.key(1), 32, 4)["rows"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_push_overwrites_the_oldest_rows_in_turn(dtype):
    queue = _queue.create(jax.random.key(0), 6, 3)
    expected = np.array(queue["rows"])
    for step, at in enumerate([0, 2, 4, 0, 2]):  # the fourth wraps around
        new = jnp.asarray(5.0 * rows(2, seed=step), dtype)
        queue = _queue.push(queue, new, None)
        expected[at : at + 2] = unit(np.asarray(new, np.float32))
        assert queue["rows"].dtype == jnp.float32
        np.testing.assert_allclose(queue["rows"], expected, rtol=1e-6, atol=1e-7)
        assert queue["pointer"] == (at + 2) % 6


def test_push_of_a_batch_as_large_as_the_queue_replaces_it():
    queue = _queue.push(_queue.create(jax.random.key(0), 4, 3), rows(4), None)
    np.testing.assert_allclose(queue["rows"], unit(rows(4)), rtol=1e-6)
    assert queue["pointer"] == 0


@pytest.mark.parametrize("mapping, devices", MAPPINGS)
def test_push_over_devices_is_that_of_the_whole_batch(mapping, devices):
    queue = expected = _queue.create(jax.random.key(0), 16, 3)
    push = over_devices(_queue.push, mapping, devices)
    for step in range(3):
        queue, expected = push(queue, rows(8, seed=step)), _queue.push(expected, rows(8, seed=step), None)
        np.testing.assert_allclose(queue["rows"], expected["rows"], rtol=1e-6)
        assert queue["pointer"] == expected["pointer"] == (8 * (step + 1)) % 16


def test_push_leaves_the_old_queue_without_the_current_keys():
    queue = _queue.create(jax.random.key(0), 8, 3)
    keys = unit(rows(4))
    pushed = _queue.push(queue, keys, None)
    assert np.max(keys @ queue["rows"].T) < 0.99999
    np.testing.assert_allclose(np.max(keys @ pushed["rows"].T, axis=-1), 1.0, rtol=1e-6)


def test_push_has_no_gradient():
    queue = _queue.create(jax.random.key(0), 8, 3)
    gradient = jax.grad(lambda x: jnp.sum(_queue.push(queue, x, None)["rows"] ** 3))(rows(4))
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("size, count, remedy", [(100, 32, 96), (120, 32, 128), (8, 32, 32)])
def test_push_refuses_a_size_that_batches_do_not_fill(size, count, remedy):
    with pytest.raises(ValueError, match=f"{size} rows .* batches of {count}; use {remedy}"):
        _queue.push(_queue.create(jax.random.key(0), size, 3), rows(count), None)


def test_push_counts_the_rows_of_all_devices():
    queue = _queue.create(jax.random.key(0), 12, 3)  # a multiple of one device's 2 rows, not of 16
    with pytest.raises(ValueError, match="use 16"):
        over_devices(_queue.push, "shard_map", 8)(queue, rows(16))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_nearest_is_the_row_of_largest_cosine(scale):
    z, queue = rows(5), unit(rows(7, seed=1))
    expected = [queue[np.argmax([x @ q for q in queue])] for x in z]
    np.testing.assert_array_equal(_queue.nearest(scale * z, queue), expected)


def test_nearest_has_no_gradient():
    z, queue = rows(5), unit(rows(7, seed=1))
    for gradient in jax.grad(lambda z, queue: jnp.sum(_queue.nearest(z, queue) ** 3), argnums=(0, 1))(z, queue):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_update_bank_moves_the_rows_of_its_images(momentum):
    bank = _queue.create_bank(jax.random.key(0), 7, 3)
    index = np.array([5, 0, 3])
    new = 4.0 * rows(3)
    expected = np.array(bank)
    for i, row in zip(index, np.asarray(new), strict=True):
        expected[i] = unit(momentum * expected[i] + (1 - momentum) * unit(row))
    updated = _queue.update_bank(bank, jnp.asarray(index), new, None, momentum=momentum)
    np.testing.assert_allclose(updated, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mapping, devices", [("one batch", 1), *MAPPINGS])
def test_update_bank_takes_the_first_row_of_an_image(mapping, devices):
    bank = _queue.create_bank(jax.random.key(0), 5, 3)
    index, new = jnp.array([2, 4, 2, 2, 0, 4, 2, 0]), rows(8)
    if mapping == "one batch":
        updated = _queue.update_bank(bank, index, new, None)
    else:
        updated = over_devices(_queue.update_bank, mapping, devices)(bank, index, new)
    expected = np.array(bank)
    for image, first in [(2, 0), (4, 1), (0, 4)]:
        expected[image] = unit(0.5 * expected[image] + 0.5 * unit(new[first]))
    np.testing.assert_allclose(updated, expected, rtol=1e-5, atol=1e-7)


def test_update_bank_has_no_gradient():
    bank, index = _queue.create_bank(jax.random.key(0), 5, 3), jnp.arange(4)
    gradient = jax.grad(lambda x: jnp.sum(_queue.update_bank(bank, index, x, None) ** 3))(rows(4))
    np.testing.assert_array_equal(gradient, 0.0)
