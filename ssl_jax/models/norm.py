"""Batch normalization over the global batch, one device's rows, or groups of rows; LayerNorm of single images."""

import functools
import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ssl_jax.keys import COUNT, OneOf
from ssl_jax.models._options import check_choice
from ssl_jax.models.hidden import at_size, hide
from ssl_jax.models.recompute import keep
from ssl_jax.ops import of_each_device, vary_like

KINDS = ("sync", "local", "grouped", "layer")

# Annotations of the keys batch_norm and batch_norm_groups, which several models have.
NormKind = Annotated[
    str,
    OneOf(KINDS),
    "Which rows share the mean and variance of BatchNorm. sync: the global batch. local: those of a device.",
    "grouped: each of batch_norm_groups groups of the global batch. layer: none; LayerNorm takes BatchNorm's place.",
]
NormGroups = Annotated[
    int, COUNT, "Equal groups of contiguous rows that the global batch is divided into, where batch_norm is grouped."
]


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias, one mean and variance for each channel.

    In training, mean and variance (biased, as in every library's forward pass) are those of
      "sync":    the global batch, over all devices of the axis;
      "local":   this device's rows;
      "grouped": each of `groups` contiguous, equal groups of the global batch's rows (in the devices' order), so that
                 the result is the same on any number of devices.
    Outside training, they are the running ones: averages over groups and devices, hence the same on every device.

    "layer" is not BatchNorm. In training and outside it, each row is normalized by one mean and variance, those of all
    its own positions and channels. Nothing is kept (Ba et al. 2016, arXiv:1607.06450; GroupNorm of one group).

    Statistics are float32, whatever x's type is. Source: Ioffe & Szegedy 2015, arXiv:1502.03167; groups: MoCo's
    ShuffleBN on one device, arXiv:1911.05722, section 3.3.
    """

    kind: str = "sync"
    groups: int = 1  # of "grouped"
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Any = nn.initializers.ones
    momentum: float = 0.9  # the share that a running statistic keeps; torch states the other share, 0.1
    eps: float = 1e-5
    dtype: Any = jnp.float32  # of the result

    def __post_init__(self):
        check_options(self.kind, self.groups)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *positions dim"],
        train: bool = False,
        axis_name: str | None = None,
        hidden: Bool[Array, "batch square_rows square_columns"] | None = None,
    ) -> Float[Array, "batch *positions dim"]:
        """The normalized x.

        Args:
          axis_name: mapped axis that the batch is sharded over; None if x is the whole batch.
          hidden: squares of the positions, rows and columns, that count in no statistic and are 0 in the result; see
            hidden.py. None: everything counts.

        Raises: ValueError for hidden squares with the kinds "grouped" and "layer".
        """
        if hidden is not None:
            if self.kind not in ("sync", "local"):
                raise ValueError(
                    f"batch_norm={self.kind!r} has no statistics of visible positions alone; use 'sync' or 'local'"
                )
            hidden = at_size(hidden, x.shape[1:-1])
        if self.kind == "layer":
            x = x.astype(jnp.float32)
            return self.rescale(x, *row_statistics(x))
        dim = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, dim, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, dim, jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            found, over_all = self.measure(x, axis_name, hidden)
            if not self.is_initializing():
                for running, value in zip((running_mean, running_var), over_all, strict=True):
                    running.value = self.momentum * running.value + (1 - self.momentum) * lax.stop_gradient(value)
            # Both vary from here on, in one array: then one reduction sums their gradients over the devices.
            mean, var = vary_like(found, x)
        else:
            mean, var = running_mean.value, running_var.value
        return hide(self.rescale(x, mean, var), hidden)

    def measure(self, x, axis_name, hidden):
        """(mean and variance that x is normalized by, [2, ..., dim]; those that the running ones follow, [2, dim])"""
        if self.kind == "grouped":
            return grouped_statistics(x, self.groups, axis_name)
        found = statistics(x, hidden)
        if self.kind == "local":
            return found, average(found, axis_name)
        if axis_name is None:
            return found, found
        if hidden is None:
            found = combined(keep(of_each_device(found, axis_name)))
        else:
            sent = jnp.append(found, jnp.sum(~hidden, dtype=jnp.float32))  # one collective for all
            parts = keep(of_each_device(sent, axis_name))
            found = combined(parts[:, :-1].reshape(-1, *found.shape), lax.stop_gradient(parts[:, -1]))
        return found, found

    def rescale(self, x, mean, var):
        """(x - mean) / sqrt(var + eps) * scale + bias; only `__call__` calls this."""
        dim = x.shape[-1:]
        factor = lax.rsqrt(var + self.eps)
        if self.use_scale:
            factor *= self.param("scale", self.scale_init, dim, jnp.float32)
        offset = -mean * factor
        if self.use_bias:
            offset += self.param("bias", nn.initializers.zeros, dim, jnp.float32)
        # Not (x - mean) * factor, which XLA's CPU backend writes to memory. For a batch of 512 x 28 x 28, resnet8
        # forward and backward, without the kernel gradients, takes 88 ms like this, 110 ms with (x - mean) * factor,
        # and 82 ms without BatchNorm.
        return (x * factor + offset).astype(self.dtype)


class IterNorm(nn.Module):
    """W (x - mean) * scale + bias, one mean and W for each of `groups` equal groups of neighboring dimensions.

    W is approximately the inverse root of the group's covariance (biased, over the global batch, plus eps). So the
    outputs of a group are uncorrelated and have variance 1. W is found by a few Newton iterations from the identity.
    Each iteration lengthens a direction 1.5 times at most. So after 5 iterations, a direction that has less than
    1.5^-10 = 1/58 of the group's variance stays smaller. Outside training, mean and W are the running ones. All is
    float32.

    Source: Huang et al. 2019, arXiv:1904.03441; groups, iterations and eps are those of the authors' code.

    Raises: ValueError where the groups do not divide the dimensions.
    """

    groups: int = 64
    iterations: int = 5
    momentum: float = 0.9  # the share that a running statistic keeps
    eps: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch dim"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch dim"]:
        """`axis_name`: mapped axis that the batch is sharded over; None if x is the whole batch."""
        dim = x.shape[-1]
        if self.groups < 1 or dim % self.groups:
            raise ValueError(f"groups={self.groups} does not divide {dim} dimensions; use a divisor of {dim}")
        size = dim // self.groups
        identity = jnp.eye(size)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (dim,), jnp.float32)
        running_w = self.variable("batch_stats", "whitening", lambda: jnp.stack([identity] * self.groups))
        x = x.astype(jnp.float32)
        if train:
            mean = average(jnp.mean(x, axis=0), axis_name)
            centered = (x - mean).reshape(-1, self.groups, size)
            covariance = jnp.einsum("bgi,bgj->gij", centered, centered, precision="highest") / len(x)
            w = inverse_root(average(covariance, axis_name) + self.eps * identity, self.iterations)
            if not self.is_initializing():
                for running, value in ((running_mean, mean), (running_w, w)):
                    running.value = self.momentum * running.value + (1 - self.momentum) * lax.stop_gradient(value)
        else:
            centered, w = (x - running_mean.value).reshape(-1, self.groups, size), running_w.value
        x = jnp.einsum("gij,bgj->bgi", w, centered, precision="highest").reshape(x.shape)
        scale = self.param("scale", nn.initializers.ones, (dim,), jnp.float32)
        return x * scale + self.param("bias", nn.initializers.zeros, (dim,), jnp.float32)


def inverse_root(matrices: Float[Array, "groups dim dim"], iterations: int) -> Float[Array, "groups dim dim"]:
    """Approximately matrix^(-1/2) of positive definite matrices: from P = 1, P <- (3 P - P^3 matrix / trace) / 2.

    P tends to the inverse root of matrix / trace, and M = P^2 matrix / trace tends to 1. M is updated beside P, not
    computed from P, so that rounding errors do not grow with the iterations. Otherwise, from iteration 12 on, the
    result would be nothing but rounding errors.
    """
    times = functools.partial(jnp.matmul, precision="highest")
    identity = jnp.eye(matrices.shape[-1])
    inverse_trace = 1.0 / jnp.trace(matrices, axis1=1, axis2=2)[:, None, None]
    m = matrices * inverse_trace
    p = jnp.broadcast_to(identity, m.shape)
    for _ in range(iterations):
        factor = 1.5 * identity - 0.5 * m
        p, m = times(p, factor), times(factor, times(m, factor))
    return p * jnp.sqrt(inverse_trace)


def check_options(batch_norm: str, batch_norm_groups: int) -> None:
    """Raises: ValueError for options that BatchNorm does not know."""
    check_choice("batch_norm", batch_norm, KINDS)
    if batch_norm_groups < 1:
        raise ValueError(f"batch_norm_groups must be at least 1, got {batch_norm_groups}")


def average(value: Array, axis_name: str | None) -> Array:
    return value if axis_name is None else lax.pmean(value, axis_name)


def statistics(
    x: Float[Array, "batch *positions dim"], hidden: Bool[Array, "batch rows columns"] | None = None
) -> Float[Array, "2 dim"]:
    """Mean and biased variance of each channel, over these rows; not over hidden positions. 0 if all are hidden."""
    axes = tuple(range(x.ndim - 1))

    def mean_of(values: Array) -> Array:
        if hidden is None:
            return keep(jnp.mean(values, axes))
        visible = jnp.sum(~hidden, dtype=jnp.float32)
        return keep(jnp.sum(hide(values, hidden), axes) / jnp.maximum(visible, 1.0))

    mean = mean_of(x)
    return jnp.stack([mean, mean_of(centered_square(x, mean))])


def combined(
    parts: Float[Array, "parts 2 *groups dim"], counts: Float[Array, " parts"] | None = None
) -> Float[Array, "2 *groups dim"]:
    """`statistics` of all rows, from those of parts: one collective can bring them all.

    counts: numbers of positions of the parts, not all 0; None: the parts have equal size.

    The variance is the mean of the variances plus the variance of the means. So nothing is subtracted but means (Chan
    et al. 1979, Updating formulae and a pairwise algorithm for computing sample variances, eq. 2.1).
    """
    means, variances = parts[:, 0], parts[:, 1]
    mean = jnp.average(means, axis=0, weights=counts)
    return jnp.stack([mean, jnp.average(variances + jnp.square(means - mean), axis=0, weights=counts)])


def centered_square(x: Array, mean: Array) -> Array:
    # From the centered values: in float32, E[x^2] - E[x]^2 has no correct digit left if the mean is 3,000 deviations.
    # No gradient goes through the mean, as it would be that of sum(x - mean), which is 0.
    return jnp.square(x - lax.stop_gradient(mean))


def row_statistics(
    x: Float[Array, "batch *positions dim"],
) -> tuple[Float[Array, "batch *ones 1"], Float[Array, "batch *ones 1"]]:
    """Each row's mean and biased variance over all its positions and channels."""
    axes = tuple(range(1, x.ndim))
    mean = jnp.mean(x, axes, keepdims=True)
    return mean, jnp.mean(centered_square(x, mean), axes, keepdims=True)


def grouped_statistics(
    x: Float[Array, "batch *positions dim"], groups: int, axis_name: str | None
) -> tuple[Float[Array, "2 batch *ones dim"], Float[Array, "2 dim"]]:
    """For each row, the mean and biased variance of each channel in the row's group; and their means over all groups.

    The rows of a device are cut into equal parts, each within one group. A group of several devices is combined from
    the parts of them all.

    Raises: ValueError if the global batch does not divide into the groups.
    """
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    batch = len(x) * devices
    if batch % groups:
        raise ValueError(
            f"batch_norm_groups={groups} does not divide a batch of {batch} rows; use a divisor of {batch}"
        )
    size = math.gcd(len(x), batch // groups)  # of a part
    parts = x.reshape(-1, size, *x.shape[1:])
    found = jax.vmap(statistics)(parts)  # [parts, 2, dim]
    if size == batch // groups:  # no group spans devices
        of_parts, over_all = found, average(jnp.mean(found, axis=0), axis_name)
    else:
        assert axis_name is not None  # as one device holds whole groups
        found = keep(of_each_device(found, axis_name))
        of_groups = jax.vmap(combined)(found.reshape(groups, -1, *found.shape[2:]))
        first = lax.axis_index(axis_name) * len(parts)
        of_parts = of_groups[(first + jnp.arange(len(parts))) // (batch // groups // size)]
        over_all = jnp.mean(of_groups, axis=0)
    of_rows = jnp.repeat(of_parts.swapaxes(0, 1), size, axis=1)  # [2, batch, dim]
    return jnp.expand_dims(of_rows, tuple(range(2, x.ndim))), over_all
