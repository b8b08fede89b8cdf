"""Relative patch position (context prediction)."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.methods import _common, _tiles
from ssl_jax.models.heads import MLP

GRID, CENTER = 3, 4
NEIGHBORS = np.array([0, 1, 2, 3, 5, 6, 7, 8])  # tiles around the center, row by row; a neighbor's class is its place


@dataclasses.dataclass(frozen=True)
class RelativePatch:
    """Tells at which of the eight places around a patch another one lies.

    Each image gives a grid of 3x3 patches, and sixteen pairs: the center with each neighbor, and each neighbor with the
    center. Patches go through backbone and a layer by themselves, pairs of them through a classifier.

    What would give the place away without looking at objects is taken away: patches are `gap` pixels apart at least
    and cut at random places, so that lines do not continue; of each, with probability `drop_channels`, one channel
    is kept and the others are noise of a hundredth of its deviation (chromatic aberration); a share `pixelate` of
    them is coarsened; and each is normalized by its own mean and deviation.

    Source: Doersch, Gupta & Efros 2015, arXiv:1505.05192, section 3. Their networks have BatchNorm without scale and
    offset in their last layers; patches of a random coarseness down to a tenth of a side.
    """

    backbone: nn.Module
    run: _common.Run
    tile: int = 96  # pixels a side
    gap: int = 48
    drop_channels: float = 1.0
    pixelate: float = 1 / 3
    width: int = 4096  # of each layer

    views: ClassVar[tuple[str, ...]] = ("view",)
    chance_level: ClassVar[float] = math.log(len(NEIGHBORS))

    def __post_init__(self):
        _common.check_positive(self, "tile", "width")
        _common.check_share(self, "drop_channels", "pixelate")
        if self.gap < 0:
            raise ValueError(f"gap must be at least 0, got {self.gap}")

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {
            "backbone": self.backbone,
            "tile": MLP((self.width,), output_norm="plain"),
            "classifier": MLP((self.width, self.width, len(NEIGHBORS)), output_bias=True),
        }

    def init(self, rng, images):
        _tiles.check_cells(images.shape[1:3], grid=GRID, side=self.tile, gap=self.gap)
        rng_tiles, rng_classifier = jax.random.split(rng)
        networks = self.networks
        classifier = {"classifier": networks.pop("classifier")}
        tile = jnp.zeros((1, self.tile, self.tile, images.shape[-1]))
        params, batch_stats = _common.init(networks, rng_tiles, tile)
        last = _common.init(classifier, rng_classifier, jnp.zeros((1, 2 * self.width)))
        return params | last[0], {"batch_stats": batch_stats | last[1]}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        rng_tiles, rng_dropout = jax.random.split(rng)
        tiles = self.tiles(rng_tiles, batch["index"], batch["views"][0])
        networks = self.networks
        classifier = {"classifier": networks.pop("classifier")}
        outputs, batch_stats = _common.forward(
            networks, params, state["batch_stats"], _tiles.as_images(tiles), axis_name=axis_name, rng=rng_dropout
        )
        z = nn.relu(outputs["tile"]).reshape(len(tiles), GRID**2, -1)
        center = jnp.broadcast_to(z[:, CENTER, None], (len(z), len(NEIGHBORS), z.shape[-1]))
        around = z[:, NEIGHBORS]
        outward, inward = jnp.concatenate([center, around], axis=-1), jnp.concatenate([around, center], axis=-1)
        # Seen from a neighbor, the center lies on the opposite side.
        places = jnp.arange(len(NEIGHBORS))
        labels = jnp.tile(jnp.concatenate([places, places[::-1]]), len(tiles))
        pairs = jnp.concatenate([outward, inward], axis=1).reshape(len(labels), -1)
        last, batch_stats = _common.forward(classifier, params, batch_stats, pairs, axis_name=axis_name)
        loss = losses.classification(last["classifier"], labels, axis_name=axis_name)
        metrics = {
            "loss": loss,
            "accuracy": _common.accuracy(last["classifier"], labels, axis_name),
            "embeddings": jnp.mean(outputs["backbone"].reshape(len(tiles), GRID**2, -1), axis=1)[None],
        }
        return loss, ({**state, "batch_stats": batch_stats}, metrics)

    def tiles(
        self, rng: Key[Array, ""], index: Int[Array, " batch"], images: Any
    ) -> Float[Array, "batch tiles side side channels"]:
        """The patches, row by row, each without what gives its place away."""
        rng_cut, rng_drop, rng_pixelate = jax.random.split(rng, 3)
        tiles = _tiles.cut(rng_cut, index, images, grid=GRID, side=self.tile, gap=self.gap)
        if self.drop_channels and images.shape[-1] > 1:
            tiles = _tiles.keep_one_channel(rng_drop, index, tiles, self.drop_channels)
        if self.pixelate:
            tiles = _tiles.pixelate(rng_pixelate, index, tiles, self.pixelate)
        return _tiles.normalize(tiles)

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
