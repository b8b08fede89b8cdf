"""VAE."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import tiling
from ssl_jax.models.decoder import ConvDecoder
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class VAE(Base):
    """Predicts an image from a noisy code of it, and keeps the codes of all images near a standard normal distribution.

    A linear layer on the backbone gives each code's mean and log variance. The features are the backbone's, so they
    hold what the mean does. The decoder's Gaussian has one `variance`: the smaller it is, the more the reconstruction
    counts. The weight of the divergence grows to `beta` in `warmup_steps`. Otherwise codes may be given up at first,
    and may stay unused: see the metric divergence.

    Source: Kingma & Welling 2013, arXiv:1312.6114; warm-up: Bowman et al. 2015, arXiv:1511.06349, section 3.1.
    """

    backbone: nn.Module
    schedule: Schedule
    latent: Annotated[int, COUNT, "Dimensions of a code."] = 128
    variance: Annotated[
        float, POSITIVE, "Variance of the decoder's Gaussian, in units of the normalized data's variance."
    ] = 0.1
    beta: Annotated[float, POSITIVE, "Weight of the divergence after the warm-up."] = 1.0
    warmup_steps: Annotated[int, NOT_NEGATIVE, "Steps in which the divergence's weight grows from 0 to `beta`."] = 0
    decoder_width: Annotated[int, COUNT, "Channels of the decoder's last layer."] = 32

    views = ("view",)

    @property
    def encoder(self) -> toolkit.Networks:
        """images -> [batch, 2 * latent]"""
        return {"backbone": self.backbone, "code": MLP((2 * self.latent,), output_bias=True)}

    def decoder(self, images: Float[Array, "batch height width channels"]) -> nn.Module:
        """[batch, latent] -> images of this size"""
        _, height, width, channels = images.shape
        return ConvDecoder((height, width), channels, width=self.decoder_width)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_encoder, rng_decoder = jax.random.split(rng)
        params, batch_stats = toolkit.init(self.encoder, rng_encoder, images)
        drawn = toolkit.init({"decoder": self.decoder(images)}, rng_decoder, jnp.zeros((1, self.latent)))
        return params | drawn[0], {"batch_stats": batch_stats | drawn[1], "step": jnp.zeros((), jnp.int32)}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        prediction, mean, log_variance, h, batch_stats = self.predict(params, state, batch, rng, axis_name)
        beta = optim.linear(0.0, self.beta, state["step"], self.warmup_steps)
        reconstruction, divergence = losses.vae(
            prediction, images, mean, log_variance, variance=self.variance, beta=beta, axis_name=axis_name
        )
        metrics = {
            "reconstruction": losses.squared_error(prediction, images, axis_name=axis_name),
            "mean_loss": losses.squared_error(jnp.zeros_like(images), images, axis_name=axis_name),
            "divergence": divergence,
        }
        state = {**state, "batch_stats": batch_stats}
        return Output(reconstruction + divergence, state, metrics, embeddings=h[None])

    def predict(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], axis_name: str | None
    ) -> tuple[
        Float[Array, "batch height width channels"],
        Float[Array, "batch latent"],
        Float[Array, "batch latent"],
        Float[Array, "batch dim"],
        toolkit.Variables,
    ]:
        """(images decoded from random codes, the codes' mean, their log variance, features, new batch_stats)"""
        (images,) = batch["views"]
        rng_code, rng_dropout = jax.random.split(rng)
        outputs, batch_stats = toolkit.forward(
            self.encoder, params, state["batch_stats"], images, axis_name=axis_name, rng=rng_dropout
        )
        mean, log_variance = jnp.split(outputs["code"], 2, axis=-1)
        keys = tiling.image_keys(rng_code, batch["index"])
        noise = jax.vmap(lambda key: jax.random.normal(key, (self.latent,)))(keys)
        code = mean + jnp.exp(0.5 * jnp.clip(log_variance, -10.0, 10.0)) * noise
        decoded, batch_stats = toolkit.forward(
            {"decoder": self.decoder(images)}, params, batch_stats, code, axis_name=axis_name
        )
        return decoded["decoder"], mean, log_variance, outputs["backbone"], batch_stats

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        (images,) = batch["views"]
        reconstruction, *_ = self.predict(params, state, batch, rng, None)
        codes = jax.random.normal(rng, (len(images), self.latent))
        samples: Any = self.decoder(images).apply(
            {"params": params["decoder"], "batch_stats": state["batch_stats"]["decoder"]}, codes
        )
        return {"image": images, "reconstruction": reconstruction, "sample": samples}

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return {**state, "step": jnp.asarray(step, jnp.int32)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1)
