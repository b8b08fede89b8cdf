"""Colorization."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax.keys import COUNT, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import colors
from ssl_jax.models.lab import lab_of_normalized
from ssl_jax.models.lightness import LightnessResNet


@dataclasses.dataclass(frozen=True)
class Colorization(colors.ColorMethod):
    """Predicts an image's colors from its lightness.

    It predicts 313 bins of color at every fourth row and column, by cross entropy. Rare colors weigh more; otherwise
    all predictions become gray. toolkit/colors.py says how the frequency of a color is measured. A decoder on the
    backbone's feature map predicts, and is thrown away afterwards.

    The backbone sees the lightness alone, in training and in evaluation: use a model.name such as
    "lightness_resnet50". Images without color weigh 0. Where the metric colored_share is 0, nothing is learnt.

    Source: Zhang, Isola & Efros 2016, arXiv:1603.08511, section 2, and the authors' code. Their network is a VGG or an
    AlexNet, and their bins are counted beforehand.
    """

    backbone: nn.Module
    schedule: Schedule
    uniform_share: Annotated[
        float,
        SHARE,
        "Lambda: the uniform distribution's share in the mixture with the colors' frequencies. A color weighs the "
        "inverse of the mixture, so 1 weighs all colors alike.",
    ] = 0.5
    temperature: Annotated[
        float, POSITIVE, "Temperature of the annealed mean that pictures and the metric color_distance show."
    ] = 0.38
    decoder_width: Annotated[int, COUNT, "Channels of the decoder's last layer."] = 256

    views = ("view",)
    # chance_level: it depends on the share of images with color. The metric uniform_loss shows it.

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.backbone, LightnessResNet):
            raise ValueError(
                f"colorization predicts colors from lightness, but a {type(self.backbone).__name__} "
                "sees the colors; use a model.name such as lightness_resnet50"
            )

    def decoders(self, images: Float[Array, "batch height width channels"]) -> dict[str, nn.Module]:
        """From the backbone's map to logits of color."""
        return {"color": colors.decoder(images, len(colors.BINS), self.decoder_width)}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_backbone, rng_decoder = jax.random.split(rng)
        params, batch_stats, features = toolkit.init_map(self.backbone, rng_backbone, images)
        drawn = toolkit.init(self.decoders(images), rng_decoder, features)
        return params | drawn[0], {"batch_stats": batch_stats | drawn[1], "prior": colors.first_prior()}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        logits, h, batch_stats = self.predict(params, state, images, rng, axis_name)
        lab = colors.subsample(lab_of_normalized(images, self.backbone.mean, self.backbone.std))
        loss, prior, metrics = colors.loss(
            logits,
            lab[..., 1:],
            state["prior"],
            uniform_share=self.uniform_share,
            temperature=self.temperature,
            axis_name=axis_name,
        )
        return Output(loss, {"batch_stats": batch_stats, "prior": prior}, metrics, embeddings=h[None])

    def predict(
        self,
        params: Params,
        state: State,
        images: Float[Array, "batch height width channels"],
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch rows columns bins"], Float[Array, "batch dim"], toolkit.Variables]:
        """(logits, pooled features, new batch_stats)"""
        features, batch_stats = toolkit.forward_map(
            self.backbone, params, state["batch_stats"], images, axis_name=axis_name, rng=rng
        )
        outputs, batch_stats = toolkit.forward(
            self.decoders(images), params, batch_stats, features, axis_name=axis_name
        )
        return outputs["color"], jnp.mean(features, axis=(1, 2)), batch_stats

    def color_logits(
        self, params: Params, state: State, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns bins"]:
        return colors.predict(self, params, state, images, "color")

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1)
