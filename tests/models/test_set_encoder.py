import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.models.set_encoder import SetEncoder, token_waves
from tests.models import drawn
from tests.models.devices import on_eight

TOKENS = np.random.default_rng(0).normal(size=(8, 2, 3, 4)).astype(np.float32)
ENCODER = SetEncoder(layers=2, heads=2, dropout=0.25)


def layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def linear(x, params):
    return x @ params["kernel"] + params["bias"]


def reference(params, tokens):
    """The first token of one set [tokens, dim] after all layers."""
    x = tokens.astype(np.float64) + token_waves(*tokens.shape)
    dim = x.shape[1]
    for i in range(2):
        qkv = linear(x, params[f"attention_in_{i}"])
        heads = []
        for columns in (slice(0, 2), slice(2, 4)):
            q, k, v = (qkv[:, part * dim : (part + 1) * dim][:, columns] for part in range(3))
            weights = np.exp(q @ k.T / np.sqrt(2))
            heads.append(weights / weights.sum(1, keepdims=True) @ v)
        x = layer_norm(x + linear(np.concatenate(heads, 1), params[f"attention_out_{i}"]), params[f"norm1_{i}"])
        hidden = np.maximum(linear(x, params[f"linear1_{i}"]), 0)
        x = layer_norm(x + linear(hidden, params[f"linear2_{i}"]), params[f"norm2_{i}"])
    return x[0]


def test_each_set_passes_the_layers_by_itself():
    variables = drawn.variables_of(ENCODER, TOKENS)
    expected = [[reference(variables["params"], tokens) for tokens in row] for row in TOKENS]
    np.testing.assert_allclose(ENCODER.apply(variables, TOKENS), expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_of_training_and_the_same_on_eight_devices():
    variables = drawn.variables_of(ENCODER, TOKENS)

    def trained(variables, tokens, axis_name=None):
        return ENCODER.apply(variables, tokens, train=True, axis_name=axis_name, rngs={"dropout": jax.random.key(1)})

    split = on_eight(functools.partial(trained, axis_name="data"), out_specs=P("data"))
    found, expected = jax.jit(lambda v, x: (split(v, x), trained(v, x)))(variables, TOKENS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.all(np.any(expected != ENCODER.apply(variables, TOKENS), axis=-1))
    same = trained(variables, jnp.broadcast_to(TOKENS[:1], TOKENS.shape))
    assert np.ptp(np.asarray(same), axis=0).max() > 0.1, "each row has its own dropout"


def test_waves_have_one_frequency_for_two_tokens():
    # 5 tokens count as 6: frequencies 1, 10000^(-1/3), 10000^(-2/3)
    waves = token_waves(5, 3)
    x = np.arange(3)
    for token, wave in enumerate([np.sin, np.cos, np.sin, np.cos, np.sin]):
        np.testing.assert_allclose(waves[token], wave(x * 10000 ** (-(token // 2) / 3)), rtol=1e-5)


def test_heads_divide_the_dimensions():
    with pytest.raises(ValueError, match="3 heads do not divide 4 dimensions"):
        SetEncoder(heads=3).init(jax.random.key(0), TOKENS)
