"""Batch normalization over the global batch, over one device's rows, or over groups of rows."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax.models._options import check_choice

KINDS = ("sync", "local", "grouped")


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias, one mean and variance for each channel.

    In training, mean and variance (biased, as in every library's forward pass) are those of
      "sync":    the global batch, over all devices of the axis;
      "local":   this device's rows;
      "grouped": each of `groups` contiguous, equal groups of the global batch's rows (in the devices' order), so that
                 the result is the same on any number of devices.
    Outside training, they are the running ones: averages over groups and devices, hence the same on every device.

    Statistics are float32, whatever x is. Source: Ioffe & Szegedy 2015, arXiv:1502.03167; groups: MoCo's ShuffleBN on
    one device, arXiv:1911.05722, section 3.3.
    """

    kind: str = "sync"
    groups: int = 1  # of "grouped"
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Any = nn.initializers.ones
    momentum: float = 0.9  # the share that a running statistic keeps: torch's 0.1
    eps: float = 1e-5
    dtype: Any = jnp.float32  # of the result

    def __post_init__(self):
        check_options(self.kind, self.groups)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *positions dim"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch *positions dim"]:
        """`axis_name`: mapped axis that the batch is split over; None if x is the whole batch."""
        dim = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, dim, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, dim, jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            if self.kind == "grouped":
                mean, var = grouped_statistics(x, self.groups, axis_name)
            else:
                mean, var = statistics(x, axis_name if self.kind == "sync" else None)
            if not self.is_initializing():
                own_axis = None if self.kind == "sync" else axis_name  # those of "sync" are averages already
                for running, value in ((running_mean, mean), (running_var, var)):
                    value = average(jnp.mean(value.reshape(-1, *dim), axis=0), own_axis)
                    running.value = self.momentum * running.value + (1 - self.momentum) * lax.stop_gradient(value)
        else:
            mean, var = running_mean.value, running_var.value
        factor = lax.rsqrt(var + self.eps)
        if self.use_scale:
            factor *= self.param("scale", self.scale_init, dim, jnp.float32)
        offset = -mean * factor
        if self.use_bias:
            offset += self.param("bias", nn.initializers.zeros, dim, jnp.float32)
        # Not (x - mean) * factor, which XLA's CPU backend writes to memory: resnet8 forward and backward, without the
        # kernel gradients, takes 88 ms a batch of 512 x 28 x 28 as it is here, 110 so, and 82 without BatchNorm.
        return (x * factor + offset).astype(self.dtype)


def check_options(batch_norm: str, batch_norm_groups: int) -> None:
    """Raises: ValueError if BatchNorm does not know them."""
    check_choice("batch_norm", batch_norm, KINDS)
    if batch_norm_groups < 1:
        raise ValueError(f"batch_norm_groups must be at least 1, got {batch_norm_groups}")


def average(value: Array, axis_name: str | None) -> Array:
    return value if axis_name is None else lax.pmean(value, axis_name)


def statistics(
    x: Float[Array, "batch *positions dim"], axis_name: str | None
) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
    """Mean and biased variance of each channel, over all devices of the axis."""
    axes = tuple(range(x.ndim - 1))
    mean = average(jnp.mean(x, axes), axis_name)
    return mean, average(jnp.mean(centered_square(x, mean), axes), axis_name)


def centered_square(x: Array, mean: Array) -> Array:
    # From the centered values: E[x^2] - E[x]^2 has no correct digit left in float32 where the mean is 3,000 deviations.
    # The gradient through the mean is that of sum(x - mean), which is 0.
    return jnp.square(x - lax.stop_gradient(mean))


def grouped_statistics(
    x: Float[Array, "batch *positions dim"], groups: int, axis_name: str | None
) -> tuple[Float[Array, "batch *ones dim"], Float[Array, "batch *ones dim"]]:
    """Each row's group's mean and biased variance of each channel.

    Groups may span devices as devices may hold several, hence sums over groups by a matrix of who is in which.
    Raises: ValueError if the global batch does not divide into the groups.
    """
    batch = len(x) * (1 if axis_name is None else lax.axis_size(axis_name))
    if batch % groups:
        raise ValueError(f"batch_norm_groups={groups} does not divide a batch of {batch} rows")
    first = 0 if axis_name is None else lax.axis_index(axis_name) * len(x)
    group = (first + jnp.arange(len(x))) // (batch // groups)
    member = jax.nn.one_hot(group, groups)  # [batch, groups]
    positions = tuple(range(1, x.ndim - 1))

    def group_mean(rows):
        total = jnp.einsum("bg,bd->gd", member, jnp.mean(rows, positions), precision="highest")
        if axis_name is not None:
            total = lax.psum(total, axis_name)
        of_rows = jnp.einsum("bg,gd->bd", member, total / (batch // groups), precision="highest")
        return jnp.expand_dims(of_rows, positions)

    mean = group_mean(x)
    return mean, group_mean(centered_square(x, mean))
