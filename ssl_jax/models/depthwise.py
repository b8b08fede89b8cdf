"""`depthwise`: the convolution of each channel by itself, fast on a CPU.

XLA's CPU backend (JAX 0.10) computes it one number after the other. As a sum of shifted images, each times a number for
each channel, the 7x7 convolutions of a ConvNeXt take a tenth of the time, and so do their gradients.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax.models.conv_products import Geometry, shifted
from ssl_jax.ops import vary_like


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width 1 channels"],
    geometry: Geometry,
) -> Float[Array, "batch out_height out_width channels"]:
    """Each channel convolved with its own kernel."""
    of_shifts, plain = (functools.partial(function, geometry=geometry) for function in (_shifts, _plain))
    return lax.platform_dependent(x, kernel, cpu=of_shifts, default=plain)


def _plain(x: Array, kernel: Array, geometry: Geometry) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _shifts(x: Array, kernel: Array, geometry: Geometry) -> Array:
    height, width, _, channels = kernel.shape
    parts = shifted(x, (height, width), geometry)
    terms = (part * factor for part, factor in zip(parts, kernel.reshape(-1, channels), strict=True))
    return functools.reduce(jnp.add, terms)


def _forward(x: Array, kernel: Array, geometry: Geometry) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(x, kernel, geometry), (x, kernel)


def _backward(geometry: Geometry, residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = residuals

    def of_plain(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        _, pull_back = jax.vjp(functools.partial(_plain, geometry=geometry), x, kernel)
        return pull_back(g)

    def of_shifts(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        return _image_gradient(x.shape, kernel, g, geometry), _kernel_gradient(x, kernel, g, geometry)

    return lax.platform_dependent(x, kernel, g, cpu=of_shifts, default=of_plain)


def _image_gradient(shape: tuple[int, ...], kernel: Array, g: Array, geometry: Geometry) -> Array:
    """The convolution of the output's gradient, with zeros between its rows where strides skipped, and the kernel
    turned by half a turn."""
    edges = [(0, 0, 0)]  # (before, after, between): pixels of zeros; a negative number cuts off
    for side, out, k, s, (before, _), d in zip(
        shape[1:3], g.shape[1:3], kernel.shape[:2], geometry.strides, geometry.padding, geometry.dilation, strict=True
    ):
        edges.append(((k - 1) * d - before, side + before - (out - 1) * s - 1, s - 1))
    g = lax.pad(g, jnp.zeros((), g.dtype), [*edges, (0, 0, 0)])
    return _shifts(g, kernel[::-1, ::-1], Geometry((1, 1), ((0, 0), (0, 0)), geometry.dilation))


def _kernel_gradient(x: Array, kernel: Array, g: Array, geometry: Geometry) -> Array:
    """Row after row of the output, so that what is added to stays in the cache; the columns are summed at the end."""
    height, width, _, channels = kernel.shape
    batch, rows, columns, _ = g.shape
    (row_step, column_step), (row_dilation, column_dilation) = geometry.strides, geometry.dilation
    x = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0))).astype(jnp.float32)
    g = g.astype(jnp.float32)
    seen = (1, (height - 1) * row_dilation + 1, x.shape[2], channels)  # of the images, by a row of the output

    def add_row(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        image, row = i // rows, i % rows
        pixels = lax.dynamic_slice(x, (image, row * row_step, 0, 0), seen)[0, ::row_dilation]
        of_row = lax.dynamic_slice(g, (image, row, 0, 0), (1, 1, columns, channels))[0]

        def of_column(column: int) -> Array:
            left = column * column_dilation
            return pixels[:, left : left + (columns - 1) * column_step + 1 : column_step] * of_row

        return tuple(total + of_column(column) for column, total in enumerate(sums))

    zeros = vary_like(jnp.zeros((height, columns, channels), jnp.float32), g)
    sums = lax.fori_loop(0, batch * rows, add_row, (zeros,) * width)
    return jnp.stack([total.sum(axis=1) for total in sums], axis=1)[:, :, None].astype(kernel.dtype)


depthwise.defvjp(_forward, _backward)
