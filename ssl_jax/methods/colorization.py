"""Colorization."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.methods import _color, _common
from ssl_jax.models.lab import lab_of_normalized
from ssl_jax.models.lightness import LightnessResNet


@dataclasses.dataclass(frozen=True)
class Colorization:
    """Predicts an image's colors from its lightness.

    At every fourth row and column, by the cross entropy of 313 bins of color; rare colors weigh more, without which
    all predictions become gray. The backbone sees lightness alone, also where it is evaluated: model.name is
    "lightness_resnet50" and the like. Images need colors: those that have none weigh 0, and where the metric
    colored_share is 0 nothing is learnt. What draws is a decoder on the backbone's map, which is thrown away.

    uniform_share: lambda, of the uniform distribution that the colors' is mixed with before a weight is made of it; see
      _color.py for how it is measured. 1 weighs all colors alike.
    temperature: of the annealed mean that pictures and the metric color_distance show.

    Source: Zhang, Isola & Efros 2016, arXiv:1603.08511, section 2, and the authors' code. Their network is a VGG or an
    AlexNet, and their bins are counted beforehand.
    """

    backbone: nn.Module
    run: _common.Run
    uniform_share: float = 0.5
    temperature: float = 0.38
    decoder_width: int = 256  # channels of its last layer

    views: ClassVar[tuple[str, ...]] = ("view",)
    chance_level: ClassVar[None] = None  # depends on the share of images with color: see the metric uniform_loss

    def __post_init__(self):
        if not isinstance(self.backbone, LightnessResNet):
            raise ValueError(
                f"colorization is from lightness, but a {type(self.backbone).__name__} sees the colors; "
                "use a model.name such as lightness_resnet50"
            )
        _common.check_share(self, "uniform_share")
        _common.check_positive(self, "temperature", "decoder_width")

    def decoders(self, images: Any) -> dict[str, nn.Module]:
        """From the backbone's map to logits of color."""
        return {"color": _color.decoder(images, len(_color.BINS), self.decoder_width)}

    def init(self, rng, images):
        rng_backbone, rng_decoder = jax.random.split(rng)
        params, batch_stats, features = _common.init_map(self.backbone, rng_backbone, images)
        drawn = _common.init(self.decoders(images), rng_decoder, features)
        return params | drawn[0], {"batch_stats": batch_stats | drawn[1], "prior": _color.first_prior()}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,) = batch["views"]
        logits, h, batch_stats = self.predict(params, state, images, rng, axis_name)
        lab = _color.subsample(lab_of_normalized(images, self.backbone.mean, self.backbone.std))
        loss, prior, metrics = _color.loss(
            logits,
            lab[..., 1:],
            state["prior"],
            uniform_share=self.uniform_share,
            temperature=self.temperature,
            axis_name=axis_name,
        )
        metrics = {"loss": loss, **metrics, "embeddings": h[None]}
        return loss, ({"batch_stats": batch_stats, "prior": prior}, metrics)

    def predict(self, params, state, images, rng, axis_name):
        """(logits [batch, rows, columns, bins], pooled features, new batch_stats)"""
        features, batch_stats = _common.forward_map(
            self.backbone, params, state["batch_stats"], images, axis_name=axis_name, rng=rng
        )
        outputs, batch_stats = _common.forward(
            self.decoders(images), params, batch_stats, features, axis_name=axis_name
        )
        return outputs["color"], jnp.mean(features, axis=(1, 2)), batch_stats

    def color_logits(self, params, state, images):
        """[batch, rows, columns, bins], in evaluation mode."""
        return _color.predict(self, params, state, images, "color")

    pictures = _color.pictures
    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
