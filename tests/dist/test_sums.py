"""Gradients of shards, summed along the lines of a torus and in bfloat16."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from ssl_jax import dist
from ssl_jax.dist.mesh import find_torus
from ssl_jax.ops import shards

TORI = [None, shards.Torus((4, 2), (1, 1)), shards.Torus((2, 1), (1, 4)), shards.Torus((1, 2, 1), (2, 1, 2))]


def summed(x, axis, torus, dtype="float32"):
    """The gradients of each device's `x` [devices, ...] with respect to shards of a parameter of that shape."""
    route = shards.Route(dist.AXIS, torus, dtype)

    def of_device(x):
        def use(shard):
            return jnp.sum(shards.gather_one(shard, axis, route) * x[0])

        shape = list(x.shape[1:])
        shape[axis] //= lax.axis_size(dist.AXIS)
        return jax.grad(use)(lax.pcast(jnp.zeros(shape), dist.AXIS, to="varying"))

    spec = P(*[None] * axis, dist.AXIS)
    mapped = jax.shard_map(of_device, mesh=dist.make_mesh(), in_specs=P(dist.AXIS), out_specs=spec, check_vma=True)
    return jax.jit(mapped)


@pytest.mark.parametrize("torus", TORI, ids=str)
@pytest.mark.parametrize("axis, shape", [(0, (16, 3)), (1, (3, 24, 2)), (2, (2, 3, 8))])
def test_along_the_lines_of_any_torus_each_device_gets_the_sum_of_its_shard(torus, axis, shape):
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    np.testing.assert_allclose(summed(x, axis, torus)(x), np.sum(x, axis=0), atol=1e-5)


def test_in_bfloat16_sums_are_rounded_and_half_as_much_is_sent():
    x = np.random.default_rng(0).normal(size=(8, 16, 30)).astype(np.float32)
    for torus in TORI[:2]:
        found = np.asarray(summed(x, 0, torus, "bfloat16")(x))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.sum(x, axis=0), atol=0.1)  # 8 terms of some 3, to 2^-8
        assert np.max(np.abs(found - np.sum(x, axis=0))) > 1e-4


def test_lines_of_a_torus_are_those_of_its_hosts_and_chips():
    torus = shards.Torus((2, 2), (1, 2))  # hosts of two chips beside each other: 0 1 | 2 3 above 4 5 | 6 7
    assert torus.sizes == (2, 4)
    assert torus.lines(0) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert torus.lines(1) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def tpus(places, hosts):
    return [
        types.SimpleNamespace(platform="tpu", coords=place, process_index=host)
        for place, host in zip(places, hosts, strict=True)
    ]


def test_the_torus_is_read_off_the_devices_places_if_they_are_in_the_order_of_a_mesh():
    block = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
    places = [(x + 2 * hx, y + 2 * hy, z) for hy in range(3) for hx in range(2) for x, y, z in block]
    hosts = [n // 4 for n in range(24)]
    assert find_torus(tpus(places, hosts)) == shards.Torus((3, 2), (2, 2))
    assert find_torus(tpus(sorted(places), hosts)) is None
    assert find_torus(tpus(places[:-1], hosts[:-1])) is None
    assert find_torus(tpus(2 * places, 2 * hosts)) is None  # two slices
    assert find_torus(jax.devices()) is None
