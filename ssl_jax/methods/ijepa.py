"""I-JEPA."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.losses._common import first_row
from ssl_jax.methods import _common, _queue, _tiles, _tokens
from ssl_jax.models.positions import patch_grid, sincos_positions
from ssl_jax.models.vit import Block, dense, layer_norm, weight_init

SIZES = 1000  # a block's size is one of so many, equally likely
TRIES = 10  # placements of an image's blocks, until one leaves enough of the context


class Patches(NamedTuple):
    """Some patches of each image, as many as there is room for; where `valid` is False, one that only fills it up."""

    index: Int[Array, "batch ... room"]
    valid: Bool[Array, "batch ... room"]


class Predictor(nn.Module):
    """The tokens of a context, and where blocks of targets lie -> the teacher's tokens there.

    A narrow ViT, which sees the context with one block at a time. Each target begins as one and the same token;
    positions are fixed sines and cosines.
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

        def join(of_context, of_targets):
            """An image's blocks are rows side by side: [batch * blocks, context + room, ...]."""
            of_targets = of_targets.reshape(batch * blocks, room, *of_targets.shape[3:])
            return jnp.concatenate([jnp.repeat(of_context, blocks, axis=0), of_targets], axis=1)

        x, seen = join(x, y), join(context.valid, targets.valid)[:, None]
        for i in range(self.depth):
            block = Block(self.heads, 4 * self.dim, layer_scale=0.0, dtype=dtype, name=f"blocks_{i}")
            x = block(x, attend=seen)
        x = layer_norm(jnp.float32, "norm")(x[:, -room:])
        return dense(self.outputs, jnp.float32, "proj")(x).reshape(batch, blocks, room, self.outputs)


@dataclasses.dataclass(frozen=True)
class IJEPA:
    """Predicts, from one part of an image, what a slowly moving teacher makes of others: in features, not in pixels.

    Targets are `targets` blocks of patches, which may overlap, among the teacher's tokens of the whole image, each
    normalized by its own mean and deviation. The student sees the patches of a large block, the context, but for those
    of the targets. A narrow ViT with as many heads predicts the targets from its tokens, block by block.

    The size of the target blocks and that of the context block are drawn for each step, the same on all devices, their
    places for each image. So the numbers of patches change while a compiled step's shapes do not: rows of patches have
    room for the most and are filled up with ones that no other token sees and no loss counts. (With one compiled step
    for each size there would be ten, and contexts would still differ within a batch.) A context has room for
    `context_share` of the patches at most, which costs the time of so many: of the contexts that have more, one in 200
    of 14x14 patches at 0.7, some are left out at random.

    `cut_images`: with it, so many images in a row of the global batch, on whichever devices, keep as many context
    patches as the smallest context among them has, the first ones row by row. `margin`: so many rows and columns, the
    last ones, have no block. The published accuracies are of cut_images=128, what a device of the authors has, and
    margin=1, which their code has without a word: contexts of 14x14 patches then have 51 on average (25 to 65). With 0
    of both each keeps what its targets leave, 91 on average (31 to 156).

    Of `TRIES` placements the first counts that leaves the context `min_context` patches, or the one that leaves most:
    of 14x14 patches always the first, of 7x7 in all but one case in 50.

    The backbone is to have no class token and fixed positions, and to be pooled by a mean: model.class_token=False,
    positions="sincos", pool="norm_mean". The teacher's decay goes from `decay` in a straight line to 1 at the end of
    the run; its backbone is the one kept.

    Source: Assran et al. 2023, arXiv:2301.08243, section 3 and appendix A, and the authors' code, whose loss (the
    paper's is the squared distance), normalized targets and initialization these are: kernels, the patch embedding's
    included, are normal of deviation 0.02, as what the constructors rescale is drawn anew.
    """

    backbone: nn.Module
    run: _common.Run
    targets: int = 4
    target_area: tuple[float, float] = (0.15, 0.2)  # (least, most) share of the patches
    target_aspect: tuple[float, float] = (0.75, 1.5)  # (least, most) height / width
    context_area: tuple[float, float] = (0.85, 1.0)
    context_share: float = 0.7
    cut_images: int = 0
    margin: int = 0
    min_context: int = 10
    predictor_dim: int = 384
    predictor_depth: int = 12
    beta: float = 1.0  # where the loss turns from squared to absolute
    decay: float = 0.996

    views: ClassVar[tuple[str, ...]] = ("view",)
    chance_level: ClassVar[None] = None

    def __post_init__(self):
        _tokens.check_vit(self, class_token=False)
        _common.check_positive(self, "targets", "min_context", "predictor_dim", "predictor_depth", "beta")
        _common.check_share(self, "decay")
        if self.predictor_dim % self.backbone.heads or self.predictor_dim % 4:
            raise ValueError(
                f"predictor_dim={self.predictor_dim} must be a multiple of 4 and of model.heads={self.backbone.heads}"
            )
        for name, most in (("target_area", 1.0), ("target_aspect", np.inf), ("context_area", 1.0)):
            low, high = getattr(self, name)
            if not 0.0 < low <= high <= most:
                raise ValueError(f"{name} must be (least, most) with 0 < least <= most <= {most}, got {(low, high)}")
        if not 0.0 < self.context_share <= 1.0:
            raise ValueError(f"context_share must be in (0, 1], got {self.context_share}")
        if self.margin < 0:
            raise ValueError(f"margin must be at least 0, got {self.margin}")
        if self.cut_images < 0 or (self.cut_images and self.run.batch_size % self.cut_images):
            raise ValueError(
                f"cut_images={self.cut_images} must divide batch_size={self.run.batch_size}; use 0 for no cut"
            )

    def grid(self, images: Any) -> tuple[int, int]:
        return patch_grid(images.shape[1:3], self.backbone.patch_size)

    def predictor(self, grid: tuple[int, int]) -> Predictor:
        return Predictor(
            self.predictor_dim,
            self.predictor_depth,
            self.backbone.heads,
            outputs=self.backbone.dim,
            grid=grid,
            dtype=self.backbone.dtype,
        )

    def init(self, rng, images):
        keys = jax.random.split(rng, 4)
        params, batch_stats = _common.init({"backbone": self.backbone}, keys[0], images)
        embed = params["backbone"]["patch_embed"]["proj"]
        embed["kernel"] = weight_init(keys[3], embed["kernel"].shape)
        teacher = _common.make_teacher({"backbone": self.backbone}, params, batch_stats)
        context, targets = self.draw_blocks(keys[1], jnp.zeros(1, jnp.int32), self.grid(images))
        tokens = jnp.zeros((*context.index.shape, self.backbone.dim))
        predictor = self.predictor(self.grid(images))
        params["predictor"] = predictor.init(keys[2], tokens, context, targets)["params"]
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(self, params, state, batch, rng, *, axis_name=None):
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
            "loss": loss,
            # Over the images, of each entry: towards 0 the teacher has collapsed.
            "target_variance": jnp.mean(jnp.var(target, axis=(0, 1))),
            "context_patches": jnp.mean(jnp.sum(context.valid, axis=1)),
            "embeddings": jnp.mean(h, axis=1)[None],
        }
        return loss, (state, metrics)

    def predict(self, params, images, context, targets, rng, axis_name):
        """[batch, blocks, room, dim], of the targets."""
        tokens, _ = _common.train_apply(
            self.backbone,
            params["backbone"],
            {},
            images,
            axis_name=axis_name,
            rng=rng,
            tokens=True,
            keep=context.index,
            attend=context.valid[:, None],
        )
        predictor = self.predictor(self.grid(images))
        variables = {"params": params["predictor"]}
        return predictor.apply(variables, tokens, context, targets, train=True, axis_name=axis_name)

    def teacher_tokens(self, state: Any, images: Any) -> Any:
        """[batch, patches, dim] after the last LayerNorm, without gradient."""
        return lax.stop_gradient(self.backbone.apply(self.backbone_variables(None, state), images, tokens=True))

    def draw_blocks(
        self, rng: Key[Array, ""], index: Int[Array, " batch"], grid: tuple[int, int], axis_name: str | None = None
    ) -> tuple[Patches, Patches]:
        """(context [batch, room], targets [batch, blocks, room]) of the images with these indices.

        axis_name: mapped axis that the batch is split over; cut_images counts the images of all devices.
        """
        rng_size, rng_place, rng_order = jax.random.split(rng, 3)
        patches = grid[0] * grid[1]
        of_context = block_sizes(grid, self.context_area, (1.0, 1.0), self.margin)
        of_target = block_sizes(grid, self.target_area, self.target_aspect, self.margin)
        one, other = jax.random.randint(rng_size, (2,), 0, SIZES)
        sizes = jnp.stack([jnp.asarray(of_context)[one], *[jnp.asarray(of_target)[other]] * self.targets])
        places = _tiles.uniform(rng_place, index, (TRIES, 1 + self.targets, 2))
        inside = covered(jnp.floor(places * (jnp.asarray(grid) - self.margin - sizes + 1)), sizes, grid)
        targets = inside[:, :, 1:]  # [batch, tries, targets, patches]
        context = inside[:, :, 0] & ~jnp.any(targets, axis=2)
        left = jnp.minimum(jnp.sum(context, axis=-1), self.min_context)
        attempt = jnp.argmax(left, axis=1)[:, None, None]  # the first of those with the most
        context = jnp.take_along_axis(context, attempt, axis=1)[:, 0]
        targets = jnp.take_along_axis(targets, attempt[..., None], axis=1)[:, 0]
        noise = _tiles.uniform(rng_order, index, (patches,))
        room = max(round(self.context_share * patches), 1)
        if self.cut_images:
            smallest = self._smallest(jnp.sum(context, axis=1), axis_name)
            context &= jnp.cumsum(context, axis=1) <= jnp.minimum(smallest, room)[:, None]
        return choose(context, noise, room), choose(targets, noise[:, None], int(np.max(np.prod(of_target, axis=1))))

    def _smallest(self, counts: Int[Array, " batch"], axis_name: str | None) -> Int[Array, " batch"]:
        """For each image the least count among the `cut_images` that it is one of; fewer than these are one group."""
        everywhere = _queue.gather(counts, axis_name)
        group = min(self.cut_images, len(everywhere))
        least = jnp.repeat(jnp.min(everywhere.reshape(-1, group), axis=1), group)
        return lax.dynamic_slice_in_dim(least, first_row(counts, axis_name), len(counts))

    def pictures(self, params, state, batch, rng):
        """What it saw, and what it was to predict the features of."""
        (images,) = batch["views"]
        grid, patch = self.grid(images), self.backbone.patch_size

        def seen(patches):
            here = jax.nn.one_hot(patches.index, grid[0] * grid[1]) * patches.valid[..., None]
            hidden = jnp.all(here == 0, axis=tuple(range(1, here.ndim - 1)))
            return _tokens.pictures(images, hidden, patch)["seen"]

        context, targets = self.draw_blocks(jax.random.split(rng)[0], batch["index"], grid)
        return {"image": images, "context": seen(context), "targets": seen(targets)}

    def update(self, params: Any, state: Any, step: Any) -> Any:
        decay = optim.linear(self.decay, 1.0, step, self.run.steps)
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, decay)}

    backbone_variables = _common.teacher_backbone
    features = _common.features


def block_sizes(
    grid: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float], margin: int = 0
) -> np.ndarray:
    """int32 [SIZES, 2]: (height, width) in patches of blocks from the least area and height / width to the most; no
    side is longer than the grid's less the margin.

    The two grow together, by one number, as in the authors' code.
    """
    share = (np.arange(SIZES) + 0.5) / SIZES
    patches = np.floor(grid[0] * grid[1] * (area[0] + share * (area[1] - area[0])))
    ratio = aspect[0] + share * (aspect[1] - aspect[0])
    sides = np.stack([np.sqrt(patches * ratio), np.sqrt(patches / ratio)], axis=1)
    return np.clip(np.round(sides), 1, np.maximum(np.asarray(grid) - margin, 1)).astype(np.int32)


def covered(
    corners: Float[Array, "batch tries blocks 2"], sizes: Int[Array, "blocks 2"], grid: tuple[int, int]
) -> Bool[Array, "batch tries blocks patches"]:
    """Which patches, row by row, lie in blocks of these (height, width) whose first patch's (row, column) is given."""
    places = jnp.asarray(np.indices(grid).reshape(2, -1).T)  # [patches, 2]
    first, last = corners[..., None, :], (corners + sizes)[..., None, :]
    return jnp.all((places >= first) & (places < last), axis=-1)


def choose(chosen: Bool[Array, "*#batch patches"], noise: Float[Array, "*#batch patches"], room: int) -> Patches:
    """Of the chosen patches as many as there is room for: of too many, those of least noise, which is below 1."""
    index = jnp.argsort(jnp.where(chosen, noise, 1.0), axis=-1)[..., :room]
    return Patches(index, jnp.take_along_axis(chosen, index, axis=-1))
