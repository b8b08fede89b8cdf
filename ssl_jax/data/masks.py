"""Random masks over the patches of a view, made on the device: which patches a masked model does not see."""

import functools
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import keys
from ssl_jax.keys import COUNT, POSITIVE, SHARE, OneOf

KINDS = ("random", "block", "inverse")
BLOCK_TRIES = 40  # rectangles that are tried for one mask


@dataclass(frozen=True)
class Mask:
    """How the patches of an image are masked.

    Source: Bao et al. 2021, arXiv:2106.08254, algorithm 1 (block); He et al. 2021, arXiv:2111.06377 (random); Darcet et
      al. 2025, CAPI, arXiv:2502.08769, and the authors' code (inverse).
    """

    patch_size: int  # pixels a side; the model decides it, so it is no key
    ratio: Annotated[
        tuple[float, float],
        SHARE,
        "(least, most) share of the patches that is masked, uniform for each image; equal: the same for all images.",
    ]
    images: Annotated[float, SHARE, "Probability that an image is masked at all."] = 1.0
    kind: Annotated[
        str,
        OneOf(KINDS),
        "random: each patch is as likely as any other. block: rectangles that may overlap, until the number is reached",
        "(single patches fill what no rectangle fits in), as in BEiT.",
        "inverse: all but one rectangle, which goes on at the opposite edge where it leaves the image, as in CAPI.",
    ] = "random"
    unit: Annotated[
        int, COUNT, "Side, in patches, of the squares that random masks as one (SimMIM: 32 pixels, 2 patches of 16)."
    ] = 1
    min_patches: Annotated[int, COUNT, "Least area of a rectangle of block, in patches."] = 4
    aspect: Annotated[
        tuple[float, float], POSITIVE, "(least, most) height / width of a rectangle of block or inverse; log-uniform."
    ] = (0.3, 1 / 0.3)

    def __post_init__(self):
        keys.check_fields(self)
        keys.check_order(self, "ratio", "aspect")
        if self.patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {self.patch_size}")

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Number of units (down, across) in an image of `size` pixels. Raises: ValueError if they do not fill it."""
        side = self.patch_size * (self.unit if self.kind == "random" else 1)
        if size[0] % side or size[1] % side:
            raise ValueError(
                f"a view of {size[0]}x{size[1]} pixels does not divide into masked squares of {side} "
                f"pixels; use sides that are multiples of {side}"
            )
        return size[0] // side, size[1] // side

    def most(self, size: tuple[int, int]) -> int:
        """The largest number of patches that it masks in an image of `size` pixels."""
        height, width = self.grid(size)
        return int(np.round(np.float32(height * width) * np.float32(self.ratio[1]))) * (
            self.unit**2 if self.kind == "random" else 1
        )


def random_mask(key: Key[Array, ""], size: tuple[int, int], mask: Mask) -> Bool[Array, " patches"]:
    """The mask of one image of `size` (height, width) pixels, row by row: True where a patch is masked."""
    key_ratio, key_image, key_mask = random.split(key, 3)
    height, width = mask.grid(size)
    low, high = mask.ratio
    count = jnp.round(height * width * random.uniform(key_ratio, minval=low, maxval=high)).astype(jnp.int32)
    if mask.kind == "random":
        masked = _fill(random.uniform(key_mask, (height, width)), count)
        masked = jnp.repeat(jnp.repeat(masked, mask.unit, axis=0), mask.unit, axis=1)
    elif mask.kind == "block":
        masked = _blocks(key_mask, (height, width), count, mask)
    else:
        masked = _all_but_one(key_mask, (height, width), count, mask)
    return (masked & random.bernoulli(key_image, mask.images)).ravel()


def _fill(noise: Float[Array, "height width"], count: Int[Array, ""]) -> Bool[Array, "height width"]:
    """True at the `count` places of least noise."""
    return (jnp.argsort(jnp.argsort(noise.ravel())) < count).reshape(noise.shape)


def _blocks(
    key: Key[Array, ""], grid: tuple[int, int], count: Int[Array, ""], mask: Mask
) -> Bool[Array, "height width"]:
    height, width = grid
    rows, columns = np.indices(grid)
    key_blocks, key_rest = random.split(key)

    def add(masked: Bool[Array, "height width"], draws: Float[Array, "4"]) -> tuple[Bool[Array, "height width"], None]:
        remaining = count - jnp.sum(masked)
        area = mask.min_patches + draws[0] * jnp.maximum(remaining - mask.min_patches, 0)
        aspect = jnp.exp(np.log(mask.aspect[0]) + draws[1] * (np.log(mask.aspect[1]) - np.log(mask.aspect[0])))
        h, w = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        top, left = jnp.floor(draws[2] * (height - h + 1)), jnp.floor(draws[3] * (width - w + 1))
        block = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
        fits = (h >= 1) & (w >= 1) & (h <= height) & (w <= width)
        fits &= jnp.sum(masked | block) <= count
        return jnp.where(fits, masked | block, masked), None

    draws = random.uniform(key_blocks, (BLOCK_TRIES, 4))
    # Nothing is masked at first. It is made from the draws, so that it has their varying axes under shard_map.
    start = jnp.broadcast_to(draws[0, 0] < 0.0, grid)
    masked, _ = lax.scan(add, start, draws)
    return _fill(random.uniform(key_rest, grid) - masked, count)  # masked patches come first


def _all_but_one(
    key: Key[Array, ""], grid: tuple[int, int], count: Int[Array, ""], mask: Mask
) -> Bool[Array, "height width"]:
    """True for `count` patches: all but one rectangle, whose last row may be shorter than the others."""
    height, width = grid
    draws = random.uniform(key, (3,))
    seen = height * width - count
    area = jnp.maximum(seen, 1)
    # The rectangle is not to be longer than the grid, whatever mask.aspect allows.
    least = jnp.maximum(np.log(mask.aspect[0]), jnp.log(area / width**2))
    most = jnp.minimum(np.log(mask.aspect[1]), jnp.log(height**2 / area))
    aspect = jnp.exp(jnp.minimum(least, most) + draws[0] * jnp.maximum(most - least, 0.0))
    h = jnp.minimum(jnp.ceil(jnp.sqrt(area * aspect)), height)
    w = jnp.clip(jnp.ceil(jnp.sqrt(area / aspect)), jnp.ceil(area / h), width)
    shift = jnp.floor(draws[1:, None, None] * jnp.array([[[height]], [[width]]]))
    # The rectangle's own rows and columns, from 0.
    rows, columns = (jnp.asarray(np.indices(grid)) + shift) % jnp.array([[[height]], [[width]]])
    return ~((rows < h) & (columns < w) & (rows * w + columns < seen))


def random_masks(keys: Key[Array, " batch"], size: tuple[int, int], mask: Mask) -> Bool[Array, "batch patches"]:
    """`random_mask` of each image."""
    return jax.vmap(functools.partial(random_mask, size=size, mask=mask))(keys)
