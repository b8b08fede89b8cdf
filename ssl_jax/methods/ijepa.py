"""I-JEPA."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from ssl_jax import losses, ops, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import masking, memories, tiling
from ssl_jax.models.blocks import Block, dense, layer_norm, weight_init
from ssl_jax.models.positions import patch_grid, sincos_positions
from ssl_jax.ops import first_row

SIZES = 1000  # a block has one of so many sizes, equally likely
TRIES = 10  # placements of an image's blocks, at most, to find one that leaves enough of the context
POSITIVE_SHARE = Range(0.0, 1.0, above=True)  # a share that is not 0


class Patches(NamedTuple):
    """Some patches of each image. All rows have one length, `room`; patches that are not `valid` only fill them up."""

    index: Int[Array, "batch ... room"]
    valid: Bool[Array, "batch ... room"]


class Predictor(nn.Module):
    """The tokens of a context and the places of blocks of targets -> the teacher's tokens at these places.

    A narrow ViT that sees the context with one block at a time. All targets begin as the same token. Positions are
    fixed sines and cosines.
    """

    dim: int
    depth: int
    heads: int
    outputs: int
    grid: tuple[int, int]  # patches down, across
    dtype: str

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch context encoder_dim"],
        context: Patches,  # [batch, context]
        targets: Patches,  # [batch, blocks, room]
        train: bool = False,
        axis_name: str | None = None,
    ) -> Float[Array, "batch blocks room outputs"]:
        dtype = jnp.dtype(self.dtype)
        batch, blocks, room = targets.index.shape
        positions = sincos_positions(self.grid, self.dim)[0]
        x = dense(self.dim, dtype, "embed")(tokens).astype(jnp.float32) + positions[context.index]
        mask_token = self.param("mask_token", weight_init, (self.dim,))
        y = mask_token + positions[targets.index]

        def join(
            of_context: Shaped[Array, "batch context ..."], of_targets: Shaped[Array, "batch blocks room ..."]
        ) -> Shaped[Array, "rows tokens ..."]:
            """[batch * blocks, context + room, ...]: the blocks of an image are rows side by side."""
            of_targets = of_targets.reshape(batch * blocks, room, *of_targets.shape[3:])
            return jnp.concatenate([jnp.repeat(of_context, blocks, axis=0), of_targets], axis=1)

        x, seen = join(x, y), join(context.valid, targets.valid)[:, None]
        for i in range(self.depth):
            block = Block(self.heads, 4 * self.dim, layer_scale=0.0, dtype=dtype, name=f"blocks_{i}")
            x = block(x, attend=seen)
        x = layer_norm(jnp.float32, "norm")(x[:, -room:])
        return dense(self.outputs, jnp.float32, "proj")(x).reshape(batch, blocks, room, self.outputs)


@dataclasses.dataclass(frozen=True)
class IJEPA(Base):
    """Predicts, from one part of an image, a slowly moving teacher's features of other parts. It predicts no pixels.

    The teacher sees the whole image. Each of its tokens is normalized by its own mean and deviation. The targets are
    `targets` blocks of patches among these tokens; blocks may overlap. The student sees the context: the patches of a
    large block that are in no target. A narrow ViT with as many heads predicts the targets from the student's tokens,
    block by block.

    The size of the target blocks and the size of the context block are drawn for each step, the same on all devices.
    Their places are drawn for each image. So the numbers of patches change, while a compiled step's shapes do not. Rows
    of patches have room for the largest number. Patches that only fill a row up are seen by no other token and count in
    no loss. (With one compiled step for each size there would be ten steps, and contexts would still differ within a
    batch.) A context has room for at most `context_share` of the patches, and costs the time of so many. If a context
    has more, some are left out at random: with 0.7 this happens to one context in 200 of 14x14 patches.

    With `cut_images`, so many images in a row of the global batch, on whichever devices, keep as many context
    patches as the smallest context among them has: the first ones, row by row. With `margin`, so many of the last
    rows and columns are in no block. The published accuracies are of cut_images=128, which is what a device of the
    authors has, and margin=1, which their code has without a word. Contexts of 14x14 patches then have 51 patches
    on average (25 to 65). With 0 for both, a context keeps what its targets leave, 91 on average (31 to 156).

    A placement must leave the context `min_context` patches. The first of `TRIES` placements that does is taken, or the
    one that leaves most. Of 14x14 patches it is always the first, of 7x7 in all but one case in 50.

    Give the backbone no class token, fixed positions and pooling by the mean: model.class_token=False,
    positions="sincos", pool="norm_mean". The teacher's decay goes from `decay` in a straight line to 1 at the end of
    the run. The teacher's backbone is kept.

    Source: Assran et al. 2023, arXiv:2301.08243, section 3 and appendix A, and the authors' code. The loss (the paper
    has the squared distance), the normalized targets and the initialization are the code's. Kernels, that of the patch
    embedding too, are normal of deviation 0.02, because the code draws anew what its constructors rescale.
    """

    backbone: nn.Module
    schedule: Schedule
    targets: Annotated[int, COUNT, "Blocks of targets in each image."] = 4
    target_area: Annotated[
        tuple[float, float], POSITIVE_SHARE, "(least, most) share of the patches in a target block."
    ] = (0.15, 0.2)
    target_aspect: Annotated[tuple[float, float], POSITIVE, "(least, most) height / width of a target."] = (0.75, 1.5)
    context_area: Annotated[
        tuple[float, float], POSITIVE_SHARE, "(least, most) share of the patches in the context block."
    ] = (0.85, 1.0)
    context_share: Annotated[float, POSITIVE_SHARE, "Share of the patches that a context has room for."] = 0.7
    cut_images: Annotated[
        int,
        NOT_NEGATIVE,
        "Number of consecutive images of the global batch whose contexts are cut to the size of the "
        "smallest one; 0: no cut. The published accuracies are for 128.",
    ] = 0
    margin: Annotated[
        int, NOT_NEGATIVE, "Number of last rows and columns of patches that no block contains. 1 in the authors' code."
    ] = 0
    min_context: Annotated[
        int, COUNT, "Least number of patches that the targets leave for the context, if a placement allows it."
    ] = 10
    predictor_dim: Annotated[int, COUNT, "Width of the predictor; a multiple of 4 and of the backbone's heads."] = 384
    predictor_depth: Annotated[int, COUNT, "Blocks of the predictor."] = 12
    beta: Annotated[float, POSITIVE, "Error at which the loss turns from squared to absolute."] = 1.0
    decay: Annotated[float, SHARE, "The teacher's decay at the start. It grows to 1 in a straight line."] = 0.996

    views = ("view",)

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self, class_token=False)
        if self.predictor_dim % self.backbone.heads or self.predictor_dim % 4:
            raise ValueError(
                f"predictor_dim={self.predictor_dim} must be a multiple of 4 and of model.heads={self.backbone.heads}"
            )
        for name in ("target_area", "target_aspect", "context_area"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be (least, most) with least <= most, got {(low, high)}")
        if self.cut_images and self.schedule.batch_size % self.cut_images:
            raise ValueError(
                f"cut_images={self.cut_images} must divide batch_size={self.schedule.batch_size}; use 0 for no cut"
            )

    def grid(self, images: Float[Array, "batch height width channels"]) -> tuple[int, int]:
        """Patches (down, across) of images of this size."""
        _, height, width, _ = images.shape
        return patch_grid((height, width), self.backbone.patch_size)

    def predictor(self, grid: tuple[int, int]) -> Predictor:
        return Predictor(
            self.predictor_dim,
            self.predictor_depth,
            self.backbone.heads,
            outputs=self.backbone.dim,
            grid=grid,
            dtype=self.backbone.dtype,
        )

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng, 4)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        embed = params["backbone"]["patch_embed"]["proj"]
        embed["kernel"] = weight_init(keys[3], embed["kernel"].shape)
        teacher = toolkit.make_teacher({"backbone": self.backbone}, params, batch_stats)
        context, targets = self.draw_blocks(keys[1], jnp.zeros(1, jnp.int32), self.grid(images))
        tokens = jnp.zeros((*context.index.shape, self.backbone.dim))
        predictor = self.predictor(self.grid(images))
        params["predictor"] = predictor.init(keys[2], tokens, context, targets)["params"]
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        rng_blocks, rng_backbone = jax.random.split(rng)
        context, targets = self.draw_blocks(rng_blocks, batch["index"], self.grid(images), axis_name)
        prediction = self.predict(params, images, context, targets, rng_backbone, axis_name)
        h = self.teacher_tokens(state, images)
        target = jax.nn.standardize(h, axis=-1, epsilon=1e-5)
        wanted = jnp.take_along_axis(target[:, None], targets.index[..., None], axis=2)
        rows = (-1, prediction.shape[2])  # images and blocks
        loss = losses.masked_smooth_l1(
            prediction.reshape(*rows, self.backbone.dim),
            wanted.reshape(*rows, self.backbone.dim),
            targets.valid.reshape(rows),
            beta=self.beta,
            axis_name=axis_name,
        )
        metrics = {
            # The variance of each entry over the images and patches. Towards 0 the teacher has collapsed.
            "target_variance": jnp.mean(jnp.var(target, axis=(0, 1))),
            "context_patches": jnp.mean(jnp.sum(context.valid, axis=1)),
        }
        return Output(loss, state, metrics, embeddings=jnp.mean(h, axis=1)[None])

    def predict(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        context: Patches,
        targets: Patches,
        rng: Key[Array, ""] | None,
        axis_name: str | None,
    ) -> Float[Array, "batch blocks room dim"]:
        """The predicted tokens of the targets."""
        tokens, _ = toolkit.train_apply(
            self.backbone,
            params["backbone"],
            {},
            images,
            axis_name=axis_name,
            rng=rng,
            method="tokens",
            keep=context.index,
            attend=context.valid[:, None],
        )
        predictor = self.predictor(self.grid(images))
        variables = {"params": params["predictor"]}
        predicted: Any = predictor.apply(variables, tokens, context, targets, train=True, axis_name=axis_name)
        return predicted

    def teacher_tokens(
        self, state: State, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches dim"]:
        """The teacher's tokens after the last LayerNorm, without gradient."""
        tokens: Any = self.backbone.apply(self.backbone_variables({}, state), images, method="tokens")
        return lax.stop_gradient(tokens)

    def draw_blocks(
        self, rng: Key[Array, ""], index: ops.Index, grid: tuple[int, int], axis_name: str | None = None
    ) -> tuple[Patches, Patches]:
        """(context [batch, room], targets [batch, blocks, room]) of the images with these indices.

        axis_name: mapped axis that the batch is spread over; cut_images counts the images of all devices.
        """
        rng_size, rng_place, rng_order = jax.random.split(rng, 3)
        patches = grid[0] * grid[1]
        of_context = block_sizes(grid, self.context_area, (1.0, 1.0), self.margin)
        of_target = block_sizes(grid, self.target_area, self.target_aspect, self.margin)
        one, other = jax.random.randint(rng_size, (2,), 0, SIZES)
        sizes = jnp.stack([jnp.asarray(of_context)[one], *[jnp.asarray(of_target)[other]] * self.targets])
        places = tiling.uniform(rng_place, index, (TRIES, 1 + self.targets, 2))
        inside = covered(jnp.floor(places * (jnp.asarray(grid) - self.margin - sizes + 1)), sizes, grid)
        targets = inside[:, :, 1:]  # [batch, tries, targets, patches]
        context = inside[:, :, 0] & ~jnp.any(targets, axis=2)
        left = jnp.minimum(jnp.sum(context, axis=-1), self.min_context)
        attempt = jnp.argmax(left, axis=1)[:, None, None]  # the first of the placements that leave most
        context = jnp.take_along_axis(context, attempt, axis=1)[:, 0]
        targets = jnp.take_along_axis(targets, attempt[..., None], axis=1)[:, 0]
        noise = tiling.uniform(rng_order, index, (patches,))
        room = max(round(self.context_share * patches), 1)
        if self.cut_images:
            smallest = self._smallest(jnp.sum(context, axis=1), axis_name)
            context &= jnp.cumsum(context, axis=1) <= jnp.minimum(smallest, room)[:, None]
        return choose(context, noise, room), choose(targets, noise[:, None], int(np.max(np.prod(of_target, axis=1))))

    def _smallest(self, counts: Int[Array, " batch"], axis_name: str | None) -> Int[Array, " batch"]:
        """For each image, the least count in its group of `cut_images`. A batch of fewer images is one group."""
        everywhere = memories.gather(counts, axis_name)
        group = min(self.cut_images, len(everywhere))
        least = jnp.repeat(jnp.min(everywhere.reshape(-1, group), axis=1), group)
        return lax.dynamic_slice_in_dim(least, first_row(counts, axis_name), len(counts))

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        """The patches that the student saw, and those whose features it had to predict."""
        (images,) = batch["views"]
        grid, patch = self.grid(images), self.backbone.patch_size

        def seen(patches: Patches) -> Float[Array, "batch height width channels"]:
            here = jax.nn.one_hot(patches.index, grid[0] * grid[1]) * patches.valid[..., None]
            hidden = jnp.all(here == 0, axis=tuple(range(1, here.ndim - 1)))
            return masking.pictures(images, hidden, patch)["seen"]

        context, targets = self.draw_blocks(jax.random.split(rng)[0], batch["index"], grid)
        return {"image": images, "context": seen(context), "targets": seen(targets)}

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.linear(self.decay, 1.0, step, self.schedule.steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    backbone_variables = toolkit.teacher_backbone

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # With `cut_images`, the number of context patches of each image is gathered.
        return Traffic(gathered=toolkit.row_bytes(self.schedule.batch_size, 1) if self.cut_images else 0)


def block_sizes(
    grid: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float], margin: int = 0
) -> np.ndarray:
    """The (height, width) in patches of blocks, from the least area and height / width to the most: int32 [SIZES, 2].

    area: (least, most) share of the patches. aspect: (least, most) height / width. Both grow together, by one number,
    as in the authors' code. No side is longer than the grid's less the margin.
    """
    share = (np.arange(SIZES) + 0.5) / SIZES
    patches = np.floor(grid[0] * grid[1] * (area[0] + share * (area[1] - area[0])))
    ratio = aspect[0] + share * (aspect[1] - aspect[0])
    sides = np.stack([np.sqrt(patches * ratio), np.sqrt(patches / ratio)], axis=1)
    return np.clip(np.round(sides), 1, np.maximum(np.asarray(grid) - margin, 1)).astype(np.int32)


def covered(
    corners: Float[Array, "batch tries blocks 2"], sizes: Int[Array, "blocks 2"], grid: tuple[int, int]
) -> Bool[Array, "batch tries blocks patches"]:
    """True for the patches in each block, row by row of the grid.

    corners: (row, column) of each block's first patch. sizes: (height, width) of each block.
    """
    places = jnp.asarray(np.indices(grid).reshape(2, -1).T)  # [patches, 2]
    first, last = corners[..., None, :], (corners + sizes)[..., None, :]
    return jnp.all((places >= first) & (places < last), axis=-1)


def choose(chosen: Bool[Array, "*#batch patches"], noise: Float[Array, "*#batch patches"], room: int) -> Patches:
    """The chosen patches, if there is room for them; otherwise those with the least noise. Noise is below 1."""
    index = jnp.argsort(jnp.where(chosen, noise, 1.0), axis=-1)[..., :room]
    return Patches(index, jnp.take_along_axis(chosen, index, axis=-1))
