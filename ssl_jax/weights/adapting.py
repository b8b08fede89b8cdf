"""Fits tensors of a file to a network of another image size, patch size or number of channels."""

# pyright: reportUnknownMemberType=false

import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from ssl_jax.models.positions import resize_positions
from ssl_jax.weights.layouts import Stored

# The first convolution of ResNet, of ViT and Swin, of ConvNeXt, of EfficientNet
FIRST_CONVOLUTIONS = ("conv1.weight", "patch_embed.proj.weight", "stem.0.weight", "conv_stem.weight")
INFLATIONS = ("sum", "mean", "first")


def channels_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of channels of images, from the first convolution [channels out, channels in, height, width]."""
    return next((shapes[name][1] for name in FIRST_CONVOLUTIONS if name in shapes), 3)


def fit(
    tensors: dict[str, Stored],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    class_position: bool,
    grid: tuple[int, int] | None,
    patch_size: int | None,
    channels: int | None,
    inflate: str,
) -> dict[str, Stored]:
    """The tensors with the shapes that are wanted, as far as the changes that are asked for explain the difference.

    class_position: whether the network has a position of its class token; if not, the file's is added to the token.
    grid: patches (down, across) that learned positions are resized to. patch_size, channels, inflate: those of
    `load_backbone`. None: no such change.
    """
    found = dict(tensors)
    positions, rows = found.get("pos_embed"), wanted.get("pos_embed", (1, 0))[1]
    if positions is not None and "pos_embed" in wanted:
        if len(positions.shape) == 2:
            positions = positions.reshape((1, *positions.shape))
        if not class_position and "cls_token" in found and _is_square(positions.shape[1] - 1):
            old, token = positions, found["cls_token"]
            found["cls_token"] = token.map(lambda values: values + old.read()[:, :1], token.shape)
            positions = old.map(lambda values: values[:, 1:], (1, old.shape[1] - 1, old.shape[2]))
        if grid is not None and positions.shape[1] != rows:
            first = rows - grid[0] * grid[1]
            resize = functools.partial(_resized_positions, first=first, grid=grid)
            positions = positions.map(resize, (1, rows, positions.shape[2]))
        found["pos_embed"] = positions
    for name in FIRST_CONVOLUTIONS:
        if name in found and name in wanted:
            kernel = found[name]
            if patch_size is not None and kernel.shape[-1] != patch_size:
                shape = (*kernel.shape[:2], patch_size, patch_size)
                kernel = kernel.map(functools.partial(resized_kernel, side=patch_size), shape)
            if channels is not None and kernel.shape[1] != channels:
                shape = (kernel.shape[0], channels, *kernel.shape[2:])
                kernel = kernel.map(functools.partial(inflated, channels=channels, how=inflate), shape)
            found[name] = kernel
    for name, tensor in found.items():
        # Axes of length 1, such as LayerScale's [dim, 1, 1] in torchvision, and linear maps as 1x1 convolutions
        if name in wanted and tensor.shape != wanted[name] and _long_axes(tensor.shape) == _long_axes(wanted[name]):
            found[name] = tensor.reshape(wanted[name])
    return found


def resized(old: Mapping[str, Stored], new: Mapping[str, Stored]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """{name: (old shape, new shape)} of the tensors that `fit` has made for other sizes."""
    return {
        name: (tensor.shape, new[name].shape)
        for name, tensor in old.items()
        if _long_axes(tensor.shape) != _long_axes(new[name].shape)
    }


def _long_axes(shape: tuple[int, ...]) -> list[int]:
    return [length for length in shape if length != 1]


def _is_square(count: int) -> bool:
    return count > 0 and round(count**0.5) ** 2 == count


def _resized_positions(positions: np.ndarray, first: int, grid: tuple[int, int]) -> np.ndarray:
    """positions: [1, first + patches of a square, dim]"""
    side = round((positions.shape[1] - first) ** 0.5)
    patches = jnp.asarray(positions[0, first:], jnp.float32).reshape(side, side, -1)
    resized = np.asarray(resize_positions(patches, grid)).reshape(1, -1, positions.shape[2])
    return np.concatenate([positions[:, :first], resized], axis=1)


def resized_kernel(
    kernel: Float[np.ndarray, "out channels height width"], side: int
) -> Float[np.ndarray, "out channels side side"]:
    """A patch embedding for patches of another size, such that an image resized with it is embedded alike.

    kernel' = pinv(B^T) kernel, where B resizes a patch bilinearly. Enlarged patches then give the same embeddings to
    the last digit; of shrunk ones, it is the best linear map for pixels of independent values.

    Source: Beyer et al. 2022, FlexiViT, arXiv:2212.08013, section 3.4.
    """
    old = kernel.shape[-2:]
    basis: jax.Array = jnp.eye(old[0] * old[1]).reshape(-1, *old)
    shape = (len(basis), side, side)
    resize = cast(Any, jax).image.resize
    resized = np.asarray(resize(basis, shape, "bilinear", precision=lax.Precision.HIGHEST), np.float64)
    inverse = np.linalg.pinv(resized.reshape(len(basis), -1))  # [side * side, old pixels]
    flat = kernel.astype(np.float64).reshape(*kernel.shape[:2], -1)
    return (flat @ inverse.T).reshape(*kernel.shape[:2], side, side).astype(np.float32)


def inflated(
    kernel: Float[np.ndarray, "out channels height width"], channels: int, how: str
) -> Float[np.ndarray, "out new_channels height width"]:
    """A first convolution for another number of channels. how: as in `load_backbone`."""
    if how == "first":
        kept = kernel[:, :channels]
        rest = np.zeros((len(kernel), channels - kept.shape[1], *kernel.shape[2:]), kernel.dtype)
        return np.concatenate([kept, rest], axis=1)
    one = kernel.mean(axis=1, keepdims=True)
    factor = kernel.shape[1] / channels if how == "sum" else 1.0
    return np.repeat(factor * one, channels, axis=1).astype(kernel.dtype)
