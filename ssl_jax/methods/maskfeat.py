"""MaskFeat."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax import losses
from ssl_jax.methods import _common, _tokens, _vit
from ssl_jax.models.patches import patchify
from ssl_jax.models.vit import weight_init


@dataclasses.dataclass(frozen=True)
class MaskFeat:
    """Predicts histograms of oriented gradients of an image's hidden patches, by one linear layer on a ViT.

    `config.mask` is to hide blocks with a share of 0.4.

    Source: Wei et al. 2021, arXiv:2112.09133, section 3, and the authors' code, whose initialization this is. Their
    ViT's positions are learned.
    """

    backbone: nn.Module
    run: _common.Run
    cell: int = 8  # pixels a side of a histogram; a patch has (patch_size / cell)^2 of them for each channel
    bins: int = 9

    views: ClassVar[tuple[str, ...]] = ("view",)
    masked: ClassVar[tuple[str, ...]] = views
    chance_level: ClassVar[None] = None  # the spread of the histograms: see the metric mean_loss

    def __post_init__(self):
        _tokens.check_patches(self)
        _common.check_positive(self, "cell", "bins")
        if self.backbone.patch_size % self.cell:
            raise ValueError(f"cell={self.cell} does not divide patches of {self.backbone.patch_size} pixels")

    @property
    def cells(self) -> int:
        """Of a patch, a side."""
        return self.backbone.patch_size // self.cell

    def head(self, channels: int) -> nn.Module:
        return nn.Dense(self.cells**2 * channels * self.bins, kernel_init=weight_init)

    def init(self, rng, images):
        keys = jax.random.split(rng, 4)
        params, batch_stats = _common.init({"backbone": self.backbone}, keys[0], images)
        params["backbone"] = _vit.draw_maskfeat(keys[3], params["backbone"])
        params["mask_token"] = weight_init(keys[1], (self.backbone.dim,))
        head = self.head(images.shape[-1])
        params["head"] = head.init(keys[2], jnp.zeros((1, self.backbone.dim)))["params"]
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,), (mask,) = batch["views"], batch["masks"]
        patches = _tokens.encode_masked(self.backbone, params, images, mask, axis_name=axis_name, rng=rng)
        prediction = self.head(images.shape[-1]).apply({"params": params["head"]}, patches)
        target = patchify(hog(images, cell=self.cell, bins=self.bins), self.cells)
        loss = losses.masked_pixels(prediction, target, mask, normalize=False, axis_name=axis_name)
        mean = jnp.broadcast_to(jnp.mean(target, axis=(0, 1)), target.shape)
        mean_loss = losses.masked_pixels(mean, target, mask, normalize=False, axis_name=axis_name)
        return loss, (
            state,
            {"loss": loss, "mean_loss": mean_loss, "embeddings": jnp.mean(patches, axis=1)[None]},
        )

    def pictures(self, params, state, batch, rng):
        """What it saw: histograms of directions are no picture."""
        (images,), (mask,) = batch["views"], batch["masks"]
        return _tokens.pictures(images, mask, self.backbone.patch_size)

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features


def hog(
    images: Float[Array, "batch height width channels"], *, cell: int, bins: int
) -> Float[Array, "batch rows columns features"]:
    """Histograms of gradients' directions, of length 1, in cells of `cell` pixels a side; features = channels * bins.

    Gradients are Sobel's, with the image reflected at its borders; a direction and its opposite are one, each pixel
    counts with its gradient's length for the one bin that its direction falls into.

    Raises: ValueError if cells do not fill the images.
    Source: Dalal & Triggs 2005, Histograms of oriented gradients for human detection; as MaskFeat's code has it.
    """
    batch, height, width, channels = images.shape
    if height % cell or width % cell:
        raise ValueError(f"cells of {cell} pixels do not fill an image of {height}x{width}")
    x = jnp.pad(images.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    # Sobel: the difference in one direction, smoothed by 1, 2, 1 in the other.
    across = x[:, :, :-2] - x[:, :, 2:]
    across = across[:, :-2] + 2.0 * across[:, 1:-1] + across[:, 2:]
    down = x[:, :-2] - x[:, 2:]
    down = down[:, :, :-2] + 2.0 * down[:, :, 1:-1] + down[:, :, 2:]
    length = jnp.sqrt(across**2 + down**2)
    number = jnp.floor(jnp.arctan2(across, down) / jnp.pi * bins).astype(jnp.int32) % bins
    votes = length[..., None] * jax.nn.one_hot(number, bins)  # [batch, height, width, channels, bins]
    votes = votes.reshape(batch, height // cell, cell, width // cell, cell, channels, bins)
    histograms = jnp.sum(votes, axis=(2, 4))
    histograms /= jnp.maximum(jnp.linalg.norm(histograms, axis=-1, keepdims=True), 1e-12)
    return histograms.reshape(batch, height // cell, width // cell, channels * bins)
