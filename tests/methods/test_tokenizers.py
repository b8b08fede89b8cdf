import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import dist
from ssl_jax.methods.toolkit import tokenizers


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(*shape, seed=0):
    return unit(np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


CODES, Z = draw(6, 4, seed=1), draw(8, 5, 4)


def test_each_vector_has_the_nearest_code():
    tokens, rows = tokenizers.quantize(jnp.array(CODES), jnp.array(Z))
    np.testing.assert_array_equal(tokens, np.argmin(((Z[:, :, None] - CODES) ** 2).sum(-1), axis=-1))
    np.testing.assert_array_equal(rows, CODES[np.asarray(tokens)])


def test_codes_move_towards_the_direction_of_the_mean_and_unused_ones_stay():
    tokens = np.random.default_rng(2).integers(0, 5, (8, 5))  # the last code has no vector
    new, counts = tokenizers.moved(jnp.array(CODES), jnp.array(Z), jnp.array(tokens), decay=0.75, axis_name=None)
    for code in range(5):
        mean = Z[tokens == code].astype(np.float64).mean(0)
        np.testing.assert_allclose(new[code], unit(0.75 * CODES[code] + 0.25 * unit(mean)), atol=1e-5)
    np.testing.assert_array_equal(new[5], CODES[5])
    np.testing.assert_array_equal(counts, np.bincount(tokens.ravel(), minlength=6))
    of = counts / 40
    entropy = -np.sum(of[of > 0] * np.log(of[of > 0]))
    np.testing.assert_allclose(tokenizers.perplexity(counts), np.exp(entropy), rtol=1e-5)


def test_devices_move_the_codes_together():
    mesh = dist.make_mesh()

    def move(z):
        tokens, _ = tokenizers.quantize(jnp.array(CODES), z)
        first = tokenizers.first_codebook(jax.random.key(0), z, 3, 2, dist.AXIS)
        return tokenizers.moved(jnp.array(CODES), z, tokens, decay=0.5, axis_name=dist.AXIS)[0], first

    spec = jax.sharding.PartitionSpec
    mapped = jax.jit(jax.shard_map(move, mesh=mesh, in_specs=spec(dist.AXIS), out_specs=spec()))(Z)
    tokens, _ = tokenizers.quantize(jnp.array(CODES), jnp.array(Z))
    alone, _ = tokenizers.moved(jnp.array(CODES), jnp.array(Z), tokens, decay=0.5, axis_name=None)
    np.testing.assert_allclose(mapped[0], alone, atol=1e-5)
    first = tokenizers.first_codebook(jax.random.key(0), jnp.array(Z), 3, 2, None)
    np.testing.assert_allclose(mapped[1], first, atol=1e-5)


def test_first_codes_are_the_clusters():
    middles = np.eye(4, dtype=np.float32)[:3]
    z = unit(np.repeat(middles, 5, axis=0) + 0.05 * draw(15, 4)).astype(np.float32)[:, None]
    first = tokenizers.first_codebook(jax.random.key(3), jnp.array(z), 3, 10, None)
    assert np.all(np.linalg.norm(first, axis=1) == pytest.approx(1.0, abs=1e-5))
    assert np.mean(np.max(z[:, 0] @ np.asarray(first).T, axis=1)) > 0.8
