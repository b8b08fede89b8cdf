"""Inpainting (context encoder)."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses
from ssl_jax.methods import _common, _tiles
from ssl_jax.models.decoder import ConvDecoder
from ssl_jax.models.resnet import ResNet

FIELD = 5  # random numbers a side, of which the removed regions are where they are largest


class ChannelwiseDense(nn.Module):
    """A map [batch, height, width, channels] -> one of the same shape: each channel's positions by a linear map.

    So each position is drawn from all of the image, without the weights of a layer between all channels.
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
class Inpainting:
    """Draws what was removed of an image from what is left.

    Removed are regions of any shape, a share `removed` of the pixels, filled with the mean of the data. The decoder
    sees the backbone's map through a layer that spreads each channel over all positions. This is the variant of the
    paper for learning features, with the squared error alone. The backbone never sees a whole image in training.

    Source: Pathak et al. 2016, arXiv:1604.07379, sections 3.1, 3.2 and 4.2. Their regions are shapes of objects.
    """

    backbone: nn.Module  # a ResNet
    run: _common.Run
    removed: float = 0.25
    decoder_width: int = 32  # channels of its last layer

    views: ClassVar[tuple[str, ...]] = ("view",)
    chance_level: ClassVar[None] = None  # the variance of the data: see the metric mean_loss

    def __post_init__(self):
        if not isinstance(self.backbone, ResNet):
            raise ValueError(
                f"inpainting draws from a ResNet's feature map, which a {type(self.backbone).__name__} has not; "
                "use model.name=resnet50"
            )
        _common.check_positive(self, "decoder_width")
        if not 0.0 < self.removed < 1.0:
            raise ValueError(f"removed must be in (0, 1), got {self.removed}")

    def decoder(self, images: Any) -> dict[str, nn.Module]:
        """From the backbone's map to images of this size."""
        return {
            "spread": ChannelwiseDense(),
            "decoder": ConvDecoder(images.shape[1:3], images.shape[-1], width=self.decoder_width),
        }

    def init(self, rng, images):
        rng_backbone, rng_decoder = jax.random.split(rng)
        params, batch_stats, features = _common.init_map(self.backbone, rng_backbone, images)
        drawn = _common.init(self.decoder(images), rng_decoder, features)
        return params | drawn[0], {"batch_stats": batch_stats | drawn[1]}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,) = batch["views"]
        mask = self.regions(rng, batch["index"], images.shape[1:3])
        prediction, h, batch_stats = self.predict(params, state, images, mask, rng, axis_name)
        loss = losses.region_squared_error(prediction, images, mask, axis_name=axis_name)
        mean_loss = losses.region_squared_error(jnp.zeros_like(images), images, mask, axis_name=axis_name)
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "mean_loss": mean_loss, "embeddings": h[None]})

    def predict(self, params, state, images, mask, rng, axis_name):
        """(images drawn, pooled features of what is left, new batch_stats)"""
        left = jnp.where(mask[..., None], 0.0, images)
        features, batch_stats = _common.forward_map(
            self.backbone, params, state["batch_stats"], left, axis_name=axis_name, rng=rng
        )
        outputs, batch_stats = _common.forward(self.decoder(images), params, batch_stats, features, axis_name=axis_name)
        return outputs["decoder"], jnp.mean(features, axis=(1, 2)), batch_stats

    def regions(
        self, rng: Key[Array, ""], index: Int[Array, " batch"], size: tuple[int, int]
    ) -> Bool[Array, "batch height width"]:
        """Where a smooth random field is largest: the same share of every image."""
        field = _tiles.uniform(rng, index, (FIELD, FIELD))
        smooth = jax.image.resize(field, (len(index), *size), "cubic")
        threshold = jnp.quantile(smooth.reshape(len(index), -1), 1.0 - self.removed, axis=1)
        return smooth > threshold[:, None, None]

    def pictures(self, params, state, batch, rng):
        (images,) = batch["views"]
        mask = self.regions(rng, batch["index"], images.shape[1:3])
        prediction, *_ = self.predict(params, state, images, mask, rng, None)
        hidden = mask[..., None]
        return {
            "image": images,
            "seen": jnp.where(hidden, 0.0, images),
            "reconstruction": jnp.where(hidden, prediction, images),
        }

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
