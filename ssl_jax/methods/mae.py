"""MAE."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ssl_jax import losses
from ssl_jax.methods import _common, _tokens, _vit
from ssl_jax.models.patches import patchify
from ssl_jax.models.positions import patch_grid, sincos_positions
from ssl_jax.models.vit import Block, layer_norm


class Decoder(nn.Module):
    """The tokens that the encoder saw -> the pixels of all patches.

    Each hidden patch begins as one and the same token; positions are fixed sines and cosines.
    """

    dim: int
    depth: int
    heads: int
    pixels: int  # of a patch
    grid: tuple[int, int]  # patches down, across

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch _ encoder_dim"],
        mask: Bool[Array, "batch patches"],
        train: bool = False,
        axis_name: str | None = None,
    ) -> Float[Array, "batch patches pixels"]:
        """tokens: the class token, then those of the patches where `mask` is False, in order."""
        x = nn.Dense(self.dim, kernel_init=nn.initializers.xavier_uniform(), name="embed")(tokens)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.dim,))
        hidden = jnp.broadcast_to(mask_token, (len(x), 1, self.dim))
        # Where each patch's token is found among [the seen ones, the mask token].
        source = jnp.where(mask, x.shape[1] - 1, jnp.cumsum(~mask, axis=1) - 1)
        patches = jnp.take_along_axis(jnp.concatenate([x[:, 1:], hidden], axis=1), source[..., None], axis=1)
        x = jnp.concatenate([x[:, :1], patches + sincos_positions(self.grid, self.dim)], axis=1)
        for i in range(self.depth):
            block = Block(self.heads, 4 * self.dim, layer_scale=0.0, dtype=x.dtype, name=f"blocks_{i}")
            x = block(x)
        x = layer_norm(jnp.float32, "norm")(x)
        return nn.Dense(self.pixels, kernel_init=nn.initializers.xavier_uniform(), name="pixels")(x[:, 1:])


@dataclasses.dataclass(frozen=True)
class MAE:
    """Sees a quarter of an image's patches, and draws the others.

    The encoder is given the visible patches alone, which makes it some times faster; a smaller transformer, which is
    thrown away afterwards, predicts the pixels of the hidden ones from its tokens. With `normalize` they are to be
    predicted relative to their patch's mean and deviation.

    Give the ViT fixed positions, model.positions="sincos". Its kernels are drawn by Xavier's rule, as the decoder's.

    Source: He et al. 2021, arXiv:2111.06377, section 3, and the authors' code.
    """

    backbone: nn.Module
    run: _common.Run
    mask_ratio: float = 0.75
    normalize: bool = True
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    views: ClassVar[tuple[str, ...]] = ("view",)
    masked: ClassVar[tuple[str, ...]] = views
    chance_level: ClassVar[None] = None  # the variance of the patches: see the metric patch_mean_loss

    def __post_init__(self):
        _tokens.check_vit(self)
        _common.check_positive(self, "decoder_dim", "decoder_depth", "decoder_heads")
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"mask_ratio must be in (0, 1), got {self.mask_ratio}")

    def decoder(self, images: Float[Array, "batch height width channels"]) -> Decoder:
        """For images of this size."""
        patch = self.backbone.patch_size
        return Decoder(
            self.decoder_dim,
            self.decoder_depth,
            self.decoder_heads,
            pixels=patch**2 * images.shape[-1],
            grid=patch_grid(images.shape[1:3], patch),
        )

    def init(self, rng, images):
        keys = jax.random.split(rng, 4)
        params, batch_stats = _common.init({"backbone": self.backbone}, keys[0], images)
        params["backbone"] = _vit.draw_xavier(keys[1], params["backbone"], split_qkv=False)
        params["backbone"]["cls_token"] = 0.02 * jax.random.normal(keys[2], params["backbone"]["cls_token"].shape)
        decoder = self.decoder(images)
        mask = jnp.zeros((1, decoder.grid[0] * decoder.grid[1]), bool)
        tokens = jnp.zeros((1, 1 + mask.shape[1], self.backbone.dim))
        keys = jax.random.split(keys[3])
        drawn = decoder.init(keys[0], tokens, mask)["params"]
        params["decoder"] = _vit.draw_xavier(keys[1], drawn, split_qkv=False)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,), (mask,) = batch["views"], batch["masks"]
        prediction, tokens = self.predict(params, images, mask, rng, axis_name)
        target = patchify(images, self.backbone.patch_size)
        loss = losses.masked_pixels(prediction, target, mask, normalize=self.normalize, axis_name=axis_name)
        # What a prediction of each patch's own mean would give.
        mean = jnp.mean(target, axis=-1, keepdims=True) * (0.0 if self.normalize else 1.0)
        of_means = losses.masked_pixels(
            jnp.broadcast_to(mean, target.shape), target, mask, normalize=self.normalize, axis_name=axis_name
        )
        return loss, (
            state,
            {"loss": loss, "patch_mean_loss": of_means, "embeddings": jnp.mean(tokens[:, 1:], axis=1)[None]},
        )

    def predict(self, params: Any, images: Any, mask: Any, rng: Any, axis_name: str | None) -> tuple[Any, Any]:
        """(pixels of all patches, tokens of the class and of the visible patches)"""
        keep = _tokens.unmasked(mask, self.mask_ratio)
        tokens, _ = _common.train_apply(
            self.backbone, params["backbone"], {}, images, axis_name=axis_name, rng=rng, tokens=True, keep=keep
        )
        prediction = self.decoder(images).apply(
            {"params": params["decoder"]}, tokens, mask, train=True, axis_name=axis_name
        )
        return prediction, tokens

    def pictures(self, params, state, batch, rng):
        (images,), (mask,) = batch["views"], batch["masks"]
        prediction, _ = self.predict(params, images, mask, rng, None)
        if self.normalize:
            mean, deviation = _tokens.moments(patchify(images, self.backbone.patch_size))
            prediction = prediction * deviation + mean
        return _tokens.pictures(images, mask, self.backbone.patch_size, prediction)

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
