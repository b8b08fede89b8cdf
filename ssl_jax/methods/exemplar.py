"""Exemplar-CNN."""

import dataclasses
import functools
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses, ops
from ssl_jax.keys import Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import tiling
from ssl_jax.models.heads import MLP

MOST_CLASSES = 20_000  # the classifier has a row for each image


@dataclasses.dataclass(frozen=True)
class Exemplar(Base):
    """Tells from which image a heavily transformed view comes. Each image is a class of its own.

    config.augment says how views are moved, scaled and changed in color. This method turns them and repeats their
    borders. The classifier grows with the number of images, so at most 20,000 are allowed. Take some of a larger data
    set by config.data.split=train[:8000]. Or use the method instdisc, which has a memory in place of the classifier.

    Source: Dosovitskiy et al. 2014, arXiv:1406.6909, section 3. The paper has patches of images, and makes 150
    transformations of each beforehand. Here are whole images, and new transformations in each step.
    """

    backbone: nn.Module
    schedule: Schedule
    rotate: Annotated[
        float, Range(0.0, 180.0), "Largest angle by which views are turned to either side, in degrees."
    ] = 20.0

    views = ("view",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule.num_images > MOST_CLASSES:
            raise ValueError(
                f"exemplar makes a class of each image, and {self.schedule.num_images} are more than "
                f"{MOST_CLASSES}; train on some of them, config.data.split=train[:8000], or the "
                "method instdisc"
            )

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "classifier": MLP((self.schedule.num_images,), output_bias=True)}

    @property
    def chance_level(self) -> float:
        return math.log(self.schedule.num_images)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        rng_turn, rng_dropout = jax.random.split(rng)
        images = turn(rng_turn, batch["index"], batch["views"][0], self.rotate)
        outputs, batch_stats = toolkit.forward(
            self.networks, params, state["batch_stats"], images, axis_name=axis_name, rng=rng_dropout
        )
        logits = outputs["classifier"]
        loss = losses.classification(logits, batch["index"], axis_name=axis_name)
        metrics = {"accuracy": toolkit.accuracy(logits, batch["index"], axis_name)}
        return Output(loss, {"batch_stats": batch_stats}, metrics, embeddings=outputs["backbone"][None])

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1)


def turn(
    rng: Key[Array, ""], index: ops.Index, images: Float[Array, "batch height width channels"], most: float
) -> Float[Array, "batch height width channels"]:
    """Each image turned about its middle by an angle of its own in -most..most degrees, by bilinear interpolation."""
    if not most:
        return images
    angles = jnp.radians(most) * (2.0 * tiling.uniform(rng, index, ()) - 1.0)
    middle = [(side - 1) / 2 for side in images.shape[1:3]]
    rows, columns = jnp.meshgrid(
        *(jnp.arange(side) - m for side, m in zip(images.shape[1:3], middle, strict=True)), indexing="ij"
    )

    def one(
        image: Float[Array, "height width channels"], angle: Float[Array, ""]
    ) -> Float[Array, "height width channels"]:
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        places = [cosine * rows - sine * columns + middle[0], sine * rows + cosine * columns + middle[1]]
        sample = functools.partial(jax.scipy.ndimage.map_coordinates, coordinates=places, order=1, mode="nearest")
        return jax.vmap(sample, in_axes=2, out_axes=2)(image)

    return jax.vmap(one)(images, angles)
