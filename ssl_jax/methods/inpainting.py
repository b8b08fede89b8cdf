"""Inpainting (context encoder)."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, INNER_SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import gan, tiling
from ssl_jax.models.dcgan import Judge
from ssl_jax.models.decoder import ConvDecoder

FIELD = 5  # random numbers a side of a field; the removed regions are where the field is largest


class ChannelwiseDense(nn.Module):
    """A feature map -> one of the same shape, by a linear map of each channel's positions.

    So each position sees the whole image, without the weights of a layer between all channels.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch height width channels"]:
        batch, height, width, channels = x.shape
        positions = height * width
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=2, batch_axis=0)
        kernel = self.param("kernel", init, (channels, positions, positions))
        y = jnp.einsum("bpc,cpq->bqc", x.reshape(batch, positions, channels), kernel)
        return y.reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class Inpainting(Base):
    """Predicts what was removed of an image from what is left.

    Regions of any shape are removed, a share `removed` of the pixels, and filled with the mean of the data. The decoder
    takes the backbone's feature map through a layer that spreads each channel over all positions. The backbone never
    sees a whole image in training.

    The loss is the squared error, as in the paper's variant for learning features. With `adversarial` above 0 it is
    (1 - adversarial) * squared error + adversarial * loss against a discriminator. That one, DCGAN's, tells images from
    those whose removed regions are filled with the prediction. Its own loss is added, and all networks move at once.
    The paper's pictures have adversarial = 0.001, and a discriminator whose learning rate is a tenth of the others'.

    Source: Pathak et al. 2016, arXiv:1604.07379, sections 3.1, 3.2 and 4.2, and the authors' code. Their
    regions are shapes of objects.
    """

    backbone: nn.Module
    schedule: Schedule
    removed: Annotated[float, INNER_SHARE, "Share of each image's pixels that is removed."] = 0.25
    decoder_width: Annotated[int, COUNT, "Channels of the decoder's last layer."] = 32
    adversarial: Annotated[
        float, Range(0.0, 1.0, below=True), "Weight of the adversarial loss beside the squared error; 0: none."
    ] = 0.0
    discriminator_width: Annotated[int, COUNT, "Channels of the discriminator's first layer."] = 64

    views = ("view",)
    # chance_level: the variance of the data, which the metric mean_loss shows.

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_feature_map(self)

    def decoder(self, images: Float[Array, "batch height width channels"]) -> toolkit.Networks:
        """From the backbone's feature map to images of this size."""
        _, height, width, channels = images.shape
        return {
            "spread": ChannelwiseDense(),
            "decoder": ConvDecoder((height, width), channels, width=self.decoder_width),
        }

    @property
    def discriminator(self) -> Judge:
        return Judge(self.discriminator_width)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_backbone, rng_decoder = jax.random.split(rng)
        params, batch_stats, features = toolkit.init_map(self.backbone, rng_backbone, images)
        made = [toolkit.init(self.decoder(images), rng_decoder, features)]
        if self.adversarial:
            made.append(toolkit.init({"discriminator": self.discriminator}, jax.random.fold_in(rng, 2), images))
        for of_networks, of_stats in made:
            params, batch_stats = params | of_networks, batch_stats | of_stats
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        height, width = images.shape[1:3]
        mask = self.regions(rng, batch["index"], (height, width))
        prediction, h, batch_stats = self.predict(params, state, images, mask, rng, axis_name)
        loss = losses.region_squared_error(prediction, images, mask, axis_name=axis_name)
        mean_loss = losses.region_squared_error(jnp.zeros_like(images), images, mask, axis_name=axis_name)
        metrics = {"mean_loss": mean_loss}
        if self.adversarial:
            verdict = gan.judged(
                self.discriminator,
                params["discriminator"],
                state["batch_stats"]["discriminator"],
                images,
                jnp.where(mask[..., None], prediction, images),
                axis_name,
            )
            metrics |= {
                "squared_error": loss,
                "discriminator_loss": verdict.discriminator_loss,
                "generator_loss": verdict.generator_loss,
                "accuracy": verdict.accuracy,
            }
            loss = (1.0 - self.adversarial) * loss + self.adversarial * verdict.generator_loss
            loss += verdict.discriminator_loss
            batch_stats = {**batch_stats, "discriminator": verdict.stats}
        return Output(loss, {"batch_stats": batch_stats}, metrics, embeddings=h[None])

    def predict(
        self,
        params: Params,
        state: State,
        images: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch height width"],
        rng: Key[Array, ""] | None,
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch dim"], toolkit.Variables]:
        """(predicted images, pooled features of what is left, new batch_stats)"""
        left = jnp.where(mask[..., None], 0.0, images)
        features, batch_stats = toolkit.forward_map(
            self.backbone, params, state["batch_stats"], left, axis_name=axis_name, rng=rng
        )
        outputs, batch_stats = toolkit.forward(self.decoder(images), params, batch_stats, features, axis_name=axis_name)
        return outputs["decoder"], jnp.mean(features, axis=(1, 2)), batch_stats

    def regions(
        self, rng: Key[Array, ""], index: ops.Index, size: tuple[int, int]
    ) -> Bool[Array, "batch height width"]:
        """True where a smooth random field is largest. Every image has the same share."""
        field = tiling.uniform(rng, index, (FIELD, FIELD))
        smooth = jax.image.resize(field, (len(index), *size), "cubic")
        threshold = jnp.quantile(smooth.reshape(len(index), -1), 1.0 - self.removed, axis=1)
        return smooth > threshold[:, None, None]

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        (images,) = batch["views"]
        height, width = images.shape[1:3]
        mask = self.regions(rng, batch["index"], (height, width))
        prediction, *_ = self.predict(params, state, images, mask, rng, None)
        hidden = mask[..., None]
        return {
            "image": images,
            "seen": jnp.where(hidden, 0.0, images),
            "reconstruction": jnp.where(hidden, prediction, images),
        }

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=2 if self.adversarial else 1)  # the discriminator's: real and filled images
