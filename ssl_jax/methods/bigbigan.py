"""BigBiGAN."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT
from ssl_jax.methods import toolkit
from ssl_jax.methods.bigan import BiGAN
from ssl_jax.methods.contract import Traffic
from ssl_jax.methods.toolkit import tiling
from ssl_jax.models.biggan import Features, Generator, ResidualMLP, SpectralLayer


class Scores(nn.Module):
    """(images, codes) -> scores [batch, 3]: of the image, of the code, and of both together.

    Above 0 for an image with its encoding, below 0 for a made image with its code.
    """

    width: int
    hidden: int
    blocks: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        codes: Float[Array, "batch latent"],
        train: bool = False,
        axis_name: str | None = None,
    ) -> Float[Array, "batch 3"]:
        of_image = Features(self.width, name="images")(images, train)
        of_code = ResidualMLP(self.hidden, self.blocks, name="codes")(codes, train)
        of_both = jnp.concatenate([of_image, of_code], axis=1)
        of_both = ResidualMLP(self.hidden, self.blocks, name="joint")(of_both, train)
        named = (("image", of_image), ("code", of_code), ("both", of_both))
        return jnp.concatenate([SpectralLayer(1, name=f"score_{name}")(x, train) for name, x in named], axis=1)


class CodeHead(nn.Module):
    """h [batch, dim] -> [batch, 2 latent]: the mean of a code's normal distribution, and its deviation, above 0."""

    latent: int
    hidden: int
    blocks: int

    @nn.compact
    def __call__(
        self, h: Float[Array, "batch dim"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch codes"]:
        x = ResidualMLP(self.hidden, self.blocks, spectral=False, name="mlp")(h, train)
        mean, deviation = jnp.split(nn.Dense(2 * self.latent, name="code")(nn.relu(x)), 2, axis=1)
        return jnp.concatenate([mean, nn.softplus(deviation)], axis=1)


@dataclasses.dataclass(frozen=True)
class BigBiGAN(BiGAN):
    """BiGAN with BigGAN's networks, scores of image and code alone beside that of both, and a stochastic encoder.

    The discriminator's loss is the sum of the three scores' hinge losses. Encoder and generator minimize the mean of
    the scores' sum of images with their encodings, minus that of made images with their codes. Codes are of the
    standard normal distribution. The encoder gives each image a normal distribution of codes, of which one is drawn.

    All three players move at once, as in BiGAN. The encoder's learning rate is ten times the others':
    optimizer.scaled_paths=("backbone", "code"), optimizer.path_lr_scale=10. Images must be in -1..1: give data.mean and
    data.std 0.5.

    Source: Donahue & Simonyan 2019, arXiv:1907.02544, section 2. The authors' code does not train.
    """

    latent: Annotated[int, COUNT, "Dimensions of a code."] = 120
    generator_width: Annotated[int, COUNT, "Channels of the generator's last block."] = 96
    discriminator_width: Annotated[int, COUNT, "Channels of the discriminator's first block."] = 96
    hidden: Annotated[int, COUNT, "Width of the discriminator's layers that see codes."] = 2048
    blocks: Annotated[int, COUNT, "Residual blocks of two layers that see codes, and that see image and code."] = 4
    encoder_hidden: Annotated[int, COUNT, "Width of the layers between the backbone and the code."] = 4096
    encoder_blocks: Annotated[int, COUNT, "Residual blocks of two layers between the backbone and the code."] = 2

    chance_level = 6.0  # the sum of all players' losses where all scores are 0; not the loss of a collapse

    @property
    def encoder(self) -> toolkit.Networks:
        """images -> [batch, 2 latent], means and deviations"""
        return {"backbone": self.backbone, "code": CodeHead(self.latent, self.encoder_hidden, self.encoder_blocks)}

    def players(self, images: Float[Array, "batch height width channels"]) -> tuple[nn.Module, nn.Module]:
        """(generator, discriminator) for images of this size."""
        return (
            Generator(self.square_side(images), images.shape[-1], self.generator_width),
            Scores(self.discriminator_width, self.hidden, self.blocks),
        )

    def encoding(
        self, encoded: Float[Array, "batch codes"], rng: Key[Array, ""] | None, index: ops.Index
    ) -> Float[Array, "batch latent"]:
        """A code of each image's distribution; without `rng` its mean."""
        mean, deviation = jnp.split(encoded, 2, axis=1)
        return mean if rng is None else mean + deviation * self.draw(rng, index)

    def draw(self, rng: Key[Array, ""], index: ops.Index) -> Float[Array, "batch latent"]:
        return jax.vmap(lambda key: jax.random.normal(key, (self.latent,)))(tiling.image_keys(rng, index))

    def of_discriminator(
        self, real: Float[Array, "batch scores"], fake: Float[Array, "batch scores"], axis_name: str | None
    ) -> Float[Array, ""]:
        loss = losses.hinge(real, True, axis_name=axis_name) + losses.hinge(fake, False, axis_name=axis_name)
        return real.shape[1] * loss  # the sum over scores

    def of_others(
        self, real: Float[Array, "batch scores"], fake: Float[Array, "batch scores"], axis_name: str | None
    ) -> Float[Array, ""]:
        return jnp.mean(jnp.sum(real, axis=1)) - jnp.mean(jnp.sum(fake, axis=1))

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1)  # the discriminator has no BatchNorm
