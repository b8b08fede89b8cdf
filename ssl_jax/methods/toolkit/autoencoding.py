"""What MAE and its kin share: first weights, the decoder, the loss of pixels, pictures."""

# pyright: reportUnknownMemberType=false

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from ssl_jax import losses
from ssl_jax.methods.contract import Params, Variables
from ssl_jax.methods.toolkit import drawing, masking
from ssl_jax.models.blocks import Block, layer_norm, weight_init
from ssl_jax.models.dense import Dense
from ssl_jax.models.patches import patchify
from ssl_jax.models.positions import patch_grid, sincos_positions


class Decoder(nn.Module):
    """The tokens that the encoder saw -> the pixels of all patches, or other numbers of theirs.

    Each hidden patch begins as one and the same token. Positions are fixed sines and cosines of patches, or learned for
    all tokens.
    """

    dim: int
    depth: int
    heads: int
    outputs: int  # of a patch
    grid: tuple[int, int]  # patches down, across
    prefix: int = 1  # tokens before the patches
    positions: str = "sincos"  # or "learned"

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch _ encoder_dim"],
        mask: Bool[Array, "batch patches"],
        train: bool = False,
        axis_name: str | None = None,
    ) -> Float[Array, "batch patches outputs"]:
        """tokens: those before the patches, then those of the patches where `mask` is False, in order."""
        x = Dense(self.dim, kernel_init=nn.initializers.xavier_uniform(), name="embed")(tokens)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.dim,))
        hidden = jnp.broadcast_to(mask_token, (len(x), 1, self.dim))
        # Where each patch's token is found among [the seen ones, the mask token].
        source = jnp.where(mask, x.shape[1] - self.prefix, jnp.cumsum(~mask, axis=1) - 1)
        patches = jnp.take_along_axis(jnp.concatenate([x[:, self.prefix :], hidden], axis=1), source[..., None], axis=1)
        if self.positions == "learned":
            x = jnp.concatenate([x[:, : self.prefix], patches], axis=1)
            x = x + self.param("pos_embed", weight_init, (1, *x.shape[1:]))
        else:
            x = jnp.concatenate([x[:, : self.prefix], patches + sincos_positions(self.grid, self.dim)], axis=1)
        for i in range(self.depth):
            block = Block(self.heads, 4 * self.dim, layer_scale=0.0, dtype=x.dtype, name=f"blocks_{i}")
            x = block(x)
        x = layer_norm(jnp.float32, "norm")(x)
        return Dense(self.outputs, kernel_init=nn.initializers.xavier_uniform(), name="pixels")(x[:, self.prefix :])


def decoder(
    backbone: nn.Module,
    images: Float[Array, "batch height width channels"],
    *,
    dim: int,
    depth: int,
    heads: int,
    outputs: int = 0,
    positions: str = "sincos",
) -> Decoder:
    """The decoder of a ViT's tokens for images of this size. outputs: of a patch; 0: its pixels."""
    patch = backbone.patch_size
    _, height, width, channels = images.shape
    return Decoder(
        dim,
        depth,
        heads,
        outputs=outputs or patch**2 * channels,
        grid=patch_grid((height, width), patch),
        prefix=backbone.num_prefix,
        positions=positions,
    )


def draw_backbone(rng_kernels: Key[Array, ""], rng_token: Key[Array, ""], params: Params) -> Params:
    """A ViT's params with MAE's first weights: kernels by Xavier's rule, a class token of deviation 0.02.

    Registers are drawn as the class token is: Pixio calls them class tokens, too.
    """
    drawn = drawing.draw_xavier(rng_kernels, params, split_qkv=False)
    drawn = {**drawn, "cls_token": 0.02 * jax.random.normal(rng_token, drawn["cls_token"].shape)}
    if "reg_token" in drawn:
        rng_registers = jax.random.fold_in(rng_token, 1)
        drawn["reg_token"] = 0.02 * jax.random.normal(rng_registers, drawn["reg_token"].shape)
    return drawn


def init_decoder(rng: Key[Array, ""], made: Decoder, encoder_dim: int) -> Variables:
    """Params of a decoder whose kernels are drawn by Xavier's rule."""
    rng_init, rng_draw = jax.random.split(rng)
    mask = jnp.zeros((1, made.grid[0] * made.grid[1]), bool)
    tokens = jnp.zeros((1, made.prefix + mask.shape[1], encoder_dim))
    first = cast(Any, made).init(rng_init, tokens, mask)["params"]
    return drawing.draw_xavier(rng_draw, first, split_qkv=False)


def pixel_loss(
    prediction: Float[Array, "batch patches pixels"],
    target: Float[Array, "batch patches pixels"],
    mask: Bool[Array, "batch patches"],
    *,
    normalize: bool,
    axis_name: str | None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(`losses.masked_pixels`, that of a prediction of each patch's own mean)"""
    loss = losses.masked_pixels(prediction, target, mask, normalize=normalize, axis_name=axis_name)
    mean = jnp.mean(target, axis=-1, keepdims=True) * (0.0 if normalize else 1.0)
    of_means = losses.masked_pixels(
        jnp.broadcast_to(mean, target.shape), target, mask, normalize=normalize, axis_name=axis_name
    )
    return loss, of_means


def reconstructions(
    images: Float[Array, "batch height width channels"],
    mask: Bool[Array, "batch patches"],
    patch_size: int,
    prediction: Float[Array, "batch patches pixels"],
    *,
    normalize: bool,
) -> dict[str, Float[Array, "batch height width channels"]]:
    """`masking.pictures` of predicted pixels; with `normalize`, with the true patches' means and deviations."""
    if normalize:
        mean, deviation = masking.moments(patchify(images, patch_size))
        prediction = prediction * deviation + mean
    return masking.pictures(images, mask, patch_size, prediction)
