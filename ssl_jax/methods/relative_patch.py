"""Relative patch position (context prediction)."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, NOT_NEGATIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import tiling
from ssl_jax.models.heads import MLP

GRID, CENTER = 3, 4  # patches along each side; the number of the one in the middle, row by row
NEIGHBORS = np.array([0, 1, 2, 3, 5, 6, 7, 8])  # the patches around it; a neighbor's class is its place in this list


@dataclasses.dataclass(frozen=True)
class RelativePatch(Base):
    """Tells at which of the eight places around a patch another one lies.

    Each image gives a grid of 3x3 patches, and sixteen pairs: the center with each neighbor, and each neighbor with the
    center. Each patch passes the backbone and one layer by itself. Each pair passes a classifier.

    The method hides what would give the place away without a look at objects. Patches lie apart and are cut at random
    places, so that lines do not continue. `drop_channels` hides chromatic aberration: the dropped channels become
    noise, with a hundredth of the kept one's standard deviation. `pixelate` makes patches coarser. Each patch is
    normalized by its own mean and standard deviation.

    Source: Doersch, Gupta & Efros 2015, arXiv:1505.05192, section 3. Their networks have BatchNorm without scale and
    offset in the last layers. Their patches are coarsened at random, down to a tenth of the pixels along each side.
    """

    backbone: nn.Module
    schedule: Schedule
    tile: Annotated[int, COUNT, "Pixels along each side of a patch."] = 96
    gap: Annotated[int, NOT_NEGATIVE, "Least gap between neighboring patches in pixels."] = 48
    drop_channels: Annotated[float, SHARE, "Share of the patches that keep only one of their color channels."] = 1.0
    pixelate: Annotated[float, SHARE, "Share of the patches that are shown at a lower resolution."] = 1 / 3
    width: Annotated[int, COUNT, "Width of each layer after the backbone."] = 4096

    views = ("view",)
    chance_level = math.log(len(NEIGHBORS))

    @property
    def networks(self) -> toolkit.Networks:
        return {
            "backbone": self.backbone,
            "tile": MLP((self.width,), output_norm="plain"),
            "classifier": MLP((self.width, self.width, len(NEIGHBORS)), output_bias=True),
        }

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        tiling.check_cells(images.shape[1:3], grid=GRID, side=self.tile, gap=self.gap)
        rng_tiles, rng_classifier = jax.random.split(rng)
        networks = dict(self.networks)
        classifier = {"classifier": networks.pop("classifier")}
        tile = jnp.zeros((1, self.tile, self.tile, images.shape[-1]))
        params, batch_stats = toolkit.init(networks, rng_tiles, tile)
        last = toolkit.init(classifier, rng_classifier, jnp.zeros((1, 2 * self.width)))
        return params | last[0], {"batch_stats": batch_stats | last[1]}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        rng_tiles, rng_dropout = jax.random.split(rng)
        tiles = self.tiles(rng_tiles, batch["index"], batch["views"][0])
        networks = dict(self.networks)
        classifier = {"classifier": networks.pop("classifier")}
        outputs, batch_stats = toolkit.forward(
            networks, params, state["batch_stats"], tiling.as_images(tiles), axis_name=axis_name, rng=rng_dropout
        )
        z = nn.relu(outputs["tile"]).reshape(len(tiles), GRID**2, -1)
        center = jnp.broadcast_to(z[:, CENTER, None], (len(z), len(NEIGHBORS), z.shape[-1]))
        around = z[:, NEIGHBORS]
        outward, inward = jnp.concatenate([center, around], axis=-1), jnp.concatenate([around, center], axis=-1)
        # Seen from a neighbor, the center lies on the opposite side.
        places = jnp.arange(len(NEIGHBORS))
        labels = jnp.tile(jnp.concatenate([places, places[::-1]]), len(tiles))
        pairs = jnp.concatenate([outward, inward], axis=1).reshape(len(labels), -1)
        last, batch_stats = toolkit.forward(classifier, params, batch_stats, pairs, axis_name=axis_name)
        loss = losses.classification(last["classifier"], labels, axis_name=axis_name)
        h = jnp.mean(outputs["backbone"].reshape(len(tiles), GRID**2, -1), axis=1)  # of an image's patches
        metrics = {"accuracy": toolkit.accuracy(last["classifier"], labels, axis_name)}
        return Output(loss, {**state, "batch_stats": batch_stats}, metrics, embeddings=h[None])

    def tiles(
        self, rng: Key[Array, ""], index: ops.Index, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch tiles side side channels"]:
        """The patches, row by row, without what gives their places away."""
        rng_cut, rng_drop, rng_pixelate = jax.random.split(rng, 3)
        tiles = tiling.cut(rng_cut, index, images, grid=GRID, side=self.tile, gap=self.gap)
        if self.drop_channels and images.shape[-1] > 1:
            tiles = tiling.keep_one_channel(rng_drop, index, tiles, self.drop_channels)
        if self.pixelate:
            tiles = tiling.pixelate(rng_pixelate, index, tiles, self.pixelate)
        return tiling.normalize(tiles)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1)
