"""Jigsaw."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.methods import _common, _tiles
from ssl_jax.methods._permutations import far_permutations
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class Jigsaw:
    """Tells which of a fixed set of permutations an image's 3x3 tiles were shuffled by.

    Each tile goes through backbone and a layer by itself; a linear layer on all of them finds the permutation. What
    would give it away without looking at objects is taken away: tiles are cut at random places of their cells, so that
    edges do not continue; with `normalize_tiles` each is normalized by its own mean and deviation; its channels are
    shifted against each other, by up to `channel_shift` pixels (chromatic aberration); and gray views are to be had by
    config.augment.view.grayscale (0.3 in the paper).

    Source: Noroozi & Favaro 2016, arXiv:1603.09246, section 3; the head for ResNets is VISSL's, 1000 wide, with
    BatchNorm. The permutations are a function of the numbers here, and kept with the state.
    """

    backbone: nn.Module
    run: _common.Run
    permutations: int = 1000
    criterion: str = "mean"  # what is largest in the set: the "mean" or the "min" of the distances
    grid: int = 3
    tile: int = 64  # pixels a side
    channel_shift: int = 2
    width: int = 1000  # of each tile's layer
    normalize_tiles: bool = True

    views: ClassVar[tuple[str, ...]] = ("view",)

    def __post_init__(self):
        _common.check_positive(self, "permutations", "grid", "tile", "width")
        if self.channel_shift < 0:
            raise ValueError(f"channel_shift must be at least 0, got {self.channel_shift}")
        if not 2 <= self.grid <= 3 or self.permutations > math.factorial(self.grid**2):
            raise ValueError(
                f"grid must be 2 or 3, and permutations no more than there are; got {self.grid}, {self.permutations}"
            )

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {
            "backbone": self.backbone,
            "tile": MLP((self.width,), output_norm="full", output_bias=True, kernel_init=torch_init),
            "classifier": MLP((self.permutations,), output_bias=True, kernel_init=torch_init),
        }

    @property
    def chance_level(self) -> float:
        return math.log(self.permutations)

    def init(self, rng, images):
        _tiles.check_cells(images.shape[1:3], grid=self.grid, side=self.tile)
        rng_tiles, rng_classifier = jax.random.split(rng)
        networks = self.networks
        classifier = {"classifier": networks.pop("classifier")}
        tile = jnp.zeros((1, self.tile, self.tile, images.shape[-1]))
        params, batch_stats = _common.init(networks, rng_tiles, tile)
        last = _common.init(classifier, rng_classifier, jnp.zeros((1, self.grid**2 * self.width)))
        table = far_permutations(self.grid**2, self.permutations, criterion=self.criterion)
        return params | last[0], {"batch_stats": batch_stats | last[1], "permutations": jnp.asarray(table)}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        rng_tiles, rng_dropout = jax.random.split(rng)
        tiles, labels = self.shuffled(rng_tiles, batch["index"], batch["views"][0], state["permutations"])
        networks = self.networks
        classifier = {"classifier": networks.pop("classifier")}
        outputs, batch_stats = _common.forward(
            networks, params, state["batch_stats"], _tiles.as_images(tiles), axis_name=axis_name, rng=rng_dropout
        )
        joined = nn.relu(outputs["tile"]).reshape(len(tiles), -1)
        last, batch_stats = _common.forward(classifier, params, batch_stats, joined, axis_name=axis_name)
        loss = losses.classification(last["classifier"], labels, axis_name=axis_name)
        metrics = {
            "loss": loss,
            "accuracy": _common.accuracy(last["classifier"], labels, axis_name),
            "embeddings": jnp.mean(outputs["backbone"].reshape(len(tiles), self.grid**2, -1), axis=1)[None],
        }
        return loss, ({**state, "batch_stats": batch_stats}, metrics)

    def shuffled(
        self, rng: Key[Array, ""], index: Int[Array, " batch"], images: Any, permutations: Int[Array, "count tiles"]
    ) -> tuple[Float[Array, "batch tiles side side channels"], Int[Array, " batch"]]:
        """(tiles in the order of a permutation, its number)"""
        rng_cut, rng_shift, rng_label = jax.random.split(rng, 3)
        if self.channel_shift:
            images = _tiles.shift_channels(rng_shift, index, images, self.channel_shift)
        tiles = _tiles.cut(rng_cut, index, images, grid=self.grid, side=self.tile)
        if self.normalize_tiles:
            tiles = _tiles.normalize(tiles)
        labels = _tiles.offsets(rng_label, index, (), len(permutations))
        order = permutations[labels][:, :, None, None, None]
        return jnp.take_along_axis(tiles, order, axis=1), labels

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
