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

from ssl_jax import losses, ops
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

    def players(self, images: Float[Array, "batch height width channels"]) -> tuple[nn.Module, nn.Module]:
        """(generator, discriminator) for images of this size."""
        side = self.square_side(images)
        return (
            Generator(side, images.shape[-1], self.generator_width),
            JointDiscriminator(side, self.discriminator_width, self.hidden),
        )

    def square_side(self, images: Float[Array, "batch height width channels"]) -> int:
        """Raises: ValueError for images that are not square."""
        height, width = images.shape[1:3]
        if height != width:
            raise ValueError(
                f"the generator makes square images, got views of {height}x{width} pixels; use square views"
            )
        return height

    def encoding(
        self, encoded: Float[Array, "batch codes"], rng: Key[Array, ""] | None, index: ops.Index
    ) -> Float[Array, "batch latent"]:
        """What the encoder's last layer gives, as a code."""
        return squash(encoded)

    def draw(self, rng: Key[Array, ""], index: ops.Index) -> Float[Array, "batch latent"]:
        """Codes that images are made of, by the images' indices."""
        return gan.codes(rng, index, self.latent)

    def of_discriminator(
        self, real: Float[Array, "batch scores"], fake: Float[Array, "batch scores"], axis_name: str | None
    ) -> Float[Array, ""]:
        """The discriminator's loss. real: its scores of images with their encodings; fake: of made ones with codes."""
        return gan.discriminator_loss(real, fake, axis_name)[0]

    def of_others(
        self, real: Float[Array, "batch scores"], fake: Float[Array, "batch scores"], axis_name: str | None
    ) -> Float[Array, ""]:
        """The loss of encoder and generator."""
        loss = losses.adversarial(real, False, axis_name=axis_name)
        return loss + losses.adversarial(fake, True, axis_name=axis_name)

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
        codes = self.draw(rng_codes, batch["index"])
        made, stats["generator"] = toolkit.train_apply(
            generator, params["generator"], stats["generator"], codes, axis_name=axis_name
        )

        def judge(
            params: Params, images: Float[Array, "batch height width channels"], codes: Float[Array, "batch latent"]
        ) -> tuple[Float[Array, "batch scores"], toolkit.Variables]:
            """(scores, new BatchNorm statistics of the discriminator)"""
            return toolkit.train_apply(
                discriminator,
                params["discriminator"],
                state["batch_stats"]["discriminator"],
                images,
                codes,
                axis_name=axis_name,
            )

        encoding = self.encoding(encoded["code"], jax.random.fold_in(rng, 2), batch["index"])
        pairs = (images, encoding), (made, codes)
        real, stats["discriminator"] = judge(params, *lax.stop_gradient(pairs[0]))
        fake, _ = judge(params, *lax.stop_gradient(pairs[1]))
        discriminator_loss = self.of_discriminator(real, fake, axis_name)
        frozen = lax.stop_gradient(params)
        generator_loss = self.of_others(judge(frozen, *pairs[0])[0], judge(frozen, *pairs[1])[0], axis_name)
        loss = discriminator_loss + generator_loss
        metrics = {
            "discriminator_loss": discriminator_loss,
            "generator_loss": generator_loss,
            "accuracy": gan.accuracy(real, fake),
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
        reconstruction: Any = generator.apply(variables, self.encoding(encoded, None, batch["index"]))
        made: Any = generator.apply(variables, self.draw(rng, batch["index"]))
        return {"image": images, "reconstruction": reconstruction, "made": made}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=2)  # of the discriminator: images with their codes, and codes with what is made of them
