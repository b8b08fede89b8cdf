import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ssl_jax import losses
from tests.losses.checks import finite_differences


def reference_nt_xent(z1, z2, temperature):
    """Anchor by anchor, in float64, from the paper's eq. 1."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    n = len(z1)
    total = 0.0
    for i in range(2 * n):
        cosine = [z[i] @ z[k] / np.linalg.norm(z[i]) / np.linalg.norm(z[k]) for k in range(2 * n)]
        others = sum(np.exp(cosine[k] / temperature) for k in range(2 * n) if k != i)
        total -= np.log(np.exp(cosine[(i + n) % (2 * n)] / temperature) / others)
    return total / (2 * n)


def draw(n=6, dim=4, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    z1 = rng.normal(size=(n, dim))
    return (scale * z1).astype(np.float32), (scale * (z1 + 0.5 * rng.normal(size=(n, dim)))).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("chunk_size", [None, 5, 12, 100])  # keys: 12
def test_nt_xent_value_and_gradient_equal_the_papers_formula(temperature, chunk_size):
    z1, z2 = draw()
    loss = functools.partial(losses.nt_xent, temperature=temperature, chunk_size=chunk_size)
    value, (g1, g2) = jax.value_and_grad(loss, argnums=(0, 1))(z1, z2)
    np.testing.assert_allclose(value, reference_nt_xent(z1, z2, temperature), rtol=1e-5)
    # 1e-4: float32 cosines of 1 +- 6e-8, divided by the temperature and by it again in the gradient.
    expected = finite_differences(lambda z: reference_nt_xent(z, z2, temperature), z1)
    np.testing.assert_allclose(g1, expected, rtol=1e-4, atol=1e-5)
    expected = finite_differences(lambda z: reference_nt_xent(z1, z, temperature), z2)
    np.testing.assert_allclose(g2, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [2, 8])
def test_nt_xent_of_identical_embeddings_is_the_chance_level(n):
    z = jnp.ones((n, 3))
    np.testing.assert_allclose(losses.nt_xent(z, z), np.log(2 * n - 1), rtol=1e-6)


def test_nt_xent_of_orthogonal_pairs():
    # Each anchor: its positive at cosine 1, 2(n-1) others at 0.
    z = jnp.eye(4)
    np.testing.assert_allclose(losses.nt_xent(z, z, temperature=0.5), np.log(np.exp(2.0) + 6) - 2.0, rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 6])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_nt_xent_over_devices_is_that_of_the_whole_batch(devices, chunk_size):
    z1, z2 = draw(n=16, dim=5)
    loss = functools.partial(losses.nt_xent, temperature=0.2, chunk_size=chunk_size)
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(z1, z2)

    def on_device(z1, z2):
        mean = lambda z1, z2: lax.pmean(loss(z1, z2, axis_name="i"), "i")  # noqa: E731
        return jax.value_and_grad(mean, argnums=(0, 1))(z1, z2)

    mesh = Mesh(np.array(jax.devices()[:devices]), ("i",))
    split = PartitionSpec("i")
    out_specs = (PartitionSpec(), (split, split))
    mapped = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=(split, split), out_specs=out_specs))
    mapped_value, mapped_gradients = mapped(z1, z2)
    np.testing.assert_allclose(mapped_value, value, rtol=1e-5)
    for got, expected in zip(mapped_gradients, gradients, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nt_xent_does_not_depend_on_the_scale(scale, dtype):
    if scale < 1e-12:
        expected = np.log(11)  # below the norm's eps every embedding counts as nearly zero: chance level
        tolerance = 1e-3
    else:
        expected, tolerance = reference_nt_xent(*draw(scale=1.0), 0.5), 1e-5 if dtype == jnp.float32 else 2e-2
    z1, z2 = (jnp.asarray(z * scale, dtype) for z in draw(scale=1.0))
    value, gradient = jax.value_and_grad(functools.partial(losses.nt_xent, temperature=0.5))(z1, z2)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=tolerance)
    assert np.all(np.isfinite(gradient.astype(jnp.float32)))


def test_nt_xent_of_duplicated_images_and_zero_rows_is_finite():
    z1, z2 = draw()
    z1[1], z2[1] = z1[0], z2[0]
    z1[2] = 0.0
    value, gradient = jax.value_and_grad(losses.nt_xent)(jnp.asarray(z1), jnp.asarray(z2))
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_nt_xent_streamed_holds_no_matrix_of_all_pairs():
    z1, z2 = draw(n=512, dim=8)
    gradient = jax.jit(jax.grad(functools.partial(losses.nt_xent, chunk_size=32)))
    plain = jax.jit(jax.grad(losses.nt_xent))
    pairs = 4 * (2 * 512) ** 2  # bytes
    assert plain.lower(z1, z2).compile().memory_analysis().temp_size_in_bytes > pairs
    assert gradient.lower(z1, z2).compile().memory_analysis().temp_size_in_bytes < pairs / 4


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4,)), ((4, 3), (4, 2))])
@pytest.mark.usefixtures("unchecked")
def test_nt_xent_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="of one shape"):
        losses.nt_xent(*(jnp.ones(shape) for shape in shapes))


def test_nt_xent_refuses_an_empty_chunk():
    with pytest.raises(ValueError, match="chunk_size"):
        losses.nt_xent(jnp.ones((2, 2)), jnp.ones((2, 2)), chunk_size=0)
