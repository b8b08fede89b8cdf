"""The same computation on eight devices as on one."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

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
