"""FCMAE."""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from ssl_jax.keys import COUNT
from ssl_jax.methods.contract import Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import visible
from ssl_jax.models.blocks import weight_init
from ssl_jax.models.convnext import Block
from ssl_jax.models.dense import Dense


class Decoder(nn.Module):
    """The last stage's map -> the pixels of the square at each of its places. Hidden places begin as one token.

    A linear map, blocks of a ConvNeXt V2, and a linear map.
    """

    dim: int
    depth: int
    pixels: int  # of a square

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch rows columns dim"], mask: Bool[Array, "batch places"]
    ) -> Float[Array, "batch places pixels"]:
        x = Dense(self.dim, kernel_init=weight_init, name="embed")(x)
        token = self.param("mask_token", nn.initializers.normal(0.02), (self.dim,))
        x = jnp.where(mask.reshape(*x.shape[:3], 1), token, x)
        for i in range(self.depth):
            x = Block(layer_scale=0.0, grn=True, conv_mlp=False, dtype=x.dtype, name=f"blocks_{i}")(x)
        return Dense(self.pixels, kernel_init=weight_init, name="pixels")(x).reshape(*mask.shape, self.pixels)


@dataclasses.dataclass(frozen=True)
class FCMAE(visible.SquarePredictor):
    """Fully convolutional masked autoencoder: a ConvNeXt V2 sees some squares of an image, a decoder draws the others.

    The convolutions sum over visible positions alone, as sparse ones do (models/hidden.py), and GRN takes its norms
    over them. A square is one place of the last map. The loss is the squared error of the hidden squares' pixels. With
    `normalize` they are relative to their square's mean and deviation. The decoder is thrown away afterwards. The
    backbone's last LayerNorm has no part in it, and stays at scale 1 and bias 0.

    Let `config.mask` hide a share of 0.6, rounded up as by the authors: 30 of 49 squares.

    Source: Woo et al. 2023, arXiv:2301.00808, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    normalize: Annotated[bool, "Predicts each square's pixels relative to their mean and deviation."] = True
    decoder_dim: Annotated[int, COUNT, "Width of the decoder."] = 512
    decoder_depth: Annotated[int, COUNT, "Blocks of the decoder."] = 1

    views = ("view",)
    masked = views
    # chance_level: the variance of the squares, which the metric square_mean_loss shows.

    def __post_init__(self) -> None:
        super().__post_init__()
        visible.check_stage_maps(self)

    def decoder(self, images: Float[Array, "batch height width channels"]) -> Decoder:
        """For images with these channels."""
        return Decoder(self.decoder_dim, self.decoder_depth, self.backbone.stride**2 * images.shape[-1])

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng)
        params, batch_stats, (*_, last) = visible.init_maps(self.backbone, keys[0], images)
        mask = jnp.zeros((len(last), last.shape[1] * last.shape[2]), bool)
        params["decoder"] = self.decoder(images).init(keys[1], last, mask)["params"]
        return params, {"batch_stats": batch_stats}

    def predict(
        self,
        params: Params,
        state: State,
        images: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch places"],
        rng: Key[Array, ""] | None,
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch places pixels"], Float[Array, "batch rows columns dim"], dict[str, Any]]:
        """(pixels of all squares, the last stage's map, batch_stats)"""
        (*_, last), batch_stats = visible.encode(
            self.backbone, params, state["batch_stats"], images, mask, axis_name=axis_name, rng=rng
        )
        prediction: Any = self.decoder(images).apply({"params": params["decoder"]}, last.astype(jnp.float32), mask)
        return prediction, last, batch_stats

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1, unused=8 * self.backbone.dim)  # the last LayerNorm's scale and bias
