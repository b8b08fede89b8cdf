"""SparK."""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from ssl_jax.keys import COUNT
from ssl_jax.methods.contract import Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import networks, visible
from ssl_jax.methods.toolkit.drawing import beit_init
from ssl_jax.models.blocks import layer_norm, weight_init
from ssl_jax.models.conv import Conv
from ssl_jax.models.heads import torch_bias_init, torch_init
from ssl_jax.models.hidden import at_size
from ssl_jax.models.norm import BatchNorm
from ssl_jax.models.patches import patchify
from ssl_jax.models.resnet import he_init


class Decoder(nn.Module):
    """The stage maps of what is visible -> images. A light U-Net.

    Each map is normalized, filled at hidden positions with a token of its own, and brought to the decoder's width: it
    is densified. Block after block doubles the resolution and halves the width, from the smallest map to the images.
    Each map is added where a block begins at its resolution. A map as large as the images is left out.
    """

    width: int  # at the smallest map
    channels: int
    doublings: int  # of the smallest map's resolution
    batch_norm: bool  # normalizes maps by BatchNorm over visible positions; False: by LayerNorm

    @nn.compact
    def __call__(
        self, maps: visible.Maps, mask: Bool[Array, "batch places"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch height width channels"]:
        hidden = mask.reshape(maps[-1].shape[:3])
        smallest_first = maps[::-1]
        x: Any = 0.0
        for i in range(self.doublings):
            if i < len(maps):
                dense = Densify(self.width // 2**i, 3 if i else 1, self.batch_norm, name=f"densify_{i}")
                x = x + dense(smallest_first[i], hidden, train, axis_name)
            x = Doubling(self.width // 2 ** (i + 1), name=f"dec_{i}")(x, train, axis_name)
        return Conv(self.channels, (1, 1), kernel_init=weight_init, name="proj")(x)


class Densify(nn.Module):
    """A map [batch, rows, columns, dim] without its hidden squares -> one without holes, of `width` channels."""

    width: int
    size: int  # of the convolution's kernel; with 1, a map of the right width has no convolution
    batch_norm: bool

    @nn.compact
    def __call__(self, x, hidden, train, axis_name):
        x = x.astype(jnp.float32)
        dim, positions = x.shape[-1], at_size(hidden, x.shape[1:3])
        if self.batch_norm:
            x = BatchNorm(name="norm")(x, train, axis_name, hidden)
        else:
            x = layer_norm(jnp.float32, "norm")(x)
        x = jnp.where(positions[..., None], self.param("mask_token", beit_init, (dim,)), x)
        if self.size == 1 and dim == self.width:
            return x
        bias_init = torch_bias_init(self.size**2 * dim)
        size = (self.size, self.size)
        return Conv(self.width, size, padding="SAME", kernel_init=torch_init, bias_init=bias_init, name="proj")(x)


class Doubling(nn.Module):
    """[batch, rows, columns, dim] -> [batch, 2 rows, 2 columns, width]."""

    width: int

    @nn.compact
    def __call__(self, x, train, axis_name):
        dim = x.shape[-1]
        convolution: dict[str, Any] = dict(use_bias=False, padding="SAME", kernel_init=weight_init)
        x = nn.ConvTranspose(dim, (4, 4), (2, 2), padding="SAME", kernel_init=he_init, name="up_sample")(x)
        x = Conv(dim, (3, 3), **convolution, name="conv_0")(x)
        x = jax.nn.relu6(BatchNorm(name="bn_0")(x, train, axis_name))
        x = Conv(self.width, (3, 3), **convolution, name="conv_1")(x)
        return BatchNorm(name="bn_1")(x, train, axis_name)


@dataclasses.dataclass(frozen=True)
class SparK(visible.SquarePredictor):
    """A ResNet or a ConvNeXt sees some squares of an image, a light U-Net draws the others from its maps of all scales.

    Convolutions and normalizations see visible positions alone, as sparse ones do (models/hidden.py). A square is one
    place of the last map. The loss is the squared error of the hidden squares' pixels, relative to their square's mean
    and deviation. The decoder is thrown away afterwards. A ConvNeXt's last LayerNorm has no part in it, and stays at
    scale 1 and bias 0.

    Let `config.mask` hide a share of 0.6 of the squares.

    Source: Tian et al. 2023, arXiv:2301.03580, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    decoder_width: Annotated[
        int,
        COUNT,
        "Channels of the decoder at the smallest map; half as many after each doubling. A multiple of the backbone's",
        "stride.",
    ] = 768

    views = ("view",)
    masked = views
    # chance_level: the variance of normalized squares, which the metric square_mean_loss shows.

    def __post_init__(self) -> None:
        super().__post_init__()
        visible.check_stage_maps(self)
        stride = self.backbone.stride
        if stride & (stride - 1):
            raise ValueError(
                f"the decoder doubles the last map's resolution, but its stride is {stride}, no power of 2"
            )
        if self.decoder_width % stride:
            raise ValueError(
                f"decoder_width={self.decoder_width} is halved at each doubling, up to a resolution {stride} times as "
                f"large; use a multiple of {stride}"
            )

    def decoder(self, images: Float[Array, "batch height width channels"]) -> Decoder:
        """For images with these channels."""
        doublings = self.backbone.stride.bit_length() - 1
        return Decoder(self.decoder_width, images.shape[-1], doublings, hasattr(self.backbone, "batch_norm"))

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng)
        params, batch_stats, maps = visible.init_maps(self.backbone, keys[0], images)
        mask = jnp.zeros((len(images), maps[-1].shape[1] * maps[-1].shape[2]), bool)
        drawn = self.decoder(images).init(keys[1], maps, mask)
        return {**params, "decoder": drawn["params"]}, {"batch_stats": {**batch_stats, "decoder": drawn["batch_stats"]}}

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
        maps, batch_stats = visible.encode(
            self.backbone, params, state["batch_stats"], images, mask, axis_name=axis_name, rng=rng
        )
        made, new = networks.train_apply(
            self.decoder(images), params["decoder"], batch_stats["decoder"], maps, mask, axis_name=axis_name
        )
        return patchify(made, self.backbone.stride), maps[-1], {**batch_stats, "decoder": new}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        of_norm = 0 if hasattr(self.backbone, "batch_norm") else 8 * self.backbone.dim  # a ConvNeXt's last LayerNorm
        return Traffic(passes=1, unused=of_norm)
