"""iGPT's network (Chen et al. 2020, Generative pretraining from pixels): a transformer whose tokens are pixels."""

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ssl_jax import keys
from ssl_jax.keys import COUNT, NOT_NEGATIVE, Range
from ssl_jax.models._options import BranchDType, Remat
from ssl_jax.models.attention import AttentionKind
from ssl_jax.models.blocks import normed_by
from ssl_jax.models.vit import ViT
from ssl_jax.ops.shards import gather_all


class IGPT(nn.Module):
    """Images [batch, height, width, channels] -> features [batch, dim], float32.

    An image is resized to image_size x image_size pixels. Each pixel becomes the nearest color of a palette. The colors
    are the tokens of a transformer, row by row. The features are those of a middle block: the mean over pixels of what
    the next block normalizes.

    The blocks are a ViT's of patches of one pixel, whose images have a channel for each color: "patch_embed" is the
    table of the colors' embeddings. The palette is batch_stats["palette"], [colors, channels]: random at first, and
    given by the method that trains the network.

    Raises: ValueError for a value that a field cannot have, or for fields that do not go together.
    """

    dim: Annotated[int, COUNT, "Width of a token, a multiple of 4 and of heads."] = 512
    heads: Annotated[int, COUNT, "Attention heads of a block."] = 8
    depth: Annotated[int, COUNT, "Number of blocks."] = 24
    image_size: Annotated[int, COUNT, "Pixels a side that images are resized to; their square is the tokens."] = 32
    colors: Annotated[int, Range(2), "Colors of the palette."] = 512
    causal: Annotated[
        bool,
        "Each pixel sees itself and those before it, and a start token is before the first: predicts next pixels.",
        "If not, all pixels see each other: predicts hidden pixels, as BERT.",
    ] = True
    feature_block: Annotated[
        int, NOT_NEGATIVE, "Block, from 1, whose output is the features; 0: the one in the middle."
    ] = 0
    attention: AttentionKind = "auto"
    remat: Remat = "none"
    scan: Annotated[bool, "In training, the blocks are one loop; see ViT."] = False
    microbatch: Annotated[int, NOT_NEGATIVE, "In training, images that the blocks take at a time; see ViT."] = 0
    dtype: BranchDType = "float32"

    def __post_init__(self):
        keys.check_fields(self)
        if self.feature_block > self.depth:
            raise ValueError(f"feature_block={self.feature_block} is more than depth={self.depth}")
        super().__post_init__()

    def setup(self):
        self.body = self.vit(self.depth)

    @property
    def features_after(self) -> int:
        """Number of the block whose output is the features, from 1."""
        return self.feature_block or max(self.depth // 2, 1)

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch dim"]:
        return jnp.mean(self.feature_map(images, train, axis_name), axis=(1, 2))

    def feature_map(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch rows columns dim"]:
        """The features before their mean over pixels."""
        if self.is_initializing():
            self.outputs(images)
        block, params = self.features_after, self.body.variables["params"]
        x = one_hot(self.quantize(images), self.colors)
        first = self.vit(block, parent=None)
        tokens: Any = first.apply({"params": params}, x, train, axis_name, last_blocks=1, **self.sight)
        norm = params["norm"] if block == self.depth else params[f"blocks_{block}"]["norm1"]
        tokens = normed_by(gather_all(norm), tokens[:, 0, int(self.causal) :])
        return tokens.reshape(len(images), self.image_size, self.image_size, self.dim)

    def outputs(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        *,
        hidden: Bool[Array, "batch pixels"] | None = None,
    ) -> tuple[Float[Array, "batch pixels dim"], Int[Array, "batch pixels"]]:
        """(what predicts each pixel's color, after the last LayerNorm; the pixels' colors)

        If causal, it is the token before the pixel, else the pixel's own token. hidden: pixels whose color is not seen.
        """
        tokens = self.quantize(images)
        options: dict[str, Any] = dict(self.sight)
        if hidden is not None:
            options.update(mask=hidden, mask_token=jnp.zeros(self.dim))
        x = self.body(one_hot(tokens, self.colors), train, axis_name, tokens=True, **options)
        return x[:, : self.image_size**2], tokens.reshape(len(images), -1)

    def quantize(self, images: Float[Array, "batch height width channels"]) -> Int[Array, "batch rows columns"]:
        """The palette's color that is nearest to each pixel of the resized images."""
        palette = self.palette(images.shape[-1])
        pixels = self.resize(images)
        likeness = jnp.matmul(pixels, palette.T, precision="highest") - jnp.sum(palette**2, axis=1) / 2.0
        return jnp.argmax(likeness, axis=-1)

    @nn.compact
    def palette(self, channels: int) -> Float[Array, "colors channels"]:
        def draw() -> Float[Array, "colors channels"]:
            return jax.random.uniform(self.make_rng("params"), (self.colors, channels), minval=-1.0, maxval=1.0)

        return jnp.asarray(self.variable("batch_stats", "palette", draw).value)

    def resize(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch image_size image_size channels"]:
        batch, *size, channels = images.shape
        images = images.astype(jnp.float32)
        side = self.image_size
        return images if size == [side, side] else jax.image.resize(images, (batch, side, side, channels), "bilinear")

    @property
    def sight(self) -> dict[str, Any]:
        """Which tokens a token may attend to: none after it, if causal."""
        count = self.image_size**2 + 1
        return dict(attend=jnp.tril(jnp.ones((1, count, count), bool))) if self.causal else {}

    def vit(self, depth: int, **options: Any) -> ViT:
        """With this many blocks."""
        return ViT(
            dim=self.dim,
            heads=self.heads,
            depth=depth,
            mlp="quick_gelu",
            patch_size=1,
            image_size=self.image_size,
            class_token=self.causal,
            pool="norm_mean",
            norm_eps=1e-5,
            attention=self.attention,
            remat=self.remat,
            scan=self.scan,
            microbatch=self.microbatch,
            dtype=self.dtype,
            **options,
        )


def one_hot(tokens: Int[Array, "batch rows columns"], colors: int) -> Float[Array, "batch rows columns colors"]:
    return jax.nn.one_hot(tokens, colors, dtype=jnp.float32)
