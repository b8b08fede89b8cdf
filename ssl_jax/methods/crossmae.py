"""CrossMAE."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax.keys import COUNT, INNER_SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import autoencoding, drawing, masking, tiling
from ssl_jax.models.attention import attention
from ssl_jax.models.blocks import FeedForward, layer_norm
from ssl_jax.models.dense import Dense
from ssl_jax.models.patches import patchify
from ssl_jax.models.positions import patch_grid, sincos_positions


class CrossBlock(nn.Module):
    """x + attention(norm(x), y), then x + mlp(norm(x)). Tokens of x see those of y, and not each other."""

    heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch queries dim"], y: Float[Array, "batch keys encoder_dim"]
    ) -> Float[Array, "batch queries dim"]:
        dim = x.shape[-1]
        queries = Dense(dim, name="q")(layer_norm(jnp.float32, "norm1")(x))
        answers = Dense(2 * dim, name="kv")(y)
        queries, keys, values = (
            z.reshape(*z.shape[:2], self.heads, -1) for z in (queries, *jnp.split(answers, 2, axis=-1))
        )
        x = x + Dense(dim, name="proj")(attention(queries, keys, values).reshape(x.shape))
        return x + FeedForward(4 * dim, jnp.float32, name="mlp")(layer_norm(jnp.float32, "norm2")(x))


class CrossDecoder(nn.Module):
    """What the encoder saw -> the pixels of the patches that are asked for.

    A query is one and the same token plus its patch's position, fixed sines and cosines. Block j looks at a mix of the
    encoder's maps, with learned weights of its own, after a LayerNorm.
    """

    dim: int
    depth: int
    heads: int
    pixels: int  # of a patch
    grid: tuple[int, int]  # patches down, across

    @nn.compact
    def __call__(
        self,
        maps: Float[Array, "batch maps tokens encoder_dim"],
        asked: Int[Array, "batch asked"],
        train: bool = False,
        axis_name: str | None = None,
    ) -> Float[Array, "batch asked pixels"]:
        weights = self.param("map_weights", nn.initializers.xavier_uniform(), (maps.shape[1], self.depth))
        mixed = jnp.einsum("bmte,md->dbte", maps, weights)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.dim,))
        x = mask_token + sincos_positions(self.grid, self.dim)[0][asked]
        for i in range(self.depth):
            x = CrossBlock(self.heads, name=f"cross_{i}")(x, layer_norm(jnp.float32, f"map_norm_{i}")(mixed[i]))
        return Dense(self.pixels, name="pixels")(layer_norm(jnp.float32, "norm")(x))


@dataclasses.dataclass(frozen=True)
class CrossMAE(Base):
    """MAE whose hidden patches do not see each other: each is drawn from the visible patches alone.

    The decoder's blocks have cross-attention and no self-attention. So it can draw some of the hidden patches only, a
    random `prediction_ratio` of all patches, in less time. Each of its blocks looks at a mix of all blocks' outputs of
    the encoder, and of what enters the first block, with learned weights. The encoder's last LayerNorm has no part in
    this and stays as it begins.

    Give the ViT fixed positions, model.positions="sincos". First weights are MAE's.

    Source: Fu et al. 2024, arXiv:2401.14391, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    mask_ratio: Annotated[float, INNER_SHARE, "Share of each image's patches that the encoder does not see."] = 0.75
    prediction_ratio: Annotated[
        float, INNER_SHARE, "Share of each image's patches that are drawn; at most mask_ratio, which draws all hidden."
    ] = 0.75
    normalize: Annotated[bool, "Predicts each patch's pixels relative to their mean and deviation."] = True
    decoder_dim: Annotated[int, COUNT, "Width of the decoder."] = 512
    decoder_depth: Annotated[int, COUNT, "Blocks of the decoder."] = 12
    decoder_heads: Annotated[int, COUNT, "Attention heads of the decoder."] = 16

    views = ("view",)
    masked = views
    # chance_level: as of MAE, the metric patch_mean_loss shows it.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self)
        if self.prediction_ratio > self.mask_ratio:
            raise ValueError(
                f"prediction_ratio={self.prediction_ratio} is more than mask_ratio={self.mask_ratio}, but only hidden "
                f"patches are drawn; use prediction_ratio={self.mask_ratio} or less"
            )

    def decoder(self, images: Float[Array, "batch height width channels"]) -> CrossDecoder:
        """For images of this size."""
        patch = self.backbone.patch_size
        _, height, width, channels = images.shape
        return CrossDecoder(
            self.decoder_dim,
            self.decoder_depth,
            self.decoder_heads,
            pixels=patch**2 * channels,
            grid=patch_grid((height, width), patch),
        )

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng, 5)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        params["backbone"] = autoencoding.draw_backbone(keys[1], keys[2], params["backbone"])
        maps = jnp.zeros((1, self.backbone.depth + 1, 1, self.backbone.dim))
        drawn = self.decoder(images).init(keys[3], maps, jnp.zeros((1, 1), jnp.int32))["params"]
        params["decoder"] = drawing.draw_xavier(keys[4], drawn, split_qkv=False)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,), (mask,) = batch["views"], batch["masks"]
        rng_asked, rng_backbone = jax.random.split(rng)
        noise = tiling.uniform(rng_asked, batch["index"], mask.shape[1:])
        asked = hidden(mask, self.prediction_ratio, noise)
        prediction, tokens = self.predict(params, images, mask, asked, rng_backbone, axis_name)
        target = jnp.take_along_axis(patchify(images, self.backbone.patch_size), asked[..., None], axis=1)
        loss, of_means = autoencoding.pixel_loss(
            prediction, target, jnp.ones(asked.shape, bool), normalize=self.normalize, axis_name=axis_name
        )
        embeddings = jnp.mean(tokens[:, self.backbone.num_prefix :], axis=1)[None]
        return Output(loss, state, {"patch_mean_loss": of_means}, embeddings=embeddings)

    def predict(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch patches"],
        asked: Int[Array, "batch asked"],
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch asked pixels"], Float[Array, "batch _ dim"]]:
        """(pixels of the patches with these indices, the last block's tokens of the class and the visible patches)"""
        keep = masking.unmasked(mask, self.mask_ratio)
        maps, _ = toolkit.train_apply(
            self.backbone,
            params["backbone"],
            {},
            images,
            axis_name=axis_name,
            rng=rng,
            keep=keep,
            last_blocks=self.backbone.depth + 1,
        )
        prediction: Any = self.decoder(images).apply(
            {"params": params["decoder"]}, maps, asked, train=True, axis_name=axis_name
        )
        return prediction, maps[:, -1]

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        """All hidden patches are drawn, whatever `prediction_ratio` is."""
        (images,), (mask,) = batch["views"], batch["masks"]
        asked = hidden(mask, self.mask_ratio, jnp.zeros(mask.shape))
        found, _ = self.predict(params, images, mask, asked, rng, None)
        rows = jnp.arange(len(asked))[:, None]
        prediction = jnp.zeros((*mask.shape, found.shape[-1])).at[rows, asked].set(found)
        return autoencoding.reconstructions(
            images, mask, self.backbone.patch_size, prediction, normalize=self.normalize
        )

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The backbone's last LayerNorm has no gradient.
        return Traffic(unused=2 * 4 * self.backbone.dim)


def hidden(
    mask: Bool[Array, "batch patches"], ratio: float, noise: Float[Array, "batch patches"]
) -> Int[Array, "batch asked"]:
    """As `masking.some_masked`; ratio: their share of all patches."""
    return masking.some_masked(mask, max(masking.count_masked(mask.shape[1], ratio), 1), noise)
