"""Exemplar-CNN."""

import dataclasses
import functools
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.methods import _common, _tiles
from ssl_jax.models.heads import MLP

MOST_CLASSES = 20_000  # the classifier has a row for each image


@dataclasses.dataclass(frozen=True)
class Exemplar:
    """Each image is a class of its own: tells from which one a heavily transformed view comes.

    Views are moved, scaled and changed in color as config.augment says, and turned here, by up to `rotate` degrees to
    either side, their borders repeated. As the classifier grows with the images, data of up to 20,000 are taken, for
    which config.data.split=train[:8000] does; for more of them there is instdisc, which keeps a memory instead.

    Source: Dosovitskiy et al. 2014, arXiv:1406.6909, section 3. Whole images where the paper has patches of them, and
    new transformations at each step where it has 150 made beforehand.
    """

    backbone: nn.Module
    run: _common.Run
    rotate: float = 20.0

    views: ClassVar[tuple[str, ...]] = ("view",)

    def __post_init__(self):
        if not 0.0 <= self.rotate <= 180.0:
            raise ValueError(f"rotate must be in 0..180 degrees, got {self.rotate}")
        if self.run.num_images > MOST_CLASSES:
            raise ValueError(
                f"{self.run.num_images} images would be as many classes, more than {MOST_CLASSES}; take some of them, "
                "config.data.split=train[:8000], or the method instdisc"
            )

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "classifier": MLP((self.run.num_images,), output_bias=True)}

    @property
    def chance_level(self) -> float:
        return math.log(self.run.num_images)

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        rng_turn, rng_dropout = jax.random.split(rng)
        images = turn(rng_turn, batch["index"], batch["views"][0], self.rotate)
        outputs, batch_stats = _common.forward(
            self.networks, params, state["batch_stats"], images, axis_name=axis_name, rng=rng_dropout
        )
        logits = outputs["classifier"]
        loss = losses.classification(logits, batch["index"], axis_name=axis_name)
        accuracy = _common.accuracy(logits, batch["index"], axis_name)
        metrics = {"loss": loss, "accuracy": accuracy, "embeddings": outputs["backbone"][None]}
        return loss, ({"batch_stats": batch_stats}, metrics)

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features


def turn(
    rng: Key[Array, ""], index: Int[Array, " batch"], images: Float[Array, "batch height width channels"], most: float
) -> Float[Array, "batch height width channels"]:
    """Each image turned about its middle by an angle of its own in -most..most degrees; bilinear."""
    if not most:
        return images
    angles = jnp.radians(most) * (2.0 * _tiles.uniform(rng, index, ()) - 1.0)
    middle = [(side - 1) / 2 for side in images.shape[1:3]]
    rows, columns = jnp.meshgrid(
        *(jnp.arange(side) - m for side, m in zip(images.shape[1:3], middle, strict=True)), indexing="ij"
    )

    def one(image, angle):
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        places = [cosine * rows - sine * columns + middle[0], sine * rows + cosine * columns + middle[1]]
        sample = functools.partial(jax.scipy.ndimage.map_coordinates, coordinates=places, order=1, mode="nearest")
        return jax.vmap(sample, in_axes=2, out_axes=2)(image)

    return jax.vmap(one)(images, angles)
