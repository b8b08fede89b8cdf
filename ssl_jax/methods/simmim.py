"""SimMIM."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from ssl_jax import losses
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import drawing, masking
from ssl_jax.models.abilities import has_masked_map, masked_side, token_dim
from ssl_jax.models.heads import torch_init
from ssl_jax.models.patches import patchify
from ssl_jax.models.vit import weight_init


@dataclasses.dataclass(frozen=True)
class SimMIM(Base):
    """Predicts the pixels of an image's hidden patches by one linear layer on a ViT, which sees a token in their place.

    It may be a Swin, too. The loss is the absolute error of the normalized pixels. Let `config.mask` hide
    squares of about 32 pixels, with a share of 0.6, rounded up. Each is several of a ViT's patches (config.mask.unit).
    For a Swin, each is one place of the last map, 32 pixels a side, and counts as a patch here.

    Source: Xie et al. 2021, arXiv:2111.09886, section 3. The initialization is that of the authors' code. Their ViT has
    model.positions="relative", their Swin is made for images of 192 pixels with model.window=6.
    """

    backbone: nn.Module
    schedule: Schedule

    views = ("view",)
    masked = views
    # chance_level: the spread of the pixels, which the metric mean_loss shows.

    def __post_init__(self) -> None:
        super().__post_init__()
        if not has_masked_map(self.backbone):
            masking.check_patches(self)

    @property
    def side(self) -> int:
        """Pixels a side of a patch that is hidden or not, and predicted."""
        return masked_side(self.backbone)

    def head(self, images: Float[Array, "batch height width channels"]) -> nn.Module:
        return nn.Dense(self.side**2 * images.shape[-1], kernel_init=torch_init)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng, 4)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        init_token = weight_init
        if not has_masked_map(self.backbone):  # a Swin begins as for other methods
            params["backbone"] = drawing.draw_beit(keys[3], params["backbone"])
            init_token = drawing.beit_init
        params["mask_token"] = init_token(keys[1], (token_dim(self.backbone),))
        params["head"] = self.head(images).init(keys[2], jnp.zeros((1, self.backbone.dim)))["params"]
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,), (mask,) = batch["views"], batch["masks"]
        prediction, h = self.predict(params, images, mask, rng, axis_name)
        target = patchify(images, self.side)
        loss = losses.masked_l1(prediction, target, mask, axis_name=axis_name)
        of_mean = losses.masked_l1(jnp.zeros_like(target), target, mask, axis_name=axis_name)
        return Output(loss, state, {"mean_loss": of_mean}, embeddings=h[None])

    def predict(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch patches"],
        rng: Key[Array, ""] | None,
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch patches pixels"], Float[Array, "batch dim"]]:
        """(pixels of all patches, the mean token)"""
        patches = masking.encode_masked(self.backbone, params, images, mask, axis_name=axis_name, rng=rng)
        pixels: Any = self.head(images).apply({"params": params["head"]}, patches)
        return pixels, jnp.mean(patches, axis=1)

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        (images,), (mask,) = batch["views"], batch["masks"]
        prediction, _ = self.predict(params, images, mask, rng, None)
        return masking.pictures(images, mask, self.side, prediction)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic()
