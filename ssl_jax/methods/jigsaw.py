"""Jigsaw."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, NOT_NEGATIVE, OneOf, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import tiling
from ssl_jax.methods.toolkit.permutations import CRITERIA, far_permutations
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class Jigsaw(Base):
    """Tells by which of a fixed set of permutations an image's 3x3 tiles were shuffled.

    Each tile passes the backbone and one layer by itself. A linear layer on all tiles finds the permutation.

    The method hides what would give the permutation away without a look at objects. Tiles are cut at random places of
    their cells, so that edges do not continue. `normalize_tiles` hides brightness and contrast, and `channel_shift`
    chromatic aberration. config.augment.view.grayscale makes some views gray (0.3 in the paper).

    Source: Noroozi & Favaro 2016, arXiv:1603.09246, section 3. The head for ResNets is VISSL's: 1000 wide, with
    BatchNorm. The permutations follow from the keys here, and are kept in the state.
    """

    backbone: nn.Module
    schedule: Schedule
    permutations: Annotated[int, COUNT, "Permutations in the set."] = 1000
    criterion: Annotated[
        str, OneOf(CRITERIA), "What the set maximizes: the mean or the min of the distances between its permutations."
    ] = "mean"
    grid: Annotated[int, Range(2, 3), "Tiles along each side of the image."] = 3
    tile: Annotated[int, COUNT, "Pixels along each side of a tile."] = 64
    channel_shift: Annotated[
        int, NOT_NEGATIVE, "Most pixels by which color channels are shifted against each other."
    ] = 2
    width: Annotated[int, COUNT, "Width of the layer that each tile passes after the backbone."] = 1000
    normalize_tiles: Annotated[bool, "Normalizes each tile by its own mean and standard deviation."] = True

    views = ("view",)

    def __post_init__(self) -> None:
        super().__post_init__()
        most = math.factorial(self.grid**2)
        if self.permutations > most:
            raise ValueError(
                f"permutations={self.permutations} are more than {self.grid}x{self.grid} tiles have; use at most {most}"
            )

    @property
    def networks(self) -> toolkit.Networks:
        return {
            "backbone": self.backbone,
            "tile": MLP((self.width,), output_norm="full", output_bias=True, kernel_init=torch_init),
            "classifier": MLP((self.permutations,), output_bias=True, kernel_init=torch_init),
        }

    @property
    def chance_level(self) -> float:
        return math.log(self.permutations)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        tiling.check_cells(images.shape[1:3], grid=self.grid, side=self.tile)
        rng_tiles, rng_classifier = jax.random.split(rng)
        networks = dict(self.networks)
        classifier = {"classifier": networks.pop("classifier")}
        tile = jnp.zeros((1, self.tile, self.tile, images.shape[-1]))
        params, batch_stats = toolkit.init(networks, rng_tiles, tile)
        last = toolkit.init(classifier, rng_classifier, jnp.zeros((1, self.grid**2 * self.width)))
        table = far_permutations(self.grid**2, self.permutations, criterion=self.criterion)
        return params | last[0], {"batch_stats": batch_stats | last[1], "permutations": jnp.asarray(table)}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        rng_tiles, rng_dropout = jax.random.split(rng)
        tiles, labels = self.shuffled(rng_tiles, batch["index"], batch["views"][0], state["permutations"])
        networks = dict(self.networks)
        classifier = {"classifier": networks.pop("classifier")}
        outputs, batch_stats = toolkit.forward(
            networks, params, state["batch_stats"], tiling.as_images(tiles), axis_name=axis_name, rng=rng_dropout
        )
        joined = nn.relu(outputs["tile"]).reshape(len(tiles), -1)
        last, batch_stats = toolkit.forward(classifier, params, batch_stats, joined, axis_name=axis_name)
        loss = losses.classification(last["classifier"], labels, axis_name=axis_name)
        h = jnp.mean(outputs["backbone"].reshape(len(tiles), self.grid**2, -1), axis=1)  # of an image's tiles
        metrics = {"accuracy": toolkit.accuracy(last["classifier"], labels, axis_name)}
        return Output(loss, {**state, "batch_stats": batch_stats}, metrics, embeddings=h[None])

    def shuffled(
        self,
        rng: Key[Array, ""],
        index: ops.Index,
        images: Float[Array, "batch height width channels"],
        permutations: Int[Array, "count tiles"],
    ) -> tuple[Float[Array, "batch tiles side side channels"], Int[Array, " batch"]]:
        """(each image's tiles in the order of a random permutation, the number of that permutation)"""
        rng_cut, rng_shift, rng_label = jax.random.split(rng, 3)
        if self.channel_shift:
            images = tiling.shift_channels(rng_shift, index, images, self.channel_shift)
        tiles = tiling.cut(rng_cut, index, images, grid=self.grid, side=self.tile)
        if self.normalize_tiles:
            tiles = tiling.normalize(tiles)
        labels = tiling.offsets(rng_label, index, (), len(permutations))
        order = permutations[labels][:, :, None, None, None]
        return jnp.take_along_axis(tiles, order, axis=1), labels

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1)
