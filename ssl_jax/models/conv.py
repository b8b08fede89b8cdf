"""`Conv`: Flax's `nn.Conv`, with a gradient with respect to the kernel that is fast on CPU (kernel_gradient.py).

Some convolutions are products of matrices on a CPU (conv_products.py), and convolutions of single channels sums of
shifted images (depthwise.py).

The gradient of a convolution in groups of several channels takes XLA seconds: 16 s for 32 images of 14x14 positions and
128 channels in 32 groups, which takes 0.1 s group by group.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax.models.conv_products import Geometry, Pair, is_product, product
from ssl_jax.models.depthwise import depthwise
from ssl_jax.models.kernel_gradient import NHWC, kernel_gradient
from ssl_jax.models.recompute import keep


def _plain(x, kernel, strides, padding, dilation, groups):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=NHWC, feature_group_count=groups
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def convolve(
    x: Float[Array, "batch height width in_channels"],
    kernel: Float[Array, "kernel_height kernel_width group_in_channels out_channels"],
    strides: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    groups: int = 1,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """The convolution of neural networks. padding: zeros (before, after) in each direction; dilation: of the kernel.

    groups: equal groups of neighboring channels, in and out; a group's outputs are computed from its inputs alone.
    """
    plain = functools.partial(_plain, strides=strides, padding=padding, dilation=dilation, groups=groups)
    geometry = Geometry(strides, padding, dilation)
    if not is_product(x.shape, kernel.shape, geometry, groups):
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=functools.partial(product, geometry=geometry), default=plain)


def _forward(x, kernel, *geometry):
    return convolve(x, kernel, *geometry), (x, kernel)


def _backward(strides, padding, dilation, groups, residuals, g):
    x, kernel = residuals
    plain = functools.partial(_plain, strides=strides, padding=padding, dilation=dilation, groups=groups)

    def image_gradient(compute: Callable[..., Array], g: Array, kernel: Array) -> Array:
        return jax.linear_transpose(lambda x: compute(x, kernel), x)(g)[0]

    geometry = Geometry(strides, padding, dilation)
    of_plain = functools.partial(image_gradient, plain)
    if not is_product(x.shape, kernel.shape, geometry, groups):
        dx = of_plain(g, kernel)
    else:
        of_product = functools.partial(image_gradient, functools.partial(product, geometry=geometry))
        dx = lax.platform_dependent(g, kernel, cpu=of_product, default=of_plain)
    dkernel = lax.platform_dependent(
        x,
        g,
        cpu=functools.partial(
            grouped_kernel_gradient,
            groups=groups,
            kernel_size=kernel.shape[:2],
            strides=strides,
            padding=padding,
            dilation=dilation,
        ),
        default=lambda x, g: jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(g)[0],
    )
    return dx, dkernel


convolve.defvjp(_forward, _backward)


def grouped_kernel_gradient(
    x: Float[Array, "batch height width in_channels"],
    g: Float[Array, "batch out_height out_width out_channels"],
    groups: int,
    **geometry: Any,
) -> Float[Array, "kernel_height kernel_width group_in_channels out_channels"]:
    """`kernel_gradient` of a convolution in groups, one group after the other. geometry: its keyword arguments."""
    if groups == 1:
        return kernel_gradient(x, g, **geometry)
    x, g = (jnp.moveaxis(a.reshape(*a.shape[:3], groups, -1), 3, 0) for a in (x, g))
    found = lax.map(lambda of_group: kernel_gradient(*of_group, **geometry), (x, g))
    return jnp.moveaxis(found, 0, 3).reshape(*found.shape[1:4], -1)


def conv_general_dilated(
    x: Array,
    kernel: Array,
    strides: Any,
    padding: Any,
    *,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """lax.conv_general_dilated as nn.Conv calls it, computed by `convolve` where possible.

    lax itself computes the rest: other than two dimensions, several outputs for each of single channels, a dilated
    input, or a given precision.
    """
    of_one = feature_group_count == x.shape[-1] > 1
    several = of_one and kernel.shape[-1] != x.shape[-1]  # outputs of a channel
    if x.ndim != 4 or several or any(d != 1 for d in lhs_dilation or ()) or precision is not None:
        of_lax = lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            precision=precision,
        )
        return keep(of_lax)
    dilation = (rhs_dilation[0], rhs_dilation[1]) if rhs_dilation else (1, 1)
    if isinstance(padding, str):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:2], dilation, strict=True)]
        padding = lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
    # Under shard_map, a kernel that is the same on all devices is cast to vary as the images do. A custom_vjp gives
    # cotangents with the varying axes of its arguments, and the transpose of pcast sums the devices' gradients.
    missing = _varying_axes(x) - _varying_axes(kernel)
    kernel = lax.pcast(kernel, tuple(missing), to="varying") if missing else kernel
    strides, padding = tuple(strides), tuple(map(tuple, padding))
    if of_one:
        return keep(depthwise(x, kernel, Geometry(strides, padding, dilation)))
    return keep(convolve(x, kernel, strides, padding, dilation, feature_group_count))


def _varying_axes(x: Array) -> frozenset[str]:
    """The mapped axes along which x differs between devices."""
    return jax.typeof(x).manual_axis_type.varying


Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)
