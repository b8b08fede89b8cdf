"""iGPT."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, INNER_SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import codebook, tiling
from ssl_jax.models.igpt import IGPT

# Of the k-means over batches. A batch has a hundred thousand pixels, so that few batches make an average; and what the
# first batch was, when all its pixels had one color, is soon forgotten.
DECAY, RESTART_BELOW = 0.7, 0.05


@dataclasses.dataclass(frozen=True)
class ImageGPT(Base):
    """Predicts each pixel's color from the pixels before it, row by row; or hidden pixels from all others (BERT).

    Colors are those of a palette. k-means over `palette_steps` batches makes it of the pixels of the views before the
    first step; it is part of the backbone that is kept. The loss is the cross entropy of the predicted colors. With
    model.causal=False it is that of a share `hidden` of the pixels, whose tokens are their positions alone.

    The features are those of a middle block: model.feature_block, whose best value depends on the data.

    Source: Chen et al. 2020, Generative pretraining from pixels (ICML), section 2 and 3, and the authors' code. Their
    linear layers have no biases, and their normalization no mean and no offset. These blocks are timm's in both.
    """

    backbone: nn.Module
    schedule: Schedule
    palette_steps: Annotated[int, COUNT, "Batches whose pixels are clustered to the palette."] = 100
    hidden: Annotated[float, INNER_SHARE, "Probability of a pixel to be hidden, where model.causal=False."] = 0.15

    views = ("view",)
    # chance_level: equal embeddings can still predict how frequent each color is: see the metric frequency_loss.

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.backbone, IGPT):
            raise ValueError(
                f"this method's backbone predicts pixels, which a {type(self.backbone).__name__} does not; "
                "use model.name=igpt_small"
            )

    @property
    def preparing_steps(self) -> int:
        return self.palette_steps

    @property
    def head(self) -> nn.Module:
        return nn.Dense(self.backbone.colors, use_bias=False, kernel_init=nn.initializers.zeros)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_backbone, rng_head = jax.random.split(rng)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, rng_backbone, images)
        params["head"] = self.head.init(rng_head, jnp.zeros((1, self.backbone.dim)))["params"]
        colors = codebook.empty(self.backbone.colors, images.shape[-1])
        return params, {"batch_stats": batch_stats, "codebook": colors}

    def prepare(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> tuple[State, Float[Array, "views batch dim"]]:
        (images,) = batch["views"]
        pixels = self.backbone.resize(images)
        pixels = pixels.reshape(len(images), -1, images.shape[-1])
        *_, colors = codebook.fit(
            state["codebook"],
            pixels,
            rng,
            batch["index"],
            decay=DECAY,
            restart_below=RESTART_BELOW,
            axis_name=axis_name,
        )
        batch_stats = {"backbone": {**state["batch_stats"]["backbone"], "palette": colors["centroids"]}}
        return {**state, "batch_stats": batch_stats, "codebook": colors}, pixels.reshape(1, len(images), -1)

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        logits, tokens, counted, outputs = self.predict(params, state, images, batch["index"], rng, axis_name)
        loss = losses.masked_cross_entropy(logits, tokens, counted, axis_name=axis_name)
        metrics = {
            "frequency_loss": frequency_loss(tokens, self.backbone.colors, axis_name),
            "accuracy": toolkit.accuracy(
                logits.reshape(-1, self.backbone.colors), jnp.where(counted, tokens, -1).reshape(-1), axis_name
            ),
        }
        return Output(loss, state, metrics, embeddings=jnp.mean(outputs, axis=1)[None])

    def predict(
        self,
        params: Params,
        state: State,
        images: Float[Array, "batch height width channels"],
        index: ops.Index,
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[
        Float[Array, "batch pixels colors"],
        Int[Array, "batch pixels"],
        Bool[Array, "batch pixels"],
        Float[Array, "batch pixels dim"],
    ]:
        """(logits of each pixel's color, the colors, which pixels are predicted, what they are predicted from)"""
        pixels = self.backbone.image_size**2
        counted, options = jnp.ones((len(images), pixels), bool), {}
        if not self.backbone.causal:
            counted = tiling.uniform(rng, index, (pixels,)) < self.hidden
            options = {"hidden": counted}
        (outputs, tokens), _ = toolkit.train_apply(
            self.backbone,
            params["backbone"],
            state["batch_stats"]["backbone"],
            images,
            axis_name=axis_name,
            method="outputs",
            **options,
        )
        logits: Any = self.head.apply({"params": params["head"]}, outputs)
        return logits, tokens, counted, outputs

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        """Predicted is the most probable color of each pixel; those that are not predicted are left as they are."""
        (images,) = batch["views"]
        logits, tokens, counted, _ = self.predict(params, state, images, batch["index"], rng, None)
        palette, side = state["batch_stats"]["backbone"]["palette"], self.backbone.image_size
        made = {
            "colors": palette[tokens],
            "seen": jnp.where(counted[..., None], 0.0, palette[tokens]),
            "predicted": palette[jnp.where(counted, jnp.argmax(logits, axis=-1), tokens)],
        }
        if self.backbone.causal:
            del made["seen"]  # every pixel is seen by some
        as_images = {name: x.reshape(len(images), side, side, -1) for name, x in made.items()}
        return {"image": self.backbone.resize(images), **as_images}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(reduced=4 * self.backbone.colors)  # how frequent each color is


def frequency_loss(tokens: Int[Array, "batch pixels"], colors: int, axis_name: str | None) -> Float[Array, ""]:
    """Loss of a prediction of how frequent each color is in the global batch."""
    counts = jax.ops.segment_sum(jnp.ones(tokens.size), tokens.reshape(-1), colors)
    counts = ops.global_sum(counts, axis_name)
    return jnp.sum(jax.scipy.special.entr(counts / jnp.sum(counts)))
