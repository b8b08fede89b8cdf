"""AIM."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import ops
from ssl_jax.keys import COUNT, NOT_NEGATIVE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import autoencoding, masking, tiling
from ssl_jax.models.blocks import Block, FeedForward, dense, make_norm
from ssl_jax.models.patches import patchify
from ssl_jax.models.positions import patch_grid, sincos_positions


class Head(nn.Module):
    """Tokens -> pixels: a ViT's blocks. Positions are added once more.

    causal: each token attends to those before it and to itself, with `heads` heads (AIMv2's decoder). Otherwise the
    blocks have no attention, and each token is by itself.
    width: of the blocks. A linear layer leads to it if the tokens have another. The others are those of `Block`.
    """

    depth: int
    width: int
    mlp_width: int
    pixels: int  # of a patch
    grid: tuple[int, int]  # patches down, across
    dtype: Any
    causal: bool = False
    heads: int = 8
    mlp: str = "gelu"
    qkv_bias: bool = True
    bias: bool = True
    norm_kind: str = "layer"
    eps: float = 1e-6

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch patches dim"]) -> Float[Array, "batch patches pixels"]:
        if tokens.shape[-1] != self.width:
            tokens = dense(self.width, jnp.float32, "embed")(tokens)
        x = tokens + sincos_positions(self.grid, self.width)
        if self.causal:
            number = jnp.arange(x.shape[1])
            attend = (number <= number[:, None])[None]
            style = {name: getattr(self, name) for name in ("mlp", "qkv_bias", "bias", "norm_kind", "eps", "dtype")}
            for i in range(self.depth):
                x = Block(self.heads, self.mlp_width, layer_scale=0.0, name=f"blocks_{i}", **style)(x, attend=attend)
        else:
            x = x.astype(self.dtype)
            for i in range(self.depth):
                y = make_norm(self.norm_kind, self.dtype, f"norm_{i}", self.eps)(x)
                x = x + FeedForward(self.mlp_width, self.dtype, self.mlp, self.bias, name=f"mlp_{i}")(y)
        x = make_norm(self.norm_kind, jnp.float32, "norm", self.eps)(x)
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

    AIMv2 on images alone is `causal_head=True`: the head is a decoder, whose tokens attend to those before them. (With
    texts, it goes on to predict their words; that is left out.) Its networks have model.norm_kind="rms", mlp="swiglu"
    and no biases, and so has the head.

    Source: El-Nouby et al. 2024, arXiv:2401.08541, section 3; causal_head: Fini et al. 2024, arXiv:2411.14402. The
    authors' code is of the trained networks alone. Their
    linear layers have no biases, and a norm follows their patch embedding. This ViT has none there.
    """

    backbone: nn.Module
    schedule: Schedule
    head_depth: Annotated[int, COUNT, "Blocks of the head."] = 12
    head_width: Annotated[int, NOT_NEGATIVE, "Width of the head; 0: as wide as the ViT."] = 0
    causal_head: Annotated[
        bool, "Each token of the head attends to those before it, as in AIMv2. False: each is by itself, as in AIM."
    ] = False
    head_heads: Annotated[int, COUNT, "Attention heads of a causal head."] = 8

    views = ("view",)
    # chance_level: the variance of the patches, which the metric patch_mean_loss shows.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self, class_token=False)
        width = self.head_width or self.backbone.dim
        if self.causal_head and width % self.head_heads:
            raise ValueError(f"head_heads={self.head_heads} does not divide the width {width} of the head")

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
            causal=self.causal_head,
            heads=self.head_heads,
            mlp=vit.mlp,
            qkv_bias=vit.qkv_bias,
            bias=vit.bias,
            norm_kind=vit.norm_kind,
            eps=vit.norm_eps,
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
        loss, of_means = autoencoding.pixel_loss(prediction, target, counts, normalize=True, axis_name=axis_name)
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
