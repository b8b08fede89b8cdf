"""SimMIM."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import losses
from ssl_jax.methods import _common, _tokens, _vit
from ssl_jax.models.heads import torch_init
from ssl_jax.models.patches import patchify


@dataclasses.dataclass(frozen=True)
class SimMIM:
    """Draws the hidden patches of an image by one linear layer on a ViT that sees a token in their place.

    The distance is absolute, of the normalized pixels. `config.mask` is to hide squares of about 32 pixels, which are
    several of the ViT's patches (config.mask.unit), with a share of 0.6, rounded up.

    Source: Xie et al. 2021, arXiv:2111.09886, section 3, and the authors' code, whose initialization this is. Their ViT
    has model.positions="relative".
    """

    backbone: nn.Module
    run: _common.Run

    views: ClassVar[tuple[str, ...]] = ("view",)
    masked: ClassVar[tuple[str, ...]] = views
    chance_level: ClassVar[None] = None  # the spread of the pixels: see the metric mean_loss

    def __post_init__(self):
        _tokens.check_patches(self)

    def head(self, images: Any) -> nn.Module:
        return nn.Dense(self.backbone.patch_size**2 * images.shape[-1], kernel_init=torch_init)

    def init(self, rng, images):
        keys = jax.random.split(rng, 4)
        params, batch_stats = _common.init({"backbone": self.backbone}, keys[0], images)
        params["backbone"] = _vit.draw_beit(keys[3], params["backbone"])
        params["mask_token"] = _vit.beit_init(keys[1], (self.backbone.dim,))
        params["head"] = self.head(images).init(keys[2], jnp.zeros((1, self.backbone.dim)))["params"]
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,), (mask,) = batch["views"], batch["masks"]
        prediction, h = self.predict(params, images, mask, rng, axis_name)
        target = patchify(images, self.backbone.patch_size)
        loss = losses.masked_l1(prediction, target, mask, axis_name=axis_name)
        of_mean = losses.masked_l1(jnp.zeros_like(target), target, mask, axis_name=axis_name)
        return loss, (state, {"loss": loss, "mean_loss": of_mean, "embeddings": h[None]})

    def predict(self, params: Any, images: Any, mask: Any, rng: Any, axis_name: str | None) -> tuple[Any, Any]:
        """(pixels of all patches, the mean token)"""
        patches = _tokens.encode_masked(self.backbone, params, images, mask, axis_name=axis_name, rng=rng)
        return self.head(images).apply({"params": params["head"]}, patches), jnp.mean(patches, axis=1)

    def pictures(self, params, state, batch, rng):
        (images,), (mask,) = batch["views"], batch["masks"]
        prediction, _ = self.predict(params, images, mask, rng, None)
        return _tokens.pictures(images, mask, self.backbone.patch_size, prediction)

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
