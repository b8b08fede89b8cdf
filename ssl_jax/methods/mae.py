"""MAE."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, INNER_SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import drawing, masking
from ssl_jax.models.blocks import Block, layer_norm
from ssl_jax.models.dense import Dense
from ssl_jax.models.patches import patchify
from ssl_jax.models.positions import patch_grid, sincos_positions


class Decoder(nn.Module):
    """The tokens that the encoder saw -> the pixels of all patches.

    Each hidden patch begins as one and the same token; positions are fixed sines and cosines.
    """

    dim: int
    depth: int
    heads: int
    pixels: int  # of a patch
    grid: tuple[int, int]  # patches down, across
    prefix: int = 1  # tokens before the patches

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch _ encoder_dim"],
        mask: Bool[Array, "batch patches"],
        train: bool = False,
        axis_name: str | None = None,
    ) -> Float[Array, "batch patches pixels"]:
        """tokens: those before the patches, then those of the patches where `mask` is False, in order."""
        x = Dense(self.dim, kernel_init=nn.initializers.xavier_uniform(), name="embed")(tokens)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.dim,))
        hidden = jnp.broadcast_to(mask_token, (len(x), 1, self.dim))
        # Where each patch's token is found among [the seen ones, the mask token].
        source = jnp.where(mask, x.shape[1] - self.prefix, jnp.cumsum(~mask, axis=1) - 1)
        patches = jnp.take_along_axis(jnp.concatenate([x[:, self.prefix :], hidden], axis=1), source[..., None], axis=1)
        x = jnp.concatenate([x[:, : self.prefix], patches + sincos_positions(self.grid, self.dim)], axis=1)
        for i in range(self.depth):
            block = Block(self.heads, 4 * self.dim, layer_scale=0.0, dtype=x.dtype, name=f"blocks_{i}")
            x = block(x)
        x = layer_norm(jnp.float32, "norm")(x)
        return Dense(self.pixels, kernel_init=nn.initializers.xavier_uniform(), name="pixels")(x[:, self.prefix :])


@dataclasses.dataclass(frozen=True)
class MAE(Base):
    """Sees a quarter of an image's patches, and draws the others.

    The encoder is given the visible patches alone, which makes it some times faster; a smaller transformer, which is
    thrown away afterwards, predicts the pixels of the hidden ones from its tokens. With `normalize` they are to be
    predicted relative to their patch's mean and deviation.

    Give the ViT fixed positions, model.positions="sincos". Its kernels are drawn by Xavier's rule, as the decoder's.

    Source: He et al. 2021, arXiv:2111.06377, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    mask_ratio: Annotated[float, INNER_SHARE, "Share of each image's patches that the encoder does not see."] = 0.75
    normalize: Annotated[bool, "Predicts each patch's pixels relative to their mean and deviation."] = True
    decoder_dim: Annotated[int, COUNT, "Width of the decoder."] = 512
    decoder_depth: Annotated[int, COUNT, "Blocks of the decoder."] = 8
    decoder_heads: Annotated[int, COUNT, "Attention heads of the decoder."] = 16

    views = ("view",)
    masked = views
    # chance_level: the variance of the patches, which the metric patch_mean_loss shows.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self)

    def decoder(self, images: Float[Array, "batch height width channels"]) -> Decoder:
        """For images of this size."""
        patch = self.backbone.patch_size
        _, height, width, channels = images.shape
        return Decoder(
            self.decoder_dim,
            self.decoder_depth,
            self.decoder_heads,
            pixels=patch**2 * channels,
            grid=patch_grid((height, width), patch),
            prefix=self.backbone.num_prefix,
        )

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng, 4)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        backbone = drawing.draw_xavier(keys[1], params["backbone"], split_qkv=False)
        cls_token = 0.02 * jax.random.normal(keys[2], backbone["cls_token"].shape)
        params["backbone"] = {**backbone, "cls_token": cls_token}
        decoder = self.decoder(images)
        mask = jnp.zeros((1, decoder.grid[0] * decoder.grid[1]), bool)
        tokens = jnp.zeros((1, decoder.prefix + mask.shape[1], self.backbone.dim))
        keys = jax.random.split(keys[3])
        drawn = decoder.init(keys[0], tokens, mask)["params"]
        params["decoder"] = drawing.draw_xavier(keys[1], drawn, split_qkv=False)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,), (mask,) = batch["views"], batch["masks"]
        prediction, tokens = self.predict(params, images, mask, rng, axis_name)
        target = patchify(images, self.backbone.patch_size)
        loss = losses.masked_pixels(prediction, target, mask, normalize=self.normalize, axis_name=axis_name)
        # What a prediction of each patch's own mean would give.
        mean = jnp.mean(target, axis=-1, keepdims=True) * (0.0 if self.normalize else 1.0)
        of_means = losses.masked_pixels(
            jnp.broadcast_to(mean, target.shape), target, mask, normalize=self.normalize, axis_name=axis_name
        )
        embeddings = jnp.mean(tokens[:, self.backbone.num_prefix :], axis=1)[None]
        return Output(loss, state, {"patch_mean_loss": of_means}, embeddings=embeddings)

    def predict(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch patches"],
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch patches pixels"], Float[Array, "batch _ dim"]]:
        """(pixels of all patches, tokens of the class and of the visible patches)"""
        keep = masking.unmasked(mask, self.mask_ratio)
        tokens, _ = toolkit.train_apply(
            self.backbone, params["backbone"], {}, images, axis_name=axis_name, rng=rng, method="tokens", keep=keep
        )
        prediction: Any = self.decoder(images).apply(
            {"params": params["decoder"]}, tokens, mask, train=True, axis_name=axis_name
        )
        return prediction, tokens

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        (images,), (mask,) = batch["views"], batch["masks"]
        prediction, _ = self.predict(params, images, mask, rng, None)
        if self.normalize:
            mean, deviation = masking.moments(patchify(images, self.backbone.patch_size))
            prediction = prediction * deviation + mean
        return masking.pictures(images, mask, self.backbone.patch_size, prediction)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic()
