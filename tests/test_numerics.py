"""What ssl_jax.ops computes by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ssl_jax import dist, ops

X = np.concatenate([np.linspace(-12, 12, 4001), [1e-30, -1e-30, 1e30, -1e30, 0.0, np.inf]]).astype(np.float32)


@pytest.mark.parametrize("dtype, atol", [("float32", 3e-7), ("bfloat16", 0.0)])
def test_gelu_is_jaxs_exact_one(dtype, atol):
    """JAX 0.12 computes the gradient otherwise, to 3e-7."""

    def both(function):
        return jax.jit(lambda x: (function(x), jax.grad(lambda x: function(x).sum(dtype=jnp.float32))(x)))

    x = X.astype(dtype)
    value, gradient = both(ops.gelu)(x)
    value_expected, gradient_expected = both(functools.partial(jax.nn.gelu, approximate=False))(x)
    assert value.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(value, value_expected)
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (gradient, gradient_expected)), rtol=0, atol=atol)


def test_gelu_has_derivatives_under_shard_maps_check():
    first = jax.grad(lambda x: ops.gelu(x).sum())
    second = jax.grad(lambda x: first(x).sum())
    split = PartitionSpec(dist.AXIS)
    mapped = jax.shard_map(second, mesh=dist.make_mesh(), in_specs=split, out_specs=split, check_vma=True)
    x = np.linspace(-4, 4, 8, dtype=np.float32)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(jax.jit(mapped)(x), density * (2 - x**2), atol=1e-6)
