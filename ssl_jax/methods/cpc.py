"""CPC v2."""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax import losses
from ssl_jax.methods import _common, _tiles

Grid = Float[Array, "batch rows columns dim"]


class Context(nn.Module):
    """A grid of embeddings -> one of contexts, of which each row has seen itself and the rows above, nothing below.

    Residual blocks of convolutions one row high, and of two rows that end at the own one. Source: the paper's listing.
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
    """A grid of embeddings -> for each direction, (targets turned into it, {offset: predictions of offset rows below}).

    targets: [batch, rows, columns, target_dim]; predictions: [batch, rows - offset, columns, target_dim], row i of the
    targets' row i + offset.
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
class CPC:
    """Predicts the embeddings of an image's patches from those of the patches above, among all patches of the batch.

    A view is a grid x grid of overlapping patches, each encoded by itself. Nothing but the context network may take
    anything from one patch to another, so the backbone has LayerNorm: give model.batch_norm="layer". From the context
    of row i the embeddings of rows i + offset are predicted by a linear map for each offset, and so, with 4
    `directions`, in the image turned by quarters, with networks of their own (1: downwards alone, v1's). The scores
    are bilinear in context and embedding, of rank target_dim, and not normalized; the mean over offsets and directions.

    Each patch is, by itself, cut to `crop` pixels at a random place (0: not at all), mirrored with probability `flip`,
    and left, with probability `drop_channels`, with one of its channels, the others 0. What else v2 does to each patch
    (AutoAugment's operations, shearing, elastic deformation) is left out; colors change by view. Features are those
    of whole images, to which the backbone is applied as any other.

    Source: Hénaff et al. 2019, arXiv:1905.09272, section 3 and its listing, whose rank, scale and context network these
    are; v1: van den Oord et al. 2018, arXiv:1807.03748, section 3.2. The first of the metrics' embeddings is the mean
    over the upper half of the patches, the second over the lower half.
    """

    backbone: nn.Module
    run: _common.Run
    grid: int = 6  # patches a side
    patch: int = 80  # pixels a side
    crop: int = 0
    flip: float = 0.5
    drop_channels: float = 0.0
    offsets: tuple[int, ...] = (2, 3, 4, 5)  # rows
    directions: int = 4
    target_dim: int = 64
    width: int = 256  # of the context network
    depth: int = 5
    scale: float = 0.1  # of the scores
    chunk_size: int | None = None  # candidates whose scores are in memory at once; None: all

    views: ClassVar[tuple[str, ...]] = ("view",)

    def __post_init__(self):
        _common.check_positive(self, "patch", "target_dim", "width", "depth", "scale")
        _common.check_share(self, "flip", "drop_channels")
        if not self.offsets or not all(0 < k < self.grid for k in self.offsets):
            raise ValueError(
                f"offsets must be in 1..{self.grid - 1}, of a grid of {self.grid} rows, got {self.offsets}"
            )
        if not 1 <= self.directions <= 4:
            raise ValueError(f"directions must be in 1..4, got {self.directions}")
        if not 0 <= self.crop <= self.patch:
            raise ValueError(f"crop must be in 0..patch={self.patch}, got {self.crop}")
        if (kind := getattr(self.backbone, "batch_norm", "layer")) != "layer":
            raise ValueError(
                f'batch_norm={kind!r} tells the patches of an image about each other; use model.batch_norm="layer"'
            )

    @property
    def predictor(self) -> Predictor:
        return Predictor(self.offsets, self.directions, self.target_dim, self.width, self.depth, self.scale)

    @property
    def chance_level(self) -> float:
        return math.log(self.run.batch_size * self.grid**2)

    def init(self, rng, images):
        rng_backbone, rng_predictor = jax.random.split(rng)
        patches = _tiles.overlapping(images, grid=self.grid, side=self.patch)
        params, batch_stats = _common.init({"backbone": self.backbone}, rng_backbone, patches[0, :1])
        z = jnp.zeros((1, self.grid, self.grid, self.backbone.dim))
        params["predictor"] = self.predictor.init(rng_predictor, z)["params"]
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        rng_patches, rng_dropout = jax.random.split(rng)
        patches = self.patches(rng_patches, batch["index"], batch["views"][0])
        z, stats = _common.train_apply(
            self.backbone,
            params["backbone"],
            state["batch_stats"]["backbone"],
            _tiles.as_images(patches),
            axis_name=axis_name,
            rng=rng_dropout,
        )
        z = z.reshape(-1, self.grid, self.grid, z.shape[-1])
        found, _ = _common.train_apply(self.predictor, params["predictor"], {}, z, axis_name=axis_name)
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
        loss = sum(terms) / len(terms)
        half = self.grid // 2
        embeddings = jnp.stack([jnp.mean(part, axis=(1, 2)) for part in (z[:, :half], z[:, half:])])
        return loss, ({"batch_stats": {"backbone": stats}}, {"loss": loss, "embeddings": embeddings})

    def patches(self, rng, index, images):
        """[batch, grid * grid, side, side, channels], each changed by random numbers of its own."""
        rng_crop, rng_flip, rng_drop, rng_kept = jax.random.split(rng, 4)
        patches = _tiles.overlapping(images, grid=self.grid, side=self.patch)
        batch, count, *_, channels = patches.shape
        if self.crop:
            corners = _tiles.offsets(rng_crop, index, (count, 1, 2), self.patch - self.crop + 1)
            cropped = _tiles.take(_tiles.as_images(patches), _tiles.as_images(corners), self.crop)
            patches = cropped.reshape(batch, count, self.crop, self.crop, channels)
        if self.flip:
            flipped = _tiles.uniform(rng_flip, index, (count, 1, 1, 1)) < self.flip
            patches = jnp.where(flipped, patches[:, :, :, ::-1], patches)
        if self.drop_channels:
            dropped = _tiles.uniform(rng_drop, index, (count, 1, 1, 1)) < self.drop_channels
            kept = _tiles.offsets(rng_kept, index, (count, 1, 1, 1), channels)
            patches = jnp.where(dropped & (kept != jnp.arange(channels)), 0.0, patches)
        return patches

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features


def _rows(grid: Grid) -> Float[Array, "patches dim"]:
    return grid.reshape(-1, grid.shape[-1])
