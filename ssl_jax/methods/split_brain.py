"""Split-brain autoencoder."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import colors
from ssl_jax.models.lab import lab_of_normalized
from ssl_jax.models.split import SplitResNet

LIGHTNESS_BINS = 50  # equal ones, of L in 0..100


@dataclasses.dataclass(frozen=True)
class SplitBrain(colors.ColorMethod):
    """Predicts an image's colors from its lightness with one half of the backbone, its lightness with the other.

    Both halves predict bins at every fourth row and column, by cross entropy: 313 bins of color, and 50 bins of
    lightness. A target is the nearest bin. The features are those of both halves, one after the other. Use a model.name
    such as "split_resnet50" with model.parts="lab". Images need colors: see the metric colored_share.

    Source: Zhang, Isola & Efros 2017, arXiv:1611.09842, sections 3.1 and 3.2 and appendix B.
    """

    backbone: nn.Module
    schedule: Schedule
    uniform_share: Annotated[
        float,
        SHARE,
        "The uniform distribution's share in the mixture that colors are weighed by, as in colorization. 1 weighs all "
        "colors alike, as this paper's cross entropy does.",
    ] = 1.0
    temperature: Annotated[
        float, POSITIVE, "Temperature of the annealed mean that pictures and the metric color_distance show."
    ] = 0.38
    decoder_width: Annotated[int, COUNT, "Channels of the last layer of each half's decoder."] = 256

    views = ("view",)
    # chance_level: it depends on the share of images with color. The metric uniform_loss shows it.

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.backbone, SplitResNet) or self.backbone.parts != "lab":
            parts = f" with parts={self.backbone.parts!r}" if isinstance(self.backbone, SplitResNet) else ""
            raise ValueError(
                "split_brain needs a backbone of two halves, one for lightness and one for colors, "
                f"got a {type(self.backbone).__name__}{parts}; use a model.name such as "
                'split_resnet50 with model.parts="lab"'
            )

    def decoders(self, images: Float[Array, "batch height width channels"]) -> dict[str, nn.Module]:
        """From the first half's map to logits of color, and from the second half's to logits of lightness."""
        bins = {"color": len(colors.BINS), "lightness": LIGHTNESS_BINS}
        return {name: colors.decoder(images, count, self.decoder_width) for name, count in bins.items()}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_backbone, *rngs = jax.random.split(rng, 3)
        params, batch_stats, features = toolkit.init_map(self.backbone, rng_backbone, images)
        halves = jnp.split(features, 2, axis=-1)
        for (name, decoder), rng_decoder, half in zip(self.decoders(images).items(), rngs, halves, strict=True):
            drawn = toolkit.init({name: decoder}, rng_decoder, half)
            params, batch_stats = params | drawn[0], batch_stats | drawn[1]
        return params, {"batch_stats": batch_stats, "prior": colors.first_prior()}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        logits, h, batch_stats = self.predict(params, state, images, rng, axis_name)
        lab = colors.subsample(lab_of_normalized(images, self.backbone.mean, self.backbone.std))
        color, prior, metrics = colors.loss(
            logits["color"],
            lab[..., 1:],
            state["prior"],
            encode=colors.nearest,
            uniform_share=self.uniform_share,
            temperature=self.temperature,
            axis_name=axis_name,
        )
        lightness = losses.classification(
            logits["lightness"].reshape(-1, LIGHTNESS_BINS), lightness_bin(lab[..., 0]).ravel(), axis_name=axis_name
        )
        loss = color + lightness
        metrics = {
            **metrics,
            "uniform_loss": metrics["uniform_loss"] + jnp.log(LIGHTNESS_BINS),
            "loss_color": color,
            "loss_lightness": lightness,
        }
        return Output(loss, {"batch_stats": batch_stats, "prior": prior}, metrics, embeddings=h[None])

    def predict(
        self,
        params: Params,
        state: State,
        images: Float[Array, "batch height width channels"],
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[dict[str, Float[Array, "batch rows columns _"]], Float[Array, "batch dim"], toolkit.Variables]:
        """({"color", "lightness"}: logits, pooled features, new batch_stats)"""
        features, batch_stats = toolkit.forward_map(
            self.backbone, params, state["batch_stats"], images, axis_name=axis_name, rng=rng
        )
        logits = {}
        for (name, decoder), half in zip(self.decoders(images).items(), jnp.split(features, 2, axis=-1), strict=True):
            outputs, batch_stats = toolkit.forward({name: decoder}, params, batch_stats, half, axis_name=axis_name)
            logits |= outputs
        return logits, jnp.mean(features, axis=(1, 2)), batch_stats

    def color_logits(
        self, params: Params, state: State, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns bins"]:
        return colors.predict(self, params, state, images, "color", slice(self.backbone.dim // 2))

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1)


def lightness_bin(lightness: Float[Array, "*positions"]) -> Int[Array, "*positions"]:
    """The bin of L in 0..100. White is in the last bin."""
    return jnp.clip(jnp.floor(lightness * (LIGHTNESS_BINS / 100)), 0, LIGHTNESS_BINS - 1).astype(jnp.int32)
