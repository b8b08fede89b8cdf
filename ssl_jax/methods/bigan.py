"""BiGAN."""

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
from ssl_jax.models.dcgan import LEAK, Discriminator, Generator, weight_init
from ssl_jax.models.heads import MLP


class JointDiscriminator(nn.Module):
    """(images, codes) -> logits [batch, 1]: positive for an image with its encoding, not a made image with its code."""

    image_size: int
    width: int
    hidden: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        codes: Float[Array, "batch latent"],
        train: bool = False,
        axis_name: str | None = None,
    ) -> Float[Array, "batch 1"]:
        x = Discriminator(self.image_size, self.width, name="images").feature_map(images, train, axis_name)
        x = jnp.concatenate([x.reshape(len(x), -1), codes], axis=1)
        x = nn.leaky_relu(nn.Dense(self.hidden, kernel_init=weight_init, name="joint")(x), LEAK)
        return nn.Dense(1, kernel_init=weight_init, name="logit")(x)


def squash(code: Float[Array, "batch latent"]) -> Float[Array, "batch latent"]:
    """2 sigmoid(code) - 1, in -1..1."""
    return jnp.tanh(code / 2.0)


@dataclasses.dataclass(frozen=True)
class BiGAN(Base):
    """An encoder, which is the backbone, and a generator together fool a discriminator that sees images with codes.

    The discriminator tells (image, its encoding) from (made image, the code that it is made of). At the optimum,
    encoder and generator are each other's inverse. Encoder and generator are trained on the discriminator's loss with
    exchanged labels, which does not saturate. All three players are in one loss. Each has its own term, in which the
    others' parameters are held fixed, and all move at the same time. Images must be in -1..1, as the generator's are:
    give data.mean and data.std 0.5.

    Source: Donahue, Krähenbühl & Darrell 2016, arXiv:1605.09782, section 3. As in their code, codes are uniform in
    -1..1, and the encoder's codes are squashed to that.
    """

    backbone: nn.Module
    schedule: Schedule
    latent: Annotated[int, COUNT, "Dimensions of a code."] = 50
    generator_width: Annotated[int, COUNT, "Channels of the generator's last layer before the image."] = 64
    discriminator_width: Annotated[int, COUNT, "Channels of the discriminator's first layer."] = 64
    hidden: Annotated[int, COUNT, "Width of the discriminator's layer that sees image and code."] = 1024

    views = ("view",)
    chance_level = 4 * math.log(2.0)  # the sum of all players' losses; not the loss of a collapse

    @property
    def encoder(self) -> toolkit.Networks:
        """images -> [batch, latent], not squashed"""
        return {"backbone": self.backbone, "code": MLP((self.latent,))}

    def players(self, images: Float[Array, "batch height width channels"]) -> tuple[Generator, JointDiscriminator]:
        """(generator, discriminator) for images of this size."""
        height, width, channels = images.shape[1:]
        if height != width:
            raise ValueError(
                f"the generator makes square images, got views of {height}x{width} pixels; use square views"
            )
        return (
            Generator(height, channels, self.generator_width),
            JointDiscriminator(height, self.discriminator_width, self.hidden),
        )

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng, 3)
        generator, discriminator = self.players(images)
        params, batch_stats = toolkit.init(self.encoder, keys[0], images)
        code = jnp.zeros((1, self.latent))
        for name, module, key, inputs in (
            ("generator", generator, keys[1], (code,)),
            ("discriminator", discriminator, keys[2], (images, code)),
        ):
            variables = module.init(key, *inputs)
            params[name], batch_stats[name] = variables["params"], variables.get("batch_stats", {})
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        rng_codes, rng_dropout = jax.random.split(rng)
        stats = dict(state["batch_stats"])
        generator, discriminator = self.players(images)
        encoded, stats = toolkit.forward(self.encoder, params, stats, images, axis_name=axis_name, rng=rng_dropout)
        codes = gan.codes(rng_codes, batch["index"], self.latent)
        made, stats["generator"] = toolkit.train_apply(
            generator, params["generator"], stats["generator"], codes, axis_name=axis_name
        )

        def judge(
            params: Params, images: Float[Array, "batch height width channels"], codes: Float[Array, "batch latent"]
        ) -> tuple[Float[Array, "batch 1"], toolkit.Variables]:
            """(logits, new BatchNorm statistics of the discriminator)"""
            return toolkit.train_apply(
                discriminator,
                params["discriminator"],
                state["batch_stats"]["discriminator"],
                images,
                codes,
                axis_name=axis_name,
            )

        pairs = (images, squash(encoded["code"])), (made, codes)
        real, stats["discriminator"] = judge(params, *lax.stop_gradient(pairs[0]))
        fake, _ = judge(params, *lax.stop_gradient(pairs[1]))
        discriminator_loss, accuracy = gan.discriminator_loss(real, fake, axis_name)
        frozen = lax.stop_gradient(params)
        generator_loss = losses.adversarial(judge(frozen, *pairs[0])[0], False, axis_name=axis_name)
        generator_loss += losses.adversarial(judge(frozen, *pairs[1])[0], True, axis_name=axis_name)
        loss = discriminator_loss + generator_loss
        metrics = {
            "discriminator_loss": discriminator_loss,
            "generator_loss": generator_loss,
            "accuracy": accuracy,
        }
        return Output(loss, {"batch_stats": stats}, metrics, embeddings=encoded["backbone"][None])

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        (images,) = batch["views"]
        generator, _ = self.players(images)
        variables = {"params": params["generator"], "batch_stats": state["batch_stats"]["generator"]}
        encoded: Any = images
        for name, module in self.encoder.items():
            encoded = module.apply({"params": params[name], "batch_stats": state["batch_stats"][name]}, encoded)
        reconstruction: Any = generator.apply(variables, squash(encoded))
        made: Any = generator.apply(variables, gan.codes(rng, batch["index"], self.latent))
        return {"image": images, "reconstruction": reconstruction, "made": made}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=2)  # of the discriminator: images with their codes, and codes with what is made of them
