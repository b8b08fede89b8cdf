"""DCGAN."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import gan
from ssl_jax.models.dcgan import Discriminator, Generator
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class DCGAN(Base):
    """Tells images from those of a generator, which learns to make them. The discriminator is the backbone.

    Both players are in one loss. Each has its own term, in which the other's parameters are held fixed, and both move
    at the same time. An optimizer that treats every parameter by itself, such as Adam, is then two of them. Real images
    and made images pass through the discriminator by themselves, each with BatchNorm statistics of their own. The
    running statistics that it keeps are those of the real images.

    Images must be in -1..1, as the generator's are: give data.mean and data.std 0.5. The features are modest beside
    those of later methods.

    Source: Radford, Metz & Chintala 2015, arXiv:1511.06434. The generator's loss, which does not saturate, is that of
    Goodfellow et al. 2014, arXiv:1406.2661, section 3.
    """

    backbone: nn.Module
    schedule: Schedule
    latent: Annotated[int, COUNT, "Dimensions of a code."] = 100
    generator_width: Annotated[int, COUNT, "Channels of the generator's last layer before the image."] = 64

    views = ("view",)
    chance_level = 3 * math.log(2.0)  # the sum of both players' losses; not the loss of a collapse

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.backbone, Discriminator):
            raise ValueError(
                f"this method's backbone is a discriminator, not a {type(self.backbone).__name__}; "
                "use model.name=dcgan_discriminator"
            )

    @property
    def head(self) -> nn.Module:
        return MLP((1,), output_bias=True, kernel_init=nn.initializers.normal(0.02))

    def generator(self, images: Float[Array, "batch height width channels"]) -> Generator:
        """For images with these channels."""
        return Generator(self.backbone.image_size, images.shape[-1], self.generator_width)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        size = (self.backbone.image_size, self.backbone.image_size)
        if images.shape[1:3] != size:
            raise ValueError(
                f"views have {images.shape[1:3]} pixels, but model.image_size is {size[0]}; make them equal"
            )
        keys = jax.random.split(rng, 3)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        last = jnp.zeros((1, self.backbone.widths[-1] * math.ceil(size[0] / 2 ** len(self.backbone.widths)) ** 2))
        params["head"] = self.head.init(keys[1], last)["params"]
        made = toolkit.init({"generator": self.generator(images)}, keys[2], jnp.zeros((1, self.latent)))
        return params | made[0], {"batch_stats": batch_stats | made[1]}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        stats = state["batch_stats"]
        z = gan.codes(rng, batch["index"], self.latent)
        generator = self.generator(images)
        made, made_stats = toolkit.train_apply(
            generator, params["generator"], stats["generator"], z, axis_name=axis_name
        )

        def judge(
            params: Params, images: Float[Array, "batch height width channels"]
        ) -> tuple[Float[Array, "batch 1"], Float[Array, "batch rows columns dim"], toolkit.Variables]:
            """(logits, feature map, new BatchNorm statistics of the discriminator)"""
            features, new = toolkit.train_apply(
                self.backbone,
                params["backbone"],
                stats["backbone"],
                images,
                axis_name=axis_name,
                method="feature_map",
            )
            flat = features.reshape(len(features), -1)
            logits: Any = self.head.apply({"params": params["head"]}, flat)
            return logits, features, new

        real, features, real_stats = judge(params, images)
        fake, *_ = judge(params, lax.stop_gradient(made))
        fooled, *_ = judge(lax.stop_gradient(params), made)
        discriminator_loss, accuracy = gan.discriminator_loss(real, fake, axis_name)
        generator_loss = losses.adversarial(fooled, True, axis_name=axis_name)
        loss = discriminator_loss + generator_loss
        metrics = {
            "discriminator_loss": discriminator_loss,
            "generator_loss": generator_loss,
            "accuracy": accuracy,
        }
        batch_stats = {"backbone": real_stats, "generator": made_stats}
        return Output(loss, {"batch_stats": batch_stats}, metrics, embeddings=jnp.mean(features, axis=(1, 2))[None])

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        (images,) = batch["views"]
        variables = {"params": params["generator"], "batch_stats": state["batch_stats"]["generator"]}
        made: Any = self.generator(images).apply(variables, gan.codes(rng, batch["index"], self.latent))
        return {"image": images, "made": made}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Real images and made images pass through the discriminator by themselves.
        return Traffic(passes=2)
