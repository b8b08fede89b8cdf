"""PIRL."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import ops
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, OneOf
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import instances, memories, tiling
from ssl_jax.models.heads import MLP, moco_head, torch_dense, unit


class TileProjector(nn.Module):
    """h [batch, tiles, features] -> one head for each tile, then a linear layer of all tiles -> [batch, dim].

    Where the head has a hidden layer, a ReLU follows its last layer, too.
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
class PIRL(Base):
    """Draws an image and a copy, which a pretext task has transformed, to the image's row in a bank of embeddings.

    "jigsaw" cuts the view "patches" into grid x grid cells, and a tile at a random place of each cell. Each tile goes
    through the backbone and a head by itself, and a linear layer joins all tiles, in random order. "rotation" turns
    that view by a random multiple of 90 degrees.

    The loss is image_weight * InstDisc's of the image + (1 - image_weight) * InstDisc's of the transformed copy. Both
    see the bank as it was before the step. After that the image's embedding alone moves the bank. Both have one
    constant Z, that of the transformed copies of the first batch.

    The authors flip each tile and change its colors by itself. Here the tiles of a view are flipped and change
    together.

    Source: Misra & van der Maaten 2019, arXiv:1912.01991, section 3, and VISSL, their group's code.
    """

    backbone: nn.Module
    schedule: Schedule
    pretext: Annotated[str, OneOf(("jigsaw", "rotation")), "How the copy of the image is transformed."] = "jigsaw"
    projector: Annotated[
        tuple[int, ...],
        COUNT,
        "Widths of the heads' layers, without BatchNorm. (128,) is linear; the variant with `softmax` has (2048, 128), "
        "with a ReLU between them and at the end of the tiles' head.",
    ] = (128,)
    temperature: Annotated[float, POSITIVE, "Softmax temperature; 0.1 in the variant with `softmax`."] = 0.07
    negatives: Annotated[int, NOT_NEGATIVE, "Rows of the bank drawn for each image; 0: the whole bank."] = 32_000
    softmax: Annotated[bool, "Cross entropy in place of noise-contrastive estimation, as in InstDisc."] = False
    momentum: Annotated[float, SHARE, "Share of its old value that a row of the bank keeps."] = 0.5
    image_weight: Annotated[float, SHARE, "Weight of the image's loss; the loss of the copy has the rest, up to 1."] = (
        0.5
    )
    grid: Annotated[int, COUNT, "Tiles down and across, in jigsaw."] = 3
    tile: Annotated[int, COUNT, "Pixels of a tile, down and across, in jigsaw."] = 64

    views = ("image", "patches")

    @property
    def head(self) -> MLP:
        return moco_head(self.projector)

    @property
    def networks(self) -> toolkit.Networks:
        """Those that the image passes through."""
        return {"backbone": self.backbone, "projector": self.head}

    @property
    def transformed_projector(self) -> nn.Module:
        return TileProjector(self.head) if self.pretext == "jigsaw" else self.head

    @property
    def banks(self) -> Mapping[str, int]:
        return memories.named(self.schedule, "bank")

    @property
    def chance_level(self) -> float:
        return instances.chance_level(self.schedule.num_images, self.negatives, self.softmax)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_transformed, rng_bank = jax.random.split(rng, 3)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        tiles = (self.grid**2,) if self.pretext == "jigsaw" else ()
        h = jnp.zeros((len(images), *tiles, self.backbone.dim))
        variables = self.transformed_projector.init(rng_transformed, h)
        return {**params, "transformed_projector": variables["params"]}, {
            "batch_stats": batch_stats,
            "bank": memories.create_bank(rng_bank, self.schedule.num_images, self.projector[-1]),
            "log_z": instances.first_log_z(),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        rng_transform, rng_dropout, *rngs_negatives = jax.random.split(rng, 4)
        index, bank, (images, others) = batch["index"], state["bank"], batch["views"]
        rng_image, rng_other = jax.random.split(rng_dropout)
        outputs, batch_stats = toolkit.forward(
            self.networks, params, state["batch_stats"], images, axis_name=axis_name, rng=rng_image
        )
        h, batch_stats["backbone"] = toolkit.train_apply(
            self.backbone,
            params["backbone"],
            batch_stats["backbone"],
            self.transform(rng_transform, index, others),
            axis_name=axis_name,
            rng=rng_other,
        )
        if self.pretext == "jigsaw":
            h = h.reshape(len(images), self.grid**2, -1)
        transformed, _ = toolkit.train_apply(
            self.transformed_projector, params["transformed_projector"], {}, h, axis_name=axis_name
        )
        z_image, z_transformed = unit(outputs["projector"]), unit(transformed)
        find = functools.partial(
            instances.loss,
            num_images=self.schedule.num_images,
            negatives=self.negatives,
            softmax=self.softmax,
            temperature=self.temperature,
            axis_name=axis_name,
        )
        # The first batch of the transformed copies gives Z.
        loss_transformed, log_z = find(z_transformed, bank, index, rngs_negatives[1], state["log_z"])
        loss_image, log_z = find(z_image, bank, index, rngs_negatives[0], log_z)
        loss = self.image_weight * loss_image + (1 - self.image_weight) * loss_transformed
        bank = memories.update_bank(bank, index, z_image, axis_name, momentum=self.momentum)
        state = {"batch_stats": batch_stats, "bank": bank, "log_z": log_z}
        metrics = {"loss_image": loss_image, "loss_transformed": loss_transformed}
        return Output(loss, state, metrics, embeddings=jnp.stack([z_image, z_transformed]))

    def transform(
        self, rng: Key[Array, ""], index: ops.Index, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "rows _ _ channels"]:
        """The view "patches" -> images for the backbone: shuffled tiles [batch * tiles, ...], or turned images."""
        if self.pretext == "jigsaw":
            rng_cut, rng_shuffle = jax.random.split(rng)
            tiles = tiling.cut(rng_cut, index, images, grid=self.grid, side=self.tile)
            return tiling.as_images(tiling.shuffle(rng_shuffle, index, tiles))
        quarters = tiling.offsets(rng, index, (1, 1, 1, 1), 4)
        return jnp.take_along_axis(tiling.rotations(images), quarters, axis=1)[:, 0]

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The image and its copy each pass by themselves. The image's embeddings and the images' indices are gathered
        # for the bank.
        return Traffic(passes=2, gathered=toolkit.row_bytes(self.schedule.batch_size, self.projector[-1] + 1))
