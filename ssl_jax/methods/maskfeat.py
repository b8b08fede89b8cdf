"""MaskFeat."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import drawing, masking
from ssl_jax.models.blocks import weight_init
from ssl_jax.models.patches import patchify


@dataclasses.dataclass(frozen=True)
class MaskFeat(Base):
    """Predicts histograms of oriented gradients of an image's hidden patches, by one linear layer on a ViT.

    Let `config.mask` hide blocks with a share of 0.4.

    Source: Wei et al. 2021, arXiv:2112.09133, section 3. The initialization is that of the authors' code. Their ViT's
    positions are learned.
    """

    backbone: nn.Module
    schedule: Schedule
    cell: Annotated[
        int,
        COUNT,
        "Pixels a side of a histogram's cell. It divides patch_size: a patch has (patch_size / cell)^2 histograms for "
        "each channel.",
    ] = 8
    bins: Annotated[int, COUNT, "Directions of a histogram."] = 9

    views = ("view",)
    masked = views
    # chance_level: the spread of the histograms, which the metric mean_loss shows.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_patches(self)
        if self.backbone.patch_size % self.cell:
            raise ValueError(
                f"cell={self.cell} does not divide patches of {self.backbone.patch_size} "
                f"pixels; use a divisor of {self.backbone.patch_size}"
            )

    @property
    def cells(self) -> int:
        """Cells of a patch, a side."""
        return self.backbone.patch_size // self.cell

    def head(self, channels: int) -> nn.Module:
        return nn.Dense(self.cells**2 * channels * self.bins, kernel_init=weight_init)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng, 4)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        params["backbone"] = drawing.draw_maskfeat(keys[3], params["backbone"])
        params["mask_token"] = weight_init(keys[1], (self.backbone.dim,))
        head = self.head(images.shape[-1])
        params["head"] = head.init(keys[2], jnp.zeros((1, self.backbone.dim)))["params"]
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,), (mask,) = batch["views"], batch["masks"]
        patches = masking.encode_masked(self.backbone, params, images, mask, axis_name=axis_name, rng=rng)
        prediction: Any = self.head(images.shape[-1]).apply({"params": params["head"]}, patches)
        target = patchify(hog(images, cell=self.cell, bins=self.bins), self.cells)
        loss = losses.masked_pixels(prediction, target, mask, normalize=False, axis_name=axis_name)
        mean = jnp.broadcast_to(jnp.mean(target, axis=(0, 1)), target.shape)
        mean_loss = losses.masked_pixels(mean, target, mask, normalize=False, axis_name=axis_name)
        return Output(loss, state, {"mean_loss": mean_loss}, embeddings=jnp.mean(patches, axis=1)[None])

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        """What the network saw. Histograms of directions are no picture."""
        (images,), (mask,) = batch["views"], batch["masks"]
        return masking.pictures(images, mask, self.backbone.patch_size)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic()


def hog(
    images: Float[Array, "batch height width channels"], *, cell: int, bins: int
) -> Float[Array, "batch rows columns features"]:
    """Histograms of gradients' directions, each of length 1, one for each channel of each cell of `cell` pixels a side.

    features = channels * bins. Gradients are Sobel's; the image is reflected at its borders. A direction and its
    opposite are one. Each pixel counts with its gradient's length, for the one bin that its direction falls into.

    Raises: ValueError if cells do not fill the images.
    Source: Dalal & Triggs 2005, Histograms of oriented gradients for human detection; as MaskFeat's code has it.
    """
    batch, height, width, channels = images.shape
    if height % cell or width % cell:
        raise ValueError(
            f"cells of {cell} pixels do not fill an image of {height}x{width}; use sides that are multiples of {cell}"
        )
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
