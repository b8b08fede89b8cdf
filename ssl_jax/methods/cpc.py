"""CPC v2."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import tiling
from ssl_jax.models.resnet import ResNet

Grid = Float[Array, "batch rows columns dim"]


class Context(nn.Module):
    """A grid of embeddings -> a grid of contexts. A row of contexts has seen its own row and those above, none below.

    Residual blocks of convolutions. Each convolution sees one row, or two rows that end at its own.

    Source: the paper's listing.
    """

    width: int
    depth: int

    @nn.compact
    def __call__(self, z: Grid) -> Grid:
        x = z
        for _ in range(self.depth):
            y = nn.relu(nn.Conv(self.width, (1, 1))(x))
            y = nn.Conv(self.width, (1, 3))(y)
            y = nn.relu(nn.Conv(self.width, (2, 1), padding=((1, 0), (0, 0)))(y))
            x = x + nn.Conv(x.shape[-1], (1, 1))(y)
        return nn.relu(x)


class Predictor(nn.Module):
    """A grid of embeddings -> for each direction (targets turned into it, {offset: predictions of the rows below}).

    targets: [batch, rows, columns, target_dim]. predictions: [batch, rows - offset, columns, target_dim]; their row i
    predicts row i + offset of the targets.
    """

    offsets: tuple[int, ...]
    directions: int
    target_dim: int
    width: int
    depth: int
    scale: float

    @nn.compact
    def __call__(
        self, z: Grid, train: bool = False, axis_name: str | None = None
    ) -> list[tuple[Float[Array, "batch _ _ target_dim"], dict[int, Float[Array, "batch _ _ target_dim"]]]]:
        targets = nn.Dense(self.target_dim, name="target")(z)
        found = []
        for turns in range(self.directions):
            context = Context(self.width, self.depth, name=f"context_{turns}")(jnp.rot90(z, turns, axes=(1, 2)))
            predictions = {
                k: self.scale * nn.Dense(self.target_dim, name=f"predict_{turns}_{k}")(context[:, :-k])
                for k in self.offsets
            }
            found.append((jnp.rot90(targets, turns, axes=(1, 2)), predictions))
        return found


@dataclasses.dataclass(frozen=True)
class CPC(Base):
    """Predicts the embeddings of an image's patches from those of the patches above, among all patches of the batch.

    A view is a grid x grid of overlapping patches, each encoded by itself. Only the context network may carry anything
    from one patch to another, so the backbone has LayerNorm: give model.batch_norm="layer". From the context of row i,
    a linear map for each offset predicts the embeddings of row i + offset. With 4 `directions` the same is done in the
    image turned by quarters, with networks of their own; 1 is downwards alone, as in v1. The scores are bilinear in
    context and embedding, of rank target_dim, and not normalized. The loss is the mean over offsets and directions.

    Each patch is augmented by itself: cut to `crop` pixels at a random place, mirrored, and left with one of its
    channels. What else v2 does to each patch (AutoAugment's operations, shearing, elastic deformation) is left out. The
    colors of a view change as a whole. Features are those of whole images; the backbone takes them like any other.

    Source: Hénaff et al. 2019, arXiv:1905.09272, section 3 and its listing. The rank, the scale and the context network
    are the listing's. v1: van den Oord et al. 2018, arXiv:1807.03748, section 3.2. Of the embeddings in the output, the
    first is the mean over the upper half of the patches, the second over the lower half.
    """

    backbone: nn.Module
    schedule: Schedule
    grid: Annotated[int, COUNT, "Patches along each side of the grid."] = 6
    patch: Annotated[int, COUNT, "Pixels along each side of a patch."] = 80
    crop: Annotated[
        int, NOT_NEGATIVE, "Pixels along each side to which a patch is cut, at a random place; 0: no cut."
    ] = 0
    flip: Annotated[float, SHARE, "Probability of mirroring a patch."] = 0.5
    drop_channels: Annotated[
        float, SHARE, "Probability that a patch keeps only one of its channels; the others become 0."
    ] = 0.0
    offsets: Annotated[tuple[int, ...], COUNT, "Rows from a context to the patches that it predicts."] = (2, 3, 4, 5)
    directions: Annotated[int, Range(1, 4), "Quarter turns of the image in which patches are predicted; v1 has 1."] = 4
    target_dim: Annotated[
        int, COUNT, "Rank of the scores: dimensions that contexts and embeddings are compared in."
    ] = 64
    width: Annotated[int, COUNT, "Width of the context network."] = 256
    depth: Annotated[int, COUNT, "Residual blocks of the context network."] = 5
    scale: Annotated[float, POSITIVE, "Factor of the scores."] = 0.1
    chunk_size: Annotated[
        int | None, COUNT, "Candidates whose scores are in memory at once. None: all. The result is the same."
    ] = None

    views = ("view",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.offsets or not all(k < self.grid for k in self.offsets):
            raise ValueError(
                f"offsets must be in 1..{self.grid - 1}, for a grid of {self.grid} rows, got {self.offsets}"
            )
        if self.crop > self.patch:
            raise ValueError(f"crop must be in 0..patch={self.patch}, got {self.crop}")
        if (kind := getattr(self.backbone, "batch_norm", "layer")) != "layer":
            raise ValueError(
                f'batch_norm={kind!r} lets the patches of an image see each other; use model.batch_norm="layer"'
            )

    @property
    def predictor(self) -> Predictor:
        return Predictor(self.offsets, self.directions, self.target_dim, self.width, self.depth, self.scale)

    @property
    def chance_level(self) -> float:
        return math.log(self.schedule.batch_size * self.grid**2)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_backbone, rng_predictor = jax.random.split(rng)
        patches = tiling.overlapping(images, grid=self.grid, side=self.patch)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, rng_backbone, patches[0, :1])
        z = jnp.zeros((1, self.grid, self.grid, self.backbone.dim))
        params["predictor"] = self.predictor.init(rng_predictor, z)["params"]
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        rng_patches, rng_dropout = jax.random.split(rng)
        patches = self.patches(rng_patches, batch["index"], batch["views"][0])
        z, stats = toolkit.train_apply(
            self.backbone,
            params["backbone"],
            state["batch_stats"]["backbone"],
            tiling.as_images(patches),
            axis_name=axis_name,
            rng=rng_dropout,
        )
        z = z.reshape(-1, self.grid, self.grid, z.shape[-1])
        found, _ = toolkit.train_apply(self.predictor, params["predictor"], {}, z, axis_name=axis_name)
        terms = [
            losses.patch_info_nce(
                _rows(prediction),
                _rows(targets[:, k:]),
                others=_rows(targets[:, :k]),
                axis_name=axis_name,
                chunk_size=self.chunk_size,
            )
            for targets, predictions in found
            for k, prediction in predictions.items()
        ]
        loss = sum(terms, jnp.zeros(())) / len(terms)
        half = self.grid // 2
        embeddings = jnp.stack([jnp.mean(part, axis=(1, 2)) for part in (z[:, :half], z[:, half:])])
        return Output(loss, {"batch_stats": {"backbone": stats}}, {}, embeddings)

    def patches(
        self, rng: Key[Array, ""], index: ops.Index, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches side side channels"]:
        """All patches, row by row of the grid. Each is changed by random numbers of its own."""
        rng_crop, rng_flip, rng_drop, rng_kept = jax.random.split(rng, 4)
        patches = tiling.overlapping(images, grid=self.grid, side=self.patch)
        batch, count, *_, channels = patches.shape
        if self.crop:
            corners = tiling.offsets(rng_crop, index, (count, 1, 2), self.patch - self.crop + 1)
            cropped = tiling.take(tiling.as_images(patches), tiling.as_images(corners), self.crop)
            patches = cropped.reshape(batch, count, self.crop, self.crop, channels)
        if self.flip:
            flipped = tiling.uniform(rng_flip, index, (count, 1, 1, 1)) < self.flip
            patches = jnp.where(flipped, patches[:, :, :, ::-1], patches)
        if self.drop_channels:
            dropped = tiling.uniform(rng_drop, index, (count, 1, 1, 1)) < self.drop_channels
            kept = tiling.offsets(rng_kept, index, (count, 1, 1, 1), channels)
            patches = jnp.where(dropped & (kept != jnp.arange(channels)), 0.0, patches)
        return patches

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # In each direction and for each offset, the targets of all patches of all images are gathered, and their
        # gradient is scattered.
        patches = self.directions * len(self.offsets) * self.grid**2
        rows = patches * toolkit.row_bytes(self.schedule.batch_size, self.target_dim)
        return Traffic(gathered=rows, scattered=rows, unused=equal_biases(self.backbone))


def equal_biases(backbone: nn.Module) -> int:
    """Bytes of a ResNet's biases that are not sent, because XLA finds their gradients equal to those of others.

    In a block with a projection both branches end in a LayerNorm. Their biases are added to the same sum.
    """
    if not isinstance(backbone, ResNet):
        return 0
    widths = [backbone.stage_width(stage) * (4 if backbone.bottleneck else 1) for stage in range(len(backbone.stages))]
    without_projection = widths[0] == (backbone.stem_width or backbone.stage_width(0))  # in the first stage
    return 4 * sum(widths[1:] if without_projection else widths)


def _rows(grid: Grid) -> Float[Array, "patches dim"]:
    return grid.reshape(-1, grid.shape[-1])
