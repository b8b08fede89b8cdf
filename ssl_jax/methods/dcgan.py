"""DCGAN."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax import losses
from ssl_jax.methods import _common, _gan
from ssl_jax.models.dcgan import Discriminator, Generator
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class DCGAN:
    """Tells images from those of a generator, which learns to make them; the discriminator is the backbone.

    Both players are in one loss, each with the other's parameters held fixed in its own term, and move at the same
    time: an optimizer that treats every parameter by itself, as Adam, is then two of them. Real and made images each
    have BatchNorm statistics of their own in the discriminator, which keeps those of the real.

    Images are to be in -1..1, as the generator's are: give data.mean and data.std 0.5. The features are modest beside
    those of later methods.

    Source: Radford, Metz & Chintala 2015, arXiv:1511.06434; the generator's loss is that of Goodfellow et al. 2014,
    arXiv:1406.2661, section 3, which does not saturate.
    """

    backbone: nn.Module
    run: _common.Run
    latent: int = 100
    generator_width: int = 64  # channels of its last layer before the image

    views: ClassVar[tuple[str, ...]] = ("view",)
    chance_level: ClassVar[float] = 3 * math.log(2.0)  # of both players' losses; not the loss of a collapse

    def __post_init__(self):
        if not isinstance(self.backbone, Discriminator):
            raise ValueError(
                f"this method's backbone is a discriminator, not a {type(self.backbone).__name__}; "
                "use model.name=dcgan_discriminator"
            )
        _common.check_positive(self, "latent", "generator_width")

    @property
    def head(self) -> nn.Module:
        return MLP((1,), output_bias=True, kernel_init=nn.initializers.normal(0.02))

    def generator(self, images: Any) -> Generator:
        return Generator(self.backbone.image_size, images.shape[-1], self.generator_width)

    def init(self, rng, images):
        size = (self.backbone.image_size, self.backbone.image_size)
        if images.shape[1:3] != size:
            raise ValueError(f"views of {images.shape[1:3]} pixels for model.image_size={size[0]}; make them equal")
        keys = jax.random.split(rng, 3)
        params, batch_stats = _common.init({"backbone": self.backbone}, keys[0], images)
        last = jnp.zeros((1, self.backbone.widths[-1] * math.ceil(size[0] / 2 ** len(self.backbone.widths)) ** 2))
        params["head"] = self.head.init(keys[1], last)["params"]
        made = _common.init({"generator": self.generator(images)}, keys[2], jnp.zeros((1, self.latent)))
        return params | made[0], {"batch_stats": batch_stats | made[1]}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,) = batch["views"]
        stats = state["batch_stats"]
        z = _gan.codes(rng, batch["index"], self.latent)
        generator = self.generator(images)
        made, made_stats = _common.train_apply(
            generator, params["generator"], stats["generator"], z, axis_name=axis_name
        )

        def judge(params, images):
            features, new = _common.train_apply(
                self.backbone, params["backbone"], stats["backbone"], images, axis_name=axis_name, pool=False
            )
            flat = features.reshape(len(features), -1)
            return self.head.apply({"params": params["head"]}, flat), features, new

        real, features, real_stats = judge(params, images)
        fake, *_ = judge(params, lax.stop_gradient(made))
        fooled, *_ = judge(lax.stop_gradient(params), made)
        discriminator_loss, accuracy = _gan.discriminator_loss(real, fake, axis_name)
        generator_loss = losses.adversarial(fooled, True, axis_name=axis_name)
        loss = discriminator_loss + generator_loss
        metrics = {
            "loss": loss,
            "discriminator_loss": discriminator_loss,
            "generator_loss": generator_loss,
            "accuracy": accuracy,
            "embeddings": jnp.mean(features, axis=(1, 2))[None],
        }
        return loss, ({"batch_stats": {"backbone": real_stats, "generator": made_stats}}, metrics)

    def pictures(self, params, state, batch, rng):
        (images,) = batch["views"]
        variables = {"params": params["generator"], "batch_stats": state["batch_stats"]["generator"]}
        made = self.generator(images).apply(variables, _gan.codes(rng, batch["index"], self.latent))
        return {"image": images, "made": made}

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
