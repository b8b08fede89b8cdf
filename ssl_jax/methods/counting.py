"""Counting."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, POSITIVE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import tiling
from ssl_jax.models.heads import MLP

FILTERS = ("linear", "cubic", "lanczos3", "area")  # each image is made smaller by one of them, drawn at random
PARTS = 2  # tiles along each side


@dataclasses.dataclass(frozen=True)
class Counting(Base):
    """Counts in an image, made half as large, what it counts in its four quarters together.

    The counts are a linear layer on the backbone, and numbers below 0 become 0. A margin to the counts of another image
    prevents that all counts are 0. Each image is made smaller by a filter drawn for it, so that traces of the filter
    cannot be counted.

    Source: Noroozi, Pirsiavash & Favaro 2017, arXiv:1708.06734, section 3.
    """

    backbone: nn.Module
    schedule: Schedule
    width: Annotated[int, COUNT, "How many kinds of things are counted: the length of an image's vector of counts."] = (
        1000
    )
    margin: Annotated[float, POSITIVE, "Least squared distance that the counts of two images should have."] = 10.0

    views = ("view",)

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "counter": MLP((self.width,), output_bias=True)}

    @property
    def chance_level(self) -> float:
        return self.margin  # of counts that are all 0

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        _check_even(images)
        params, batch_stats = toolkit.init(self.networks, rng, images[:, ::PARTS, ::PARTS])
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        rng_filter, rng_dropout = jax.random.split(rng)
        whole = self.shrink(rng_filter, batch["index"], images)
        quarters = _quarters(images)
        rows = jnp.concatenate([whole[:, None], quarters], axis=1)  # [batch, 5, height / 2, width / 2, channels]
        outputs, batch_stats = toolkit.forward(
            self.networks, params, state["batch_stats"], tiling.as_images(rows), axis_name=axis_name, rng=rng_dropout
        )
        counts = nn.relu(outputs["counter"]).reshape(len(images), 1 + PARTS**2, -1)
        of_whole, parts = counts[:, 0], counts[:, 1:]
        loss = losses.counting(of_whole, parts, toolkit.neighbors(of_whole), margin=self.margin, axis_name=axis_name)
        h = outputs["backbone"].reshape(len(images), 1 + PARTS**2, -1)[:, 0]  # of the whole image
        metrics = {"count": jnp.mean(of_whole)}
        return Output(loss, {"batch_stats": batch_stats}, metrics, embeddings=h[None])

    def shrink(
        self, rng: Key[Array, ""], index: ops.Index, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns channels"]:
        """Images of half the side, each by one of FILTERS."""
        size = (len(images), *(side // PARTS for side in images.shape[1:3]), images.shape[-1])
        made = [_area(images) if name == "area" else jax.image.resize(images, size, name) for name in FILTERS]
        drawn = tiling.offsets(rng, index, (), len(FILTERS))[:, None, None, None]
        return jnp.select([drawn == i for i in range(len(FILTERS))], made)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1)


def _area(images: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns channels"]:
    """Each pixel is the mean of PARTS x PARTS pixels."""
    batch, height, width, channels = images.shape
    return jnp.mean(images.reshape(batch, height // PARTS, PARTS, width // PARTS, PARTS, channels), axis=(2, 4))


def _quarters(images: Float[Array, "batch height width channels"]) -> Float[Array, "batch 4 rows columns channels"]:
    """The four quarters of each image, row by row."""
    _check_even(images)
    batch, height, width, channels = images.shape
    x = images.reshape(batch, PARTS, height // PARTS, PARTS, width // PARTS, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, PARTS**2, height // PARTS, width // PARTS, channels)


def _check_even(images: Float[Array, "batch height width channels"]) -> None:
    """Raises: ValueError for images of an odd height or width."""
    if images.shape[1] % PARTS or images.shape[2] % PARTS:
        raise ValueError(
            f"views of {images.shape[1]}x{images.shape[2]} pixels do not divide into quarters; use even sides"
        )
