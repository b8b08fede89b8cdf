"""Linear layers of more than rows are computed otherwise on a CPU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models.dense import Dense

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def value_and_gradients(function, *arguments):
    def total(*arguments):
        y = function(*arguments)
        return jnp.sum(jnp.cos(jnp.arange(y.size).reshape(y.shape)) * y.astype(jnp.float32)), y

    return jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(arguments))), has_aux=True))(*arguments)


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5), (2, 3, 2, 5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_is_flaxs(shape, dtype):
    x, tolerance = normal(*shape), 1e-5 if dtype == "float32" else 2e-2
    ours, flaxs = (kind(7, dtype=dtype) for kind in (Dense, nn.Dense))
    variables = jax.tree.map(lambda p: p + 0.3, flaxs.init(jax.random.key(0), x))
    found, expected = (value_and_gradients(module.apply, variables, x) for module in (ours, flaxs))
    assert found[0][1].dtype == expected[0][1].dtype
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=tolerance, atol=tolerance
        ),
        found,
        expected,
    )


def test_other_platforms_keep_their_way():
    x, kernel = normal(2, 3, 4), {"params": {"kernel": normal(4, 5), "bias": normal(5)}}
    text = jax.jit(Dense(5).apply).trace(kernel, x).lower(lowering_platforms=("tpu",)).as_text()
    assert "tensor<6x4xf32>" not in text and "tensor<2x3x4xf32>" in text
