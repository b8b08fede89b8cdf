"""The gradient of a convolution with respect to its kernel, fast on a CPU.

XLA (JAX 0.10) computes that gradient as one convolution whose "image" is the whole batch and whose "kernel" is the
whole output gradient. Both are far larger than a core's cache and are read again for every entry of the result. So it
runs at a third of the speed of the forward pass. Three ways are faster, each for a few images at a time, summed:

- the same convolution: 2 to 4 times faster, and the best one for small maps;
- the product of patches and gradients: 2 times faster than that for strided kernels on images of which few fit in a
  cache; for a 1x1 convolution, 4 times;
- the product of columns of patches and rows of gradients (`_crossed`): 0.3 to 0.9 of the first one's time on maps of
  12x12 positions and more.

benchmarks/conv_gradient.py compares it with XLA's.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax.models.conv_products import Geometry, Pair, is_tiling, patches

# Of the arrays that a chunk of images reads: they should stay in a core's second-level cache. Measured with a cache
# of 2 MB: 0.4 to 1.6 MB are equally fast, 3.2 MB up to 3.5 times slower.
CHUNK_BYTES = 2**20
PATCH_BYTES = 2**25  # of a chunk's patches, at most
FEWEST_IMAGES = 4  # of a chunk; of fewer, patches are faster
CROSSED_FROM = 144  # positions of the output

NHWC = ("NHWC", "HWIO", "NHWC")
_OfChunk = Callable[[Array, Array], Array]


def kernel_gradient(
    x: Float[Array, "batch height width in_channels"],
    g: Float[Array, "batch out_height out_width out_channels"],
    *,
    kernel_size: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair = (1, 1),
) -> Float[Array, "kernel_height kernel_width in_channels out_channels"]:
    """The gradient of `conv.convolve` with respect to its kernel, from its input and the gradient of its output.

    It is accumulated in float32. The result has x's type.
    """
    of_chunk, fitting = _way(x.shape, g.shape, kernel_size, Geometry(strides, padding, dilation))
    batch = len(x)
    size = -(-batch // -(-batch // max(1, fitting)))  # images of a chunk, such that all chunks are about equal
    first = batch - (batch - 1) // size * size  # of the first chunk; the rest divides into chunks of `size`

    def add_chunk(i: Any, total: Array) -> Array:
        x_chunk, g_chunk = (lax.dynamic_slice_in_dim(a, first + i * size, size) for a in (x, g))
        return total + of_chunk(x_chunk.astype(jnp.float32), g_chunk.astype(jnp.float32))

    total = of_chunk(x[:first].astype(jnp.float32), g[:first].astype(jnp.float32))
    return lax.fori_loop(0, (batch - first) // size, add_chunk, total).astype(x.dtype)


def _way(x: tuple[int, ...], g: tuple[int, ...], kernel: Pair, geometry: Geometry) -> tuple[_OfChunk, int]:
    """(the fastest way for arrays of these shapes, how many images fit in a chunk)"""
    inputs, outputs = math.prod(x[1:]), math.prod(g[1:])
    fitting = CHUNK_BYTES // (4 * (inputs + outputs))

    def of_patches(x: Array, g: Array) -> Array:
        rows = patches(x, kernel, geometry)
        product = rows.reshape(-1, rows.shape[-1]).T @ g.reshape(-1, g.shape[-1])
        return product.reshape(*kernel, x.shape[-1], g.shape[-1])

    if is_tiling(x, kernel, geometry):
        return of_patches, fitting
    within = all(pad < side for pads, side in zip(geometry.padding, kernel, strict=True) for pad in pads)
    if geometry.strides == geometry.dilation == (1, 1) and within and math.prod(g[1:3]) >= CROSSED_FROM:
        return (
            lambda x, g: _crossed(x, g, kernel, geometry.padding),
            CHUNK_BYTES // (4 * (kernel[1] * inputs + kernel[0] * outputs)),
        )
    if fitting < FEWEST_IMAGES:
        return of_patches, PATCH_BYTES // (4 * math.prod(g[1:3]) * math.prod(kernel) * x[3])
    return lambda x, g: _convolved(x, g, kernel, geometry), fitting


def _crossed(x: Array, g: Array, kernel: Pair, padding: tuple[Pair, Pair]) -> Array:
    """The images are shifted by each column of the kernel, and the gradients by each of its rows.

    The product of all pairs of shifts is the result. So images and gradients are copied as often as the kernel has
    columns and rows, where patches would be copies of the images for each of its pixels.
    """
    rows, columns = kernel
    (top, bottom), (left, right) = padding
    height, width = x.shape[1], g.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (left, right), (0, 0)))
    x = jnp.concatenate([x[:, :, column : column + width] for column in range(columns)], axis=-1)
    g = jnp.pad(g, ((0, 0), (rows - 1 - top, rows - 1 - bottom), (0, 0), (0, 0)))
    g = jnp.concatenate([g[:, rows - 1 - row : rows - 1 - row + height] for row in range(rows)], axis=-1)
    product = x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1])
    return product.reshape(columns, -1, rows, g.shape[-1] // rows).transpose(2, 0, 1, 3)


def _convolved(x: Array, g: Array, kernel: Pair, geometry: Geometry) -> Array:
    """The gradient at kernel position p is the sum of x[o * stride + p * dilation - before] * g[o] over outputs o.

    This is a convolution with g as the kernel, channels as the batch and images as channels. Its padding is such that
    it has the kernel's size as outputs.
    """
    pads = [
        (before, (k - 1) * d + (o - 1) * s + 1 - before - i)
        for (before, _), k, d, o, s, i in zip(
            geometry.padding, kernel, geometry.dilation, g.shape[1:3], geometry.strides, x.shape[1:3], strict=True
        )
    ]
    # Transposed by hand to NHWC. Inside a loop, XLA's CPU backend does not transpose, but computes element by element.
    found = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        geometry.dilation,
        pads,
        rhs_dilation=geometry.strides,
        dimension_numbers=NHWC,
    )
    return found.transpose(1, 2, 0, 3)
