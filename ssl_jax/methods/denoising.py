"""Denoising autoencoder."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, POSITIVE, OneOf
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import tiling
from ssl_jax.models.decoder import ConvDecoder

NOISES = ("masking", "gaussian", "salt_and_pepper")


@dataclasses.dataclass(frozen=True)
class Denoising(Base):
    """Predicts an image from a corrupted copy of it, through the backbone's features.

    The features are pooled over positions, and so are the bottleneck. Noise hits all channels of a pixel alike, except
    gaussian noise. The pretext task is an old one: expect less of its features than of those of later methods.

    Source: Vincent et al. 2008, Extracting and composing robust features with denoising autoencoders, section 2.3. The
    kinds of noise: Vincent et al. 2010, JMLR 11, section 3.3. One convolutional network instead of stacked layers.
    """

    backbone: nn.Module
    schedule: Schedule
    noise: Annotated[
        str,
        OneOf(NOISES),
        "masking: a share `level` of the pixels is set to the mean of the data. gaussian: noise of deviation `level` "
        "is added. salt_and_pepper: a share `level` of the pixels is as dark or as bright as two deviations of the "
        "data.",
    ] = "masking"
    level: Annotated[
        float, POSITIVE, "Share of the pixels; for gaussian noise its deviation, in deviations of the data."
    ] = 0.5
    decoder_width: Annotated[int, COUNT, "Channels of the decoder's last layer."] = 32

    views = ("view",)
    # chance_level: the variance of the data, which the metric mean_loss shows.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise != "gaussian" and self.level > 1.0:
            raise ValueError(f"level must be in 0..1 for noise={self.noise}, got {self.level}")

    def networks(self, images: Float[Array, "batch height width channels"]) -> toolkit.Networks:
        """For images of this size."""
        _, height, width, channels = images.shape
        decoder = ConvDecoder((height, width), channels, width=self.decoder_width)
        return {"backbone": self.backbone, "decoder": decoder}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks(images), rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        rng_noise, rng_dropout = jax.random.split(rng)
        outputs, batch_stats = toolkit.forward(
            self.networks(images),
            params,
            state["batch_stats"],
            self.corrupt(rng_noise, batch["index"], images),
            axis_name=axis_name,
            rng=rng_dropout,
        )
        loss = losses.squared_error(outputs["decoder"], images, axis_name=axis_name)
        mean_loss = losses.squared_error(jnp.zeros_like(images), images, axis_name=axis_name)
        return Output(
            loss, {"batch_stats": batch_stats}, {"mean_loss": mean_loss}, embeddings=outputs["backbone"][None]
        )

    def corrupt(
        self, rng: Key[Array, ""], index: ops.Index, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """The images with noise, by the images' indices."""
        if self.noise == "gaussian":
            keys = tiling.image_keys(rng, index)
            return images + self.level * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
        draws = tiling.uniform(rng, index, (*images.shape[1:3], 1))
        if self.noise == "masking":
            return jnp.where(draws < self.level, 0.0, images)
        dark_or_bright = jnp.where(draws < self.level / 2, -2.0, 2.0)
        return jnp.where(draws < self.level, dark_or_bright, images)

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        (images,) = batch["views"]
        corrupted = self.corrupt(jax.random.split(rng)[0], batch["index"], images)
        outputs, _ = toolkit.forward(
            self.networks(images), params, state["batch_stats"], corrupted, axis_name=None, rng=rng
        )
        return {"image": images, "corrupted": corrupted, "reconstruction": outputs["decoder"]}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1)
