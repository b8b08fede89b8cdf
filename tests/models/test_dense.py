"""What is computed otherwise on a CPU: linear layers of more than rows, and attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models.blocks import attention
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


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_is_jaxs(masked, biased):
    queries, keys, values = (normal(2, 5, 3, 4) for _ in range(3))
    mask = jnp.asarray(RNG.random((2, 1, 5, 5)) < 0.6).at[:, :, :, 0].set(True) if masked else None
    bias = normal(1, 3, 5, 5) if biased else jnp.zeros((1, 3, 5, 5))
    found, expected = (
        value_and_gradients(lambda q, k, v, b, of=of: of(q, k, v, b, mask), queries, keys, values, bias)
        for of in (attention, jax.nn.dot_product_attention)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_attention_without_a_bias_is_the_softmax_of_scaled_products():
    queries, keys, values = (RNG.normal(size=(1, 3, 1, 4)) for _ in range(3))
    logits = queries[0, :, 0] @ keys[0, :, 0].T / 2
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = attention(*(jnp.asarray(x, jnp.float32) for x in (queries, keys, values)))
    np.testing.assert_allclose(found[0, :, 0], weights @ values[0, :, 0], rtol=1e-5, atol=1e-6)


def test_other_platforms_keep_their_way():
    lowered = jax.jit(attention).trace(*(normal(2, 5, 3, 4) for _ in range(3))).lower(lowering_platforms=("tpu",))
    plain = jax.jit(jax.nn.dot_product_attention).trace(*(normal(2, 5, 3, 4) for _ in range(3)))
    products = [
        text.count("dot_general") for text in (lowered.as_text(), plain.lower(lowering_platforms=("tpu",)).as_text())
    ]
    assert products[0] == products[1]
    x, kernel = normal(2, 3, 4), {"params": {"kernel": normal(4, 5), "bias": normal(5)}}
    text = jax.jit(Dense(5).apply).trace(kernel, x).lower(lowering_platforms=("tpu",)).as_text()
    assert "tensor<6x4xf32>" not in text and "tensor<2x3x4xf32>" in text
