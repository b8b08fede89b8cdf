"""Denoising autoencoder."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.methods import _common, _tiles
from ssl_jax.models.decoder import ConvDecoder

NOISES = ("masking", "gaussian", "salt_and_pepper")


@dataclasses.dataclass(frozen=True)
class Denoising:
    """Draws an image from a corrupted copy of it, through the backbone's features.

    They are pooled over positions, and so are the bottleneck. `noise`: "masking", a share `level` of the pixels set
    to the mean of the data; "gaussian", of standard deviation `level`, in those of the data; "salt_and_pepper", a share
    `level` of the pixels as dark or as bright as two deviations. All channels of a pixel are hit alike but by gaussian
    noise. The pretext is an old one: expect less of its features than of today's.

    Source: Vincent et al. 2008, Extracting and composing robust features with denoising autoencoders, section 2.3; the
    kinds of noise: Vincent et al. 2010, JMLR 11, section 3.3. One convolutional network instead of stacked layers.
    """

    backbone: nn.Module
    run: _common.Run
    noise: str = "masking"
    level: float = 0.5
    decoder_width: int = 32  # channels of its last layer

    views: ClassVar[tuple[str, ...]] = ("view",)
    chance_level: ClassVar[None] = None  # the variance of the data: see the metric mean_loss

    def __post_init__(self):
        if self.noise not in NOISES:
            raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {self.noise!r}")
        _common.check_positive(self, "level", "decoder_width")
        if self.noise != "gaussian":
            _common.check_share(self, "level")

    def networks(self, images: Float[Array, "batch height width channels"]) -> dict[str, nn.Module]:
        """For images of this size."""
        decoder = ConvDecoder(images.shape[1:3], images.shape[-1], width=self.decoder_width)
        return {"backbone": self.backbone, "decoder": decoder}

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks(images), rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,) = batch["views"]
        rng_noise, rng_dropout = jax.random.split(rng)
        outputs, batch_stats = _common.forward(
            self.networks(images),
            params,
            state["batch_stats"],
            self.corrupt(rng_noise, batch["index"], images),
            axis_name=axis_name,
            rng=rng_dropout,
        )
        loss = losses.squared_error(outputs["decoder"], images, axis_name=axis_name)
        mean_loss = losses.squared_error(jnp.zeros_like(images), images, axis_name=axis_name)
        metrics = {"loss": loss, "mean_loss": mean_loss, "embeddings": outputs["backbone"][None]}
        return loss, ({"batch_stats": batch_stats}, metrics)

    def corrupt(
        self, rng: Key[Array, ""], index: Int[Array, " batch"], images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        if self.noise == "gaussian":
            keys = _tiles.image_keys(rng, index)
            return images + self.level * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
        draws = _tiles.uniform(rng, index, (*images.shape[1:3], 1))
        if self.noise == "masking":
            return jnp.where(draws < self.level, 0.0, images)
        dark_or_bright = jnp.where(draws < self.level / 2, -2.0, 2.0)
        return jnp.where(draws < self.level, dark_or_bright, images)

    def pictures(self, params, state, batch, rng):
        (images,) = batch["views"]
        corrupted = self.corrupt(jax.random.split(rng)[0], batch["index"], images)
        outputs, _ = _common.forward(
            self.networks(images), params, state["batch_stats"], corrupted, axis_name=None, rng=rng
        )
        return {"image": images, "corrupted": corrupted, "reconstruction": outputs["decoder"]}

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
