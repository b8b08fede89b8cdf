"""AIM."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, NOT_NEGATIVE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import masking, tiling
from ssl_jax.models.blocks import FeedForward, dense, layer_norm
from ssl_jax.models.patches import patchify
from ssl_jax.models.positions import patch_grid, sincos_positions


class Head(nn.Module):
    """Tokens -> pixels, each token by itself: a ViT's blocks without their attention. Positions are added once more.

    width: of the blocks. A linear layer leads to it if the tokens have another.
    """

    depth: int
    width: int
    mlp_width: int
    pixels: int  # of a patch
    grid: tuple[int, int]  # patches down, across
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch patches dim"]) -> Float[Array, "batch patches pixels"]:
        if tokens.shape[-1] != self.width:
            tokens = dense(self.width, jnp.float32, "embed")(tokens)
        x = (tokens + sincos_positions(self.grid, self.width)).astype(self.dtype)
        for i in range(self.depth):
            y = layer_norm(self.dtype, f"norm_{i}")(x)
            x = x + FeedForward(self.mlp_width, self.dtype, name=f"mlp_{i}")(y)
        x = layer_norm(jnp.float32, "norm")(x)
        return dense(self.pixels, jnp.float32, "pixels")(x)


@dataclasses.dataclass(frozen=True)
class AIM(Base):
    """Predicts each patch of an image from those before it, row by row.

    The first patches of an image are its prefix. Its length is drawn for each image, from 1 to all but one. All patches
    of the prefix see each other; each later patch sees those before it and itself. From each token a head predicts the
    pixels of the next patch, normalized by the mean and deviation of that patch. Predictions of the prefix do not
    count, as the token before has seen it.

    The prefix is why the network can be used with all patches in view: `features` has no mask, and takes the mean of
    the patches. The authors train an attentive pooling of several blocks instead.

    Give the ViT fixed positions and no class token: model.positions="sincos", class_token=False, pool="norm_mean".

    Source: El-Nouby et al. 2024, arXiv:2401.08541, section 3. The authors' code is of the trained networks alone. Their
    linear layers have no biases, and a LayerNorm follows their patch embedding. This ViT is timm's in both.
    """

    backbone: nn.Module
    schedule: Schedule
    head_depth: Annotated[int, COUNT, "Blocks of the head."] = 12
    head_width: Annotated[int, NOT_NEGATIVE, "Width of the head; 0: as wide as the ViT."] = 0

    views = ("view",)
    # chance_level: the variance of the patches, which the metric patch_mean_loss shows.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self, class_token=False)

    def head(self, images: Float[Array, "batch height width channels"]) -> Head:
        """For images of this size."""
        vit = self.backbone
        _, height, width, channels = images.shape
        dim = self.head_width or vit.dim
        return Head(
            self.head_depth,
            dim,
            round(vit.mlp_ratio * dim),
            pixels=vit.patch_size**2 * channels,
            grid=patch_grid((height, width), vit.patch_size),
            dtype=jnp.dtype(vit.dtype),
        )

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_backbone, rng_head = jax.random.split(rng)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, rng_backbone, images)
        head = self.head(images)
        tokens = jnp.zeros((1, head.grid[0] * head.grid[1], self.backbone.dim))
        params["head"] = head.init(rng_head, tokens)["params"]
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        prediction, tokens, predicted = self.predict(params, images, batch["index"], rng, axis_name)
        target, counts = patchify(images, self.backbone.patch_size)[:, 1:], predicted[:, 1:]
        loss = losses.masked_pixels(prediction, target, counts, axis_name=axis_name)
        # What a prediction of each patch's own mean would give.
        of_means = losses.masked_pixels(jnp.zeros_like(target), target, counts, axis_name=axis_name)
        return Output(loss, state, {"patch_mean_loss": of_means}, embeddings=jnp.mean(tokens, axis=1)[None])

    def predict(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        index: ops.Index,
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch _ pixels"], Float[Array, "batch patches dim"], Bool[Array, "batch patches"]]:
        """(normalized pixels of all patches but the first, tokens, which patches are not in the prefix)"""
        rng_prefix, rng_drop = jax.random.split(rng)
        head = self.head(images)
        patches = head.grid[0] * head.grid[1]
        prefix = draw_prefixes(rng_prefix, index, patches)
        tokens, _ = toolkit.train_apply(
            self.backbone,
            params["backbone"],
            {},
            images,
            axis_name=axis_name,
            rng=rng_drop,
            method="tokens",
            attend=prefix_attention(prefix, patches),
        )
        prediction: Any = head.apply({"params": params["head"]}, tokens)
        return prediction[:, :-1], tokens, jnp.arange(patches) >= prefix[:, None]

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        """Each patch after the prefix as the head predicts it from the true patches before it."""
        (images,) = batch["views"]
        prediction, _, predicted = self.predict(params, images, batch["index"], rng, None)
        mean, deviation = masking.moments(patchify(images, self.backbone.patch_size))
        first = jnp.zeros_like(prediction[:, :1])  # always in the prefix
        drawn = jnp.concatenate([first, prediction], axis=1) * deviation + mean
        made = masking.pictures(images, predicted, self.backbone.patch_size, drawn)
        return {"image": made["image"], "prefix": made["seen"], "next patches": made["reconstruction"]}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic()


def draw_prefixes(rng: Key[Array, ""], index: ops.Index, patches: int) -> Int[Array, "batch"]:
    """The length of each image's prefix, uniform in 1, ..., patches - 1."""
    return 1 + tiling.offsets(rng, index, (), patches - 1)


def prefix_attention(prefix: Int[Array, "batch"], patches: int) -> Bool[Array, "batch patches patches"]:
    """True where a query (row) may see a key (column): itself, the patches before it, and the whole prefix."""
    number = jnp.arange(patches)
    return (number <= number[:, None]) | (number < prefix[:, None, None])
