"""Split-brain autoencoder."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssl_jax import losses
from ssl_jax.methods import _color, _common
from ssl_jax.models.lab import lab_of_normalized
from ssl_jax.models.split import SplitResNet

LIGHTNESS_BINS = 50  # of L in 0..100


@dataclasses.dataclass(frozen=True)
class SplitBrain:
    """Predicts an image's colors from its lightness with one half of the backbone, and the other way round.

    Both by cross entropy at every fourth row and column: of 313 bins of color, and of 50 bins of lightness. A target is
    the nearest bin. Together the halves' features, one after the other, are of the whole image. model.name is
    "split_resnet50" and the like, with model.parts="lab". Images need colors: see the metric colored_share.

    uniform_share: as colorization has it. 1: this paper's cross entropy weighs all colors alike.

    Source: Zhang, Isola & Efros 2017, arXiv:1611.09842, sections 3.1 and 3.2 and appendix B.
    """

    backbone: nn.Module
    run: _common.Run
    uniform_share: float = 1.0
    temperature: float = 0.38  # of the colors that pictures and the metric color_distance show
    decoder_width: int = 256  # channels of each half's last layer

    views: ClassVar[tuple[str, ...]] = ("view",)
    chance_level: ClassVar[None] = None  # depends on the share of images with color: see the metric uniform_loss

    def __post_init__(self):
        if not isinstance(self.backbone, SplitResNet) or self.backbone.parts != "lab":
            parts = f" of parts={self.backbone.parts!r}" if isinstance(self.backbone, SplitResNet) else ""
            raise ValueError(
                f"a {type(self.backbone).__name__}{parts} has no halves for lightness and colors; use a model.name "
                'such as split_resnet50 with model.parts="lab"'
            )
        _common.check_share(self, "uniform_share")
        _common.check_positive(self, "temperature", "decoder_width")

    def decoders(self, images: Any) -> dict[str, nn.Module]:
        """Of the first half's map to logits of color, and of the second's to logits of lightness."""
        bins = {"color": len(_color.BINS), "lightness": LIGHTNESS_BINS}
        return {name: _color.decoder(images, count, self.decoder_width) for name, count in bins.items()}

    def init(self, rng, images):
        rng_backbone, *rngs = jax.random.split(rng, 3)
        params, batch_stats, features = _common.init_map(self.backbone, rng_backbone, images)
        halves = jnp.split(features, 2, axis=-1)
        for (name, decoder), rng_decoder, half in zip(self.decoders(images).items(), rngs, halves, strict=True):
            drawn = _common.init({name: decoder}, rng_decoder, half)
            params, batch_stats = params | drawn[0], batch_stats | drawn[1]
        return params, {"batch_stats": batch_stats, "prior": _color.first_prior()}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,) = batch["views"]
        logits, h, batch_stats = self.predict(params, state, images, rng, axis_name)
        lab = _color.subsample(lab_of_normalized(images, self.backbone.mean, self.backbone.std))
        color, prior, metrics = _color.loss(
            logits["color"],
            lab[..., 1:],
            state["prior"],
            encode=_color.nearest,
            uniform_share=self.uniform_share,
            temperature=self.temperature,
            axis_name=axis_name,
        )
        lightness = losses.classification(
            logits["lightness"].reshape(-1, LIGHTNESS_BINS), lightness_bin(lab[..., 0]).ravel(), axis_name=axis_name
        )
        loss = color + lightness
        metrics = {
            "loss": loss,
            **metrics,
            "uniform_loss": metrics["uniform_loss"] + jnp.log(LIGHTNESS_BINS),
            "loss_color": color,
            "loss_lightness": lightness,
            "embeddings": h[None],
        }
        return loss, ({"batch_stats": batch_stats, "prior": prior}, metrics)

    def predict(self, params, state, images, rng, axis_name):
        """({"color", "lightness"}: logits [batch, rows, columns, bins], pooled features, new batch_stats)"""
        features, batch_stats = _common.forward_map(
            self.backbone, params, state["batch_stats"], images, axis_name=axis_name, rng=rng
        )
        logits = {}
        for (name, decoder), half in zip(self.decoders(images).items(), jnp.split(features, 2, axis=-1), strict=True):
            outputs, batch_stats = _common.forward({name: decoder}, params, batch_stats, half, axis_name=axis_name)
            logits |= outputs
        return logits, jnp.mean(features, axis=(1, 2)), batch_stats

    def color_logits(self, params, state, images):
        """[batch, rows, columns, bins], in evaluation mode."""
        return _color.predict(self, params, state, images, "color", slice(self.backbone.dim // 2))

    pictures = _color.pictures
    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features


def lightness_bin(lightness: Float[Array, "*positions"]) -> Int[Array, "*positions"]:
    """Of L in 0..100; white is of the last."""
    return jnp.clip(jnp.floor(lightness * (LIGHTNESS_BINS / 100)), 0, LIGHTNESS_BINS - 1).astype(jnp.int32)
