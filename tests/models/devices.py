"""The same computation on eight devices as on one."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ssl_jax.ops import shards

WHOLE, EACH = P(), P("data")  # arrays that every device has; arrays of which each has its rows


def on_eight(function, in_specs=(WHOLE, EACH), out_specs=EACH):
    """`function` of (variables, images), mapped over eight devices that share the images along the axis "data"."""
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("data",))
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=True)


def trained(module, variables, images, axis_name=None):
    """((a loss of the features in training, the new statistics), the loss's gradient) of a network with BatchNorm."""

    def loss(params):
        h, updated = module.apply(
            {**variables, "params": params},
            images,
            train=True,
            axis_name=axis_name,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        value = jnp.mean(jnp.sin(h))
        return (value if axis_name is None else lax.pmean(value, axis_name)), updated

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


def assert_blocks_gather_their_shards(module, params, images, least):
    """Two devices with half of each block's leaves give the features of the whole, to 1e-5.

    Leaves with an even number of rows are split. least: more of them there must be, or nothing is shown.
    """

    def axis(path, leaf):
        return 0 if len(leaf) % 2 == 0 and shards.gathered_late(path) else shards.REPLICATED

    axes = jax.tree.map_with_path(axis, params)
    assert jax.tree.leaves(axes).count(0) > least
    specs = jax.tree.map(lambda axis: EACH if axis == 0 else WHOLE, axes)

    def on_device(params, images):
        params = shards.gather(params, axes, shards.Route("data"), to="varying")
        return module.apply({"params": params}, images, train=True, axis_name="data")

    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    split = jax.shard_map(on_device, mesh=mesh, in_specs=(specs, EACH), out_specs=EACH)
    found, expected = jax.jit(lambda p, x: (split(p, x), module.apply({"params": p}, x)))(params, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
