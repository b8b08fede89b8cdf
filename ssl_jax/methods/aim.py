"""AIM."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses
from ssl_jax.methods import _common, _tiles, _tokens
from ssl_jax.models.patches import patchify
from ssl_jax.models.positions import patch_grid, sincos_positions
from ssl_jax.models.vit import FeedForward, dense, layer_norm


class Head(nn.Module):
    """Tokens -> pixels, each token by itself: a ViT's blocks without their attention; positions are added once more.

    width: of the blocks; a linear layer leads to it where tokens have another.
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
class AIM:
    """Predicts each patch of an image from those before it, row by row.

    A prefix of 1 to all but one of the patches, its length drawn for each image, sees all of itself; the others see it
    and what lies between. The head draws from each token the patch that comes next, normalized by its own mean and
    deviation; those of the prefix do not count, as the token before has seen them. Prefixes are what makes the network
    work with all patches in view, as it is used afterwards: `features` has no mask, and takes the mean of the patches,
    where the authors train an attentive pooling of several blocks.

    Give the ViT fixed positions and no class token: model.positions="sincos", class_token=False, pool="norm_mean".

    Source: El-Nouby et al. 2024, arXiv:2401.08541, section 3; the authors' code is of the trained networks alone. Their
    linear layers have no biases, and a LayerNorm follows the patch embedding; this ViT has timm's.
    """

    backbone: nn.Module
    run: _common.Run
    head_depth: int = 12
    head_width: int = 0  # 0: as wide as the ViT

    views: ClassVar[tuple[str, ...]] = ("view",)
    chance_level: ClassVar[None] = None  # the variance of the patches: see the metric patch_mean_loss

    def __post_init__(self):
        _tokens.check_vit(self, class_token=False)
        _common.check_positive(self, "head_depth")

    def head(self, images: Float[Array, "batch height width channels"]) -> Head:
        """For images of this size."""
        vit = self.backbone
        width = self.head_width or vit.dim
        return Head(
            self.head_depth,
            width,
            round(vit.mlp_ratio * width),
            pixels=vit.patch_size**2 * images.shape[-1],
            grid=patch_grid(images.shape[1:3], vit.patch_size),
            dtype=jnp.dtype(vit.dtype),
        )

    def init(self, rng, images):
        rng_backbone, rng_head = jax.random.split(rng)
        params, batch_stats = _common.init({"backbone": self.backbone}, rng_backbone, images)
        head = self.head(images)
        tokens = jnp.zeros((1, head.grid[0] * head.grid[1], self.backbone.dim))
        params["head"] = head.init(rng_head, tokens)["params"]
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,) = batch["views"]
        prediction, tokens, predicted = self.predict(params, images, batch["index"], rng, axis_name)
        target, counts = patchify(images, self.backbone.patch_size)[:, 1:], predicted[:, 1:]
        loss = losses.masked_pixels(prediction, target, counts, axis_name=axis_name)
        # What a prediction of each patch's own mean would give.
        of_means = losses.masked_pixels(jnp.zeros_like(target), target, counts, axis_name=axis_name)
        metrics = {"loss": loss, "patch_mean_loss": of_means, "embeddings": jnp.mean(tokens, axis=1)[None]}
        return loss, (state, metrics)

    def predict(self, params: Any, images: Any, index: Any, rng: Any, axis_name: str | None) -> tuple[Any, Any, Any]:
        """(normalized pixels of all patches but the first, tokens, which patches are not of the prefix)"""
        rng_prefix, rng_drop = jax.random.split(rng)
        head = self.head(images)
        patches = head.grid[0] * head.grid[1]
        prefix = draw_prefixes(rng_prefix, index, patches)
        tokens, _ = _common.train_apply(
            self.backbone,
            params["backbone"],
            {},
            images,
            axis_name=axis_name,
            rng=rng_drop,
            tokens=True,
            attend=prefix_attention(prefix, patches),
        )
        prediction = head.apply({"params": params["head"]}, tokens)
        return prediction[:, :-1], tokens, jnp.arange(patches) >= prefix[:, None]

    def pictures(self, params, state, batch, rng):
        """Each patch after the prefix as it is predicted from all before it, as they are and not as predicted."""
        (images,) = batch["views"]
        prediction, _, predicted = self.predict(params, images, batch["index"], rng, None)
        mean, deviation = _tokens.moments(patchify(images, self.backbone.patch_size))
        first = jnp.zeros_like(prediction[:, :1])  # always of the prefix
        drawn = jnp.concatenate([first, prediction], axis=1) * deviation + mean
        made = _tokens.pictures(images, predicted, self.backbone.patch_size, drawn)
        return {"image": made["image"], "prefix": made["seen"], "next patches": made["reconstruction"]}

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features


def draw_prefixes(rng: Key[Array, ""], index: Int[Array, "batch"], patches: int) -> Int[Array, "batch"]:
    """The length of each image's prefix, uniform in 1, ..., patches - 1."""
    return 1 + _tiles.offsets(rng, index, (), patches - 1)


def prefix_attention(prefix: Int[Array, "batch"], patches: int) -> Bool[Array, "batch patches patches"]:
    """True where the query, a row, may see the key: itself, those before it, and all of the first `prefix`."""
    number = jnp.arange(patches)
    return (number <= number[:, None]) | (number < prefix[:, None, None])
