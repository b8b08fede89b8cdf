"""Losses in a training loop of somebody else: plain jit with a sharded batch, an explicit-axes mesh, shard_map."""

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from ssl_jax import losses

z1, z2 = jax.random.normal(jax.random.key(0), (2, 64, 16))
devices = np.array(jax.devices())

# 1. jit over arrays that are sharded: the compiler divides the work, so axis_name stays None.
sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(devices, ("batch",)), P("batch"))
value, gradient = jax.jit(jax.value_and_grad(losses.nt_xent))(*jax.device_put((z1, z2), sharding))

# 2. A mesh with explicit axes: auto_axes leaves the loss to the compiler.
with jax.set_mesh(jax.make_mesh((len(devices),), ("batch",))):
    loss = jax.sharding.auto_axes(losses.nt_xent, out_sharding=P())
    found = [jax.jit(jax.value_and_grad(loss))(*jax.device_put((z1, z2), P("batch")))]


# 3. shard_map or pmap: a device sees its own rows, and axis_name says over which axis they are divided.
def mapped(z1, z2):
    def global_loss(z1):
        return jax.lax.pmean(losses.nt_xent(z1, z2, axis_name="batch"), "batch")

    return jax.value_and_grad(global_loss)(z1)


rows = jax.shard_map(mapped, mesh=sharding.mesh, in_specs=P("batch"), out_specs=(P(), P("batch")))
found.append(jax.jit(rows)(z1, z2))
for other_value, other_gradient in found:
    np.testing.assert_allclose(other_value, value, rtol=1e-5)
    np.testing.assert_allclose(other_gradient, gradient, atol=1e-6)
print(value)
