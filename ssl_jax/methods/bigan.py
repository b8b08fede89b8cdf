"""BiGAN."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax import losses
from ssl_jax.methods import _common, _gan
from ssl_jax.models.dcgan import LEAK, Discriminator, Generator, weight_init
from ssl_jax.models.heads import MLP


class JointDiscriminator(nn.Module):
    """(images, codes) -> logits [batch, 1] of their being an image with its encoding, not a made one with its code."""

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
        x = Discriminator(self.image_size, self.width, name="images")(images, train, axis_name, pool=False)
        x = jnp.concatenate([x.reshape(len(x), -1), codes], axis=1)
        x = nn.leaky_relu(nn.Dense(self.hidden, kernel_init=weight_init, name="joint")(x), LEAK)
        return nn.Dense(1, kernel_init=weight_init, name="logit")(x)


def squash(code: Float[Array, "batch latent"]) -> Float[Array, "batch latent"]:
    """2 sigmoid(code) - 1, in -1..1."""
    return jnp.tanh(code / 2.0)


@dataclasses.dataclass(frozen=True)
class BiGAN:
    """An encoder, which is the backbone, and a generator together fool a discriminator that sees images with codes.

    The discriminator tells (image, its encoding) from (made image, the code that it is made of). At the best of both,
    encoder and generator are each other's inverse. Both are moved by the exchanged labels, which does not saturate.
    All three players are in one loss, each with the others' parameters held fixed in its own term, and move at the same
    time. Images are to be in -1..1, as the generator's are: give data.mean and data.std 0.5.

    Source: Donahue, Krähenbühl & Darrell 2016, arXiv:1605.09782, section 3; codes uniform in -1..1, to which the
    encoder's are squashed, as in their code.
    """

    backbone: nn.Module
    run: _common.Run
    latent: int = 50
    generator_width: int = 64  # channels of its last layer before the image
    discriminator_width: int = 64  # channels of its first layer
    hidden: int = 1024  # width of its layer that sees image and code

    views: ClassVar[tuple[str, ...]] = ("view",)
    chance_level: ClassVar[float] = 4 * math.log(2.0)  # of all players' losses; not the loss of a collapse

    def __post_init__(self):
        _common.check_positive(self, "latent", "generator_width", "discriminator_width", "hidden")

    @property
    def encoder(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "code": MLP((self.latent,))}

    def players(self, images: Any) -> tuple[nn.Module, nn.Module]:
        """(generator, discriminator) of images of this size."""
        height, width, channels = images.shape[1:]
        if height != width:
            raise ValueError(f"the generator makes squares, got views of {height}x{width} pixels")
        return (
            Generator(height, channels, self.generator_width),
            JointDiscriminator(height, self.discriminator_width, self.hidden),
        )

    def init(self, rng, images):
        keys = jax.random.split(rng, 3)
        generator, discriminator = self.players(images)
        params, batch_stats = _common.init(self.encoder, keys[0], images)
        code = jnp.zeros((1, self.latent))
        for name, module, key, inputs in (
            ("generator", generator, keys[1], (code,)),
            ("discriminator", discriminator, keys[2], (images, code)),
        ):
            variables = module.init(key, *inputs)
            params[name], batch_stats[name] = variables["params"], variables.get("batch_stats", {})
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,) = batch["views"]
        rng_codes, rng_dropout = jax.random.split(rng)
        stats = dict(state["batch_stats"])
        generator, discriminator = self.players(images)
        encoded, stats = _common.forward(self.encoder, params, stats, images, axis_name=axis_name, rng=rng_dropout)
        codes = _gan.codes(rng_codes, batch["index"], self.latent)
        made, stats["generator"] = _common.train_apply(
            generator, params["generator"], stats["generator"], codes, axis_name=axis_name
        )

        def judge(params, images, codes):
            return _common.train_apply(
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
        discriminator_loss, accuracy = _gan.discriminator_loss(real, fake, axis_name)
        frozen = lax.stop_gradient(params)
        generator_loss = losses.adversarial(judge(frozen, *pairs[0])[0], False, axis_name=axis_name)
        generator_loss += losses.adversarial(judge(frozen, *pairs[1])[0], True, axis_name=axis_name)
        loss = discriminator_loss + generator_loss
        metrics = {
            "loss": loss,
            "discriminator_loss": discriminator_loss,
            "generator_loss": generator_loss,
            "accuracy": accuracy,
            "embeddings": encoded["backbone"][None],
        }
        return loss, ({"batch_stats": stats}, metrics)

    def pictures(self, params, state, batch, rng):
        (images,) = batch["views"]
        generator, _ = self.players(images)
        variables = {"params": params["generator"], "batch_stats": state["batch_stats"]["generator"]}
        encoded = images
        for name, module in self.encoder.items():
            encoded = module.apply({"params": params[name], "batch_stats": state["batch_stats"][name]}, encoded)
        return {
            "image": images,
            "reconstruction": generator.apply(variables, squash(encoded)),
            "made": generator.apply(variables, _gan.codes(rng, batch["index"], self.latent)),
        }

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
