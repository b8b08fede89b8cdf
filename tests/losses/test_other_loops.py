"""Losses in training loops of other libraries: jit over sharded arrays, and meshes with explicit axes."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_jax import losses

Z = np.random.default_rng(0).normal(size=(2, 16, 6)).astype(np.float32)
ROWS = PartitionSpec("batch")


def koleo(z1, z2):
    return losses.koleo(z1) + losses.koleo(z2)


@pytest.mark.parametrize(
    "loss", [losses.nt_xent, losses.barlow_twins, losses.vicreg, losses.negative_cosine, losses.hypersphere, koleo]
)
def test_sharded_arrays_have_the_loss_and_gradient_of_whole_ones(loss):
    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*Z)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), ROWS)
    found = [jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*jax.device_put(tuple(Z), sharding))]
    with jax.set_mesh(jax.make_mesh((len(jax.devices()),), ("batch",))):
        by_compiler = jax.sharding.auto_axes(loss, out_sharding=PartitionSpec())
        found.append(jax.jit(jax.value_and_grad(by_compiler, argnums=(0, 1)))(*jax.device_put(tuple(Z), ROWS)))
    for value, gradient in found:
        np.testing.assert_allclose(value, expected[0], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, expected[1])
