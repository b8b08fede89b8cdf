"""PIRL."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax.methods import _common, _instances, _queue, _tiles
from ssl_jax.models._options import check_choice
from ssl_jax.models.heads import MLP, moco_head, torch_dense, unit

PRETEXTS = ("jigsaw", "rotation")


class TileProjector(nn.Module):
    """h [batch, tiles, features] -> the same head for each tile, a linear layer for all of them -> [batch, dim].

    Where the head has a hidden layer, a ReLU follows its last one, too.
    """

    head: MLP

    @nn.compact
    def __call__(
        self, h: Float[Array, "batch tiles features"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch dim"]:
        z = self.head(h, train=train, axis_name=axis_name)
        if len(self.head.widths) > 1:
            z = nn.relu(z)
        return torch_dense(self.head.dim, z.shape[-1] * z.shape[-2], "join")(z.reshape(len(z), -1))


@dataclasses.dataclass(frozen=True)
class PIRL:
    """Makes an image and what a pretext task does to it share an embedding: that of the image in a bank.

    "jigsaw": the view "patches" is cut into grid x grid tiles, one at a random place of each cell; each goes through
    the backbone and a head by itself, and a linear layer joins the nine in random order. "rotation": that view is
    turned by a random multiple of 90 degrees. The loss is image_weight times InstDisc's of the image and the rest
    times that of the transformed one, both with the bank as it was before the step, which the image's embedding alone
    then moves, and with one constant Z, that of the transformed images of the first batch.

    The heads are linear, projector=(128,); with (2048, 128) a ReLU and no BatchNorm between, and the tiles' has a ReLU
    at its end. That variant has `softmax`, the cross entropy among own row and negatives, at temperature 0.1. The
    authors flip each tile by itself and change its colors by itself; here a view's tiles are flipped and change
    together.

    Source: Misra & van der Maaten 2019, arXiv:1912.01991, section 3, and VISSL, their group's code. The first of the
    metrics' embeddings is the image's, the second its transformed copy's.
    """

    backbone: nn.Module
    run: _common.Run
    pretext: str = "jigsaw"
    projector: tuple[int, ...] = (128,)
    temperature: float = 0.07
    negatives: int = 32_000
    softmax: bool = False
    momentum: float = 0.5  # share of a row of the bank that it keeps
    image_weight: float = 0.5
    grid: int = 3
    tile: int = 64  # pixels a side

    views: ClassVar[tuple[str, ...]] = ("image", "patches")

    def __post_init__(self):
        check_choice("pretext", self.pretext, PRETEXTS)
        _common.check_positive(self, "temperature", "grid", "tile")
        _common.check_share(self, "momentum", "image_weight")
        _instances.check_negatives(self.negatives)

    @property
    def head(self) -> MLP:
        return moco_head(self.projector)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Of the image."""
        return {"backbone": self.backbone, "projector": self.head}

    @property
    def transformed_projector(self) -> nn.Module:
        return TileProjector(self.head) if self.pretext == "jigsaw" else self.head

    @property
    def chance_level(self) -> float:
        return _instances.chance_level(self.run.num_images, self.negatives, self.softmax)

    def init(self, rng, images):
        rng_networks, rng_transformed, rng_bank = jax.random.split(rng, 3)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        tiles = (self.grid**2,) if self.pretext == "jigsaw" else ()
        h = jnp.zeros((len(images), *tiles, self.backbone.dim))
        variables = self.transformed_projector.init(rng_transformed, h)
        return {**params, "transformed_projector": variables["params"]}, {
            "batch_stats": batch_stats,
            "bank": _queue.create_bank(rng_bank, self.run.num_images, self.projector[-1]),
            "log_z": _instances.first_log_z(),
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        rng_transform, rng_dropout, *rngs_negatives = jax.random.split(rng, 4)
        index, bank, (images, others) = batch["index"], state["bank"], batch["views"]
        rng_image, rng_other = jax.random.split(rng_dropout)
        outputs, batch_stats = _common.forward(
            self.networks, params, state["batch_stats"], images, axis_name=axis_name, rng=rng_image
        )
        h, batch_stats["backbone"] = _common.train_apply(
            self.backbone,
            params["backbone"],
            batch_stats["backbone"],
            self.transform(rng_transform, index, others),
            axis_name=axis_name,
            rng=rng_other,
        )
        if self.pretext == "jigsaw":
            h = h.reshape(len(images), self.grid**2, -1)
        transformed, _ = _common.train_apply(
            self.transformed_projector, params["transformed_projector"], {}, h, axis_name=axis_name
        )
        z = unit(outputs["projector"]), unit(transformed)
        losses, log_z = [None, None], state["log_z"]
        for number in (1, 0):  # the transformed images' first batch gives Z
            losses[number], log_z = _instances.loss(
                z[number],
                bank,
                index,
                rngs_negatives[number],
                log_z,
                negatives=self.negatives,
                softmax=self.softmax,
                temperature=self.temperature,
                axis_name=axis_name,
            )
        loss = self.image_weight * losses[0] + (1 - self.image_weight) * losses[1]
        bank = _queue.update_bank(bank, index, z[0], axis_name, momentum=self.momentum)
        metrics = {"loss": loss, "loss_image": losses[0], "loss_transformed": losses[1], "embeddings": jnp.stack(z)}
        return loss, ({"batch_stats": batch_stats, "bank": bank, "log_z": log_z}, metrics)

    def transform(self, rng, index, images):
        """The images for the backbone, made of the view "patches": shuffled tiles [batch * tiles, ...], or turned."""
        if self.pretext == "jigsaw":
            rng_cut, rng_shuffle = jax.random.split(rng)
            tiles = _tiles.cut(rng_cut, index, images, grid=self.grid, side=self.tile)
            return _tiles.as_images(_tiles.shuffle(rng_shuffle, index, tiles))
        quarters = _tiles.offsets(rng, index, (1, 1, 1, 1), 4)
        return jnp.take_along_axis(_tiles.rotations(images), quarters, axis=1)[:, 0]

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
