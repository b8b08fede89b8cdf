"""VAE."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import losses, optim
from ssl_jax.methods import _common, _tiles
from ssl_jax.models.decoder import ConvDecoder
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class VAE:
    """Draws an image from a noisy code of it, and keeps the codes of all images near a standard normal distribution.

    A linear layer on the backbone gives each code's mean and log variance, so the features, which are the backbone's,
    hold what the mean does. The decoder's Gaussian has one `variance`, in those of the normalized data: the smaller it
    is, the more the reconstruction counts. The divergence's weight grows to `beta` in `warmup_steps`, for codes not to
    be given up at first, after which they may stay unused: see the metric divergence.

    Source: Kingma & Welling 2013, arXiv:1312.6114; warm-up: Bowman et al. 2015, arXiv:1511.06349, section 3.1.
    """

    backbone: nn.Module
    run: _common.Run
    latent: int = 128
    variance: float = 0.1
    beta: float = 1.0
    warmup_steps: int = 0
    decoder_width: int = 32  # channels of its last layer

    views: ClassVar[tuple[str, ...]] = ("view",)
    chance_level: ClassVar[None] = None

    def __post_init__(self):
        _common.check_positive(self, "latent", "variance", "beta", "decoder_width")

    @property
    def encoder(self) -> dict[str, nn.Module]:
        """images -> [batch, 2 * latent]"""
        return {"backbone": self.backbone, "code": MLP((2 * self.latent,), output_bias=True)}

    def decoder(self, images: Any) -> nn.Module:
        """[batch, latent] -> images of this size"""
        return ConvDecoder(images.shape[1:3], images.shape[-1], width=self.decoder_width)

    def init(self, rng, images):
        rng_encoder, rng_decoder = jax.random.split(rng)
        params, batch_stats = _common.init(self.encoder, rng_encoder, images)
        drawn = _common.init({"decoder": self.decoder(images)}, rng_decoder, jnp.zeros((1, self.latent)))
        return params | drawn[0], {"batch_stats": batch_stats | drawn[1], "step": jnp.zeros((), jnp.int32)}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,) = batch["views"]
        prediction, mean, log_variance, h, batch_stats = self.predict(params, state, batch, rng, axis_name)
        beta = optim.linear(0.0, self.beta, state["step"], self.warmup_steps)
        reconstruction, divergence = losses.vae(
            prediction, images, mean, log_variance, variance=self.variance, beta=beta, axis_name=axis_name
        )
        metrics = {
            "loss": reconstruction + divergence,
            "reconstruction": losses.squared_error(prediction, images, axis_name=axis_name),
            "mean_loss": losses.squared_error(jnp.zeros_like(images), images, axis_name=axis_name),
            "divergence": divergence,
            "embeddings": h[None],
        }
        return reconstruction + divergence, ({**state, "batch_stats": batch_stats}, metrics)

    def predict(self, params, state, batch, rng, axis_name):
        """(images from codes drawn for them, the codes' mean and log variance, features, new batch_stats)"""
        (images,) = batch["views"]
        rng_code, rng_dropout = jax.random.split(rng)
        outputs, batch_stats = _common.forward(
            self.encoder, params, state["batch_stats"], images, axis_name=axis_name, rng=rng_dropout
        )
        mean, log_variance = jnp.split(outputs["code"], 2, axis=-1)
        keys = _tiles.image_keys(rng_code, batch["index"])
        noise = jax.vmap(lambda key: jax.random.normal(key, (self.latent,)))(keys)
        code = mean + jnp.exp(0.5 * jnp.clip(log_variance, -10.0, 10.0)) * noise
        decoded, batch_stats = _common.forward(
            {"decoder": self.decoder(images)}, params, batch_stats, code, axis_name=axis_name
        )
        return decoded["decoder"], mean, log_variance, outputs["backbone"], batch_stats

    def pictures(self, params, state, batch, rng):
        (images,) = batch["views"]
        reconstruction, *_ = self.predict(params, state, batch, rng, None)
        codes = jax.random.normal(rng, (len(images), self.latent))
        samples = self.decoder(images).apply(
            {"params": params["decoder"], "batch_stats": state["batch_stats"]["decoder"]}, codes
        )
        return {"image": images, "reconstruction": reconstruction, "sample": samples}

    def update(self, params, state, step):
        return {**state, "step": jnp.asarray(step, jnp.int32)}

    backbone_variables = _common.online_backbone
    features = _common.features
