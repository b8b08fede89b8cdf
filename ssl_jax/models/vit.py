"""Vision transformers (Dosovitskiy et al. 2020, arXiv:2010.11929), as in timm.

Modules have timm's names, with "_" for "." before a number, so that weights.py needs no table of names.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ssl_jax import keys
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, OneOf, Range
from ssl_jax.models._options import DTYPES, Remat
from ssl_jax.models.conv import Conv
from ssl_jax.models.heads import torch_init
from ssl_jax.models.positions import RelativePositions, patch_grid, resize_positions, sincos_positions
from ssl_jax.ops.shards import gather_all, gather_before_loop, has_shards

POOLS = ("cls", "mean", "norm_mean")
POSITIONS = ("learned", "sincos", "relative")
MLPS = ("gelu", "swiglu")

# timm's and most authors' trunc_normal_(std=0.02) cuts off at -2 and 2, a hundred deviations away: in effect a normal
# distribution.
weight_init = nn.initializers.normal(0.02)


class ViT(nn.Module):
    """Images [batch, height, width, channels], sides multiples of patch_size -> features [batch, dim], float32.

    With drop_path, training needs a key: apply(..., rngs={"dropout": key}).

    Raises: ValueError for a value that a field cannot have, or for fields that do not go together.
    """

    dim: Annotated[int, COUNT, "Width of a token, a multiple of 4 and of heads."]
    heads: Annotated[int, COUNT, "Attention heads of a block."]
    depth: Annotated[int, COUNT, "Number of blocks."] = 12
    mlp: Annotated[
        str,
        OneOf(MLPS),
        "Hidden layer of each block's MLP. gelu: mlp_ratio * dim wide.",
        "swiglu: half as wide, the product of a linear map's SiLU and another linear map",
        "(Shazeer 2020, arXiv:2002.05202, as timm's SwiGLUPacked).",
    ] = "gelu"
    mlp_ratio: Annotated[float, POSITIVE, "Width of the MLP's hidden layer over dim; see mlp."] = 4.0
    patch_size: Annotated[int, COUNT, "Side of a patch in pixels."] = 16
    image_size: Annotated[
        int | tuple[int, int],
        COUNT,
        "Pixels of the images that learned and relative positions are made for: (height, width), or a square's side.",
        "Learned positions are interpolated for images of another size.",
    ] = 224
    positions: Annotated[
        str,
        OneOf(POSITIONS),
        "Positions of the patches. learned: for image_size. sincos: fixed, for the grid of any image.",
        "relative: none are added; all blocks share one learned bias of attention for each offset of two patches, and",
        "images must have image_size (BEiT, arXiv:2106.08254).",
    ] = "learned"
    pool: Annotated[
        str,
        OneOf(POOLS),
        "What the features are. cls: the class token after the last LayerNorm.",
        "mean: the mean over patches, followed by the LayerNorm, as in timm.",
        "norm_mean: the mean over patches after the LayerNorm.",
    ] = "cls"
    class_token: Annotated[
        bool, "Puts a class token before the patches. Without it, pool must be one of the means."
    ] = True
    layer_scale: Annotated[
        float,
        NOT_NEGATIVE,
        "Start value of the learned vector that multiplies each branch (LayerScale, arXiv:2103.17239); 0: no vector.",
    ] = 0.0
    drop_path: Annotated[
        float,
        Range(0.0, 1.0, below=True),
        "Probability, in training, that an image skips each branch of the last block (arXiv:1603.09382).",
        "It grows linearly from 0 at the first block, unless drop_path_uniform is set.",
    ] = 0.0
    drop_path_uniform: Annotated[bool, "All blocks have the probability drop_path."] = False
    drop_path_group: Annotated[
        int,
        NOT_NEGATIVE,
        "0: each image is drawn on its own; a branch that it skips is computed, and multiplied by 0.",
        "Above 0: among this many images in a row, a fixed number skips each branch, which is not computed for them,",
        "forward or backward (as in DINOv2, whose group is the views of a device). The group must divide a device's",
        "images and microbatch; then results do not depend on the number of devices.",
    ] = 0
    remat: Remat = False
    scan: Annotated[
        bool,
        "In training, the blocks are one loop, so that a deep model compiles in the time of one block.",
        "Set remat, too: without it the loop keeps all that its backward pass needs.",
    ] = False
    microbatch: Annotated[
        int,
        NOT_NEGATIVE,
        "In training, the blocks take this many images at a time, forward and again backward, so that no more images'",
        "activations are in memory; 0: all images at once. Results are the same for every loss, as only the blocks do",
        "not see the whole batch (for contrastive losses this is known as GradCache, arXiv:2101.06983).",
    ] = 0
    dtype: Annotated[
        str,
        OneOf(DTYPES),
        "Type of the computation within a branch. The sum that branches are added to is always float32, as under",
        "torch's autocast: with a layer_scale of 1e-4, bfloat16 would round away nearly all of a branch.",
    ] = "float32"

    def __post_init__(self):
        keys.check_fields(self)
        if self.mlp == "swiglu" and round(self.mlp_ratio * self.dim) % 2:
            raise ValueError(f"swiglu halves mlp_ratio * dim, which must be even, got {self.mlp_ratio} * {self.dim}")
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(f"dim={self.dim} must be a multiple of 4 and of heads={self.heads}")
        if self.pool == "cls" and not self.class_token:
            raise ValueError('pool="cls" needs class_token; without it use pool="norm_mean"')
        check_group(self)
        self.learned_grid  # noqa: B018  refuses an impossible image_size
        super().__post_init__()

    @property
    def learned_grid(self) -> tuple[int, int]:
        size = self.image_size
        return patch_grid((size, size) if isinstance(size, int) else size, self.patch_size)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        *,
        mask: Bool[Array, "batch patches"] | None = None,
        mask_token: Float[Array, " dim"] | None = None,
        keep: Int[Array, "batch kept"] | None = None,
        attend: Bool[Array, "#batch #queries #keys"] | None = None,
        tokens: bool = False,
        last_blocks: int = 0,
    ) -> Float[Array, "batch *tokens dim"]:
        """Features [batch, dim].

        With `tokens`: all tokens after the last LayerNorm, [batch, (1 +) patches, dim]. With `last_blocks`: all tokens
        after each of that many last blocks, [batch, last_blocks, (1 +) patches, dim].

        Args:
          mask, mask_token: where `mask` is True, the token replaces the patch's embedding, before positions are added
            (as in BERT).
          keep: indices of the patches that enter the blocks, in this order; the others are left out (MAE).
          attend: True where a query may attend to a key, in every block; broadcast to [batch, tokens, tokens]. Tokens
            are those that enter the blocks, the class token first if there is one. None: all attend to all. A query
            that may attend to nothing gets the mean of all values.
        Raises: ValueError for an image that patches do not fill, or options that do not go together.
        """
        if keep is not None and self.positions == "relative":
            raise ValueError('patches that are left out need a position of their own; use model.positions="sincos"')
        dtype = jnp.dtype(self.dtype)
        _, height, width, _ = images.shape
        grid = patch_grid((height, width), self.patch_size)
        x = PatchEmbed(self.dim, self.patch_size, dtype, name="patch_embed")(images.astype(dtype)).astype(jnp.float32)
        if mask is not None:
            if mask_token is None:
                raise ValueError("mask needs a mask_token, which replaces the masked patches")
            x = jnp.where(mask[..., None], mask_token, x)
        cls_position, positions = self.position_embedding(grid)
        x = x + positions
        if keep is not None:
            x = jnp.take_along_axis(x, keep[..., None], axis=1)
        if self.class_token:
            cls_token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.dim), jnp.float32)
            first = jnp.broadcast_to(cls_token + cls_position, (len(x), 1, self.dim))
            x = jnp.concatenate([first, x], axis=1)
        bias = None
        if self.positions == "relative":
            if grid != self.learned_grid:
                raise ValueError(f"relative positions are of {self.learned_grid} patches, got an image of {grid}")
            bias = RelativePositions(self.heads, grid, self.class_token, name="rel_pos_bias")()
        train = train and not self.is_initializing()  # while initializing, there are no parameters to stack
        drops = self.draw_drops(len(x), axis_name) if train and self.drop_path > 0.0 else [None] * self.depth
        run = ViT.run_blocks
        if train and (self.microbatch or self.scan):
            run = ViT.run_in_turn if self.microbatch else ViT.scan_blocks
            if has_shards(self.variables):
                run = nn.map_variables(run, "params", gather_before_loop)
        outputs: Any = run(self, x, drops, attend, bias, max(last_blocks, 1))
        x = outputs[-1]
        if last_blocks:
            return jnp.stack(outputs, axis=1)
        if self.pool == "mean":
            if tokens:
                raise ValueError('a model of pool="mean" has no LayerNorm for single tokens; use pool="norm_mean"')
            x = jnp.mean(x[:, self.num_prefix :], axis=1, dtype=jnp.float32)
            return layer_norm(jnp.float32, "fc_norm")(x)
        if self.pool == "cls" and not tokens:
            return layer_norm(jnp.float32, "norm")(x[:, 0])
        x = layer_norm(jnp.float32, "norm")(x)
        return x if tokens else jnp.mean(x[:, self.num_prefix :], axis=1)

    def tokens(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        **options: Any,
    ) -> Float[Array, "batch tokens dim"]:
        """All tokens after the last LayerNorm. options: mask, mask_token, keep and attend of `__call__`."""
        return self(images, train, axis_name, tokens=True, **options)

    @property
    def drop_rates(self) -> list[float]:
        """Probability of each block that an image skips one of its branches."""
        grows = [self.drop_path * i / max(self.depth - 1, 1) for i in range(self.depth)]
        return [self.drop_path] * self.depth if self.drop_path_uniform else grows

    def draw_drops(self, batch: int, axis_name: str | None) -> list[Any]:
        """Stochastic depth (arXiv:1603.09382): the `drop` of each `Block`."""
        # One key for each row of the global batch, so that results do not depend on the number of devices.
        first = 0 if axis_name is None else lax.axis_index(axis_name) * batch
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), first + jnp.arange(batch))

        def draw(key, number):
            return jax.vmap(jax.random.uniform)(jax.random.split(jax.random.fold_in(key, number)))

        noise = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(keys, jnp.arange(self.depth))  # [batch, depth, 2]
        group = self.drop_path_group
        if not group:
            keep = 1.0 - jnp.asarray(self.drop_rates)[:, None]
            return list(jnp.where(noise < keep, 1.0 / keep, 0.0).swapaxes(0, 1))
        if batch % group:
            raise ValueError(
                f"drop_path_group={group} does not divide the {batch} images, views counted, that a device has at a "
                f"time; use {math.gcd(group, batch)}, another divisor of it, or 0"
            )
        noise = noise.reshape(batch // group, group, self.depth, 2)
        order = jnp.argsort(jnp.moveaxis(noise, 1, -1), axis=-1)  # [groups, depth, 2, group]
        counts = [count_kept(group, rate) for rate in self.drop_rates]
        return [None if n == group else jnp.sort(order[:, i, :, :n], axis=-1) for i, n in enumerate(counts)]

    @property
    def block_options(self) -> dict[str, Any]:
        width = round(self.mlp_ratio * self.dim)
        dtype = jnp.dtype(self.dtype)
        return dict(heads=self.heads, mlp_width=width, mlp=self.mlp, layer_scale=self.layer_scale, dtype=dtype)

    def run_blocks(self, x, drops, attend, bias, count):
        """Outputs of the last `count` blocks."""
        block = nn.remat(Block) if self.remat else Block
        outputs = []
        for i, drop in enumerate(drops):
            x = block(**self.block_options, name=f"blocks_{i}")(x, drop, attend, bias)
            outputs.append(x)
        return tuple(outputs[-count:])

    def scan_blocks(self, x, drops, attend, bias, count):
        """`run_blocks` as one loop over the stacked parameters of the blocks."""
        of_blocks = [self.variables["params"][f"blocks_{i}"] for i in range(self.depth)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_blocks)
        block = Block(**self.block_options, parent=None)

        def step(x: Any, of_block: Any) -> tuple[Any, Any]:
            params, drop = of_block
            x = block.apply({"params": params}, x, drop, attend, bias)
            return x, x if count > 1 else None

        # Within Flax's scan over microbatches, `x` may have fewer varying axes than the loop's result. Both must match.
        varying = set().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(stacked)))
        if missing := varying - jax.typeof(x).manual_axis_type.varying:
            x = lax.pcast(x, tuple(missing), to="varying")
        by_block = None if drops[0] is None else jnp.stack(drops)
        step = jax.checkpoint(step, prevent_cse=False) if self.remat else step
        last, outputs = lax.scan(step, x, (stacked, by_block))
        return (last,) if count == 1 else tuple(outputs[-count:])

    def run_in_turn(self, x, drops, attend, bias, count):
        """The blocks on one microbatch after the other."""
        batch, size = len(x), self.microbatch
        if batch % size:
            raise ValueError(f"{batch} images a device do not divide into microbatches of {size}; use a divisor of it")
        shared = attend is None or len(attend) == 1  # the same for all images

        def step(self, _, chunk):
            x, drops, own = chunk
            run = self.scan_blocks if self.scan else self.run_blocks
            return None, run(x, drops, attend if shared else own, bias, count)

        chunks = jax.tree.map(
            lambda a: a.reshape(batch // size, -1, *a.shape[1:]), (x, drops, None if shared else attend)
        )
        scan = nn.scan(nn.remat(step, prevent_cse=False), variable_broadcast="params", split_rngs={"params": False})
        _, outputs = scan(self, None, chunks)
        return jax.tree.map(lambda a: a.reshape(batch, *a.shape[2:]), outputs)

    @property
    def num_prefix(self) -> int:
        """Number of tokens before the patches."""
        return int(self.class_token)

    def position_embedding(
        self, grid: tuple[int, int]
    ) -> tuple[Float[Array, "1 _ dim"], Float[Array, "1 patches dim"]]:
        """(position of the class token, if there is one; positions of the patches, row by row)"""
        if self.positions == "sincos":
            return jnp.zeros((1, 1, self.dim)), sincos_positions(grid, self.dim)
        if self.positions == "relative":
            return jnp.zeros((1, 1, self.dim)), jnp.zeros((1, grid[0] * grid[1], self.dim))
        height, width = self.learned_grid
        shape = (1, self.num_prefix + height * width, self.dim)
        learned = self.param("pos_embed", weight_init, shape, jnp.float32)
        prefix, patches = learned[:, : self.num_prefix], learned[:, self.num_prefix :]
        if grid == (height, width):
            return prefix, patches
        resized = resize_positions(patches.reshape(height, width, self.dim), grid)
        return prefix, resized.reshape(1, -1, self.dim)


def check_group(model: ViT) -> None:
    """Raises: ValueError for a drop_path_group that does nothing, or does not go together with other options.

    Not a method: Flax wraps methods as parts of the forward pass, which fails in __post_init__.
    """
    group = model.drop_path_group
    if not group or not model.drop_path:
        return
    if group == 1:
        raise ValueError("drop_path_group=1 leaves out no image; use 0 (each image on its own), or more than 1")
    if model.scan and not model.drop_path_uniform:
        raise ValueError("scan needs the same shapes in every block; with drop_path_group use drop_path_uniform=True")
    if model.microbatch % group:
        raise ValueError(f"drop_path_group={group} does not divide microbatch={model.microbatch}; use a divisor")


class PatchEmbed(nn.Module):
    """images [batch, height, width, channels] -> [batch, patches, dim]: one linear map of each patch's pixels."""

    dim: int
    patch_size: int
    dtype: Any

    @nn.compact
    def __call__(self, images):
        x = Conv(
            self.dim,
            (self.patch_size, self.patch_size),
            strides=(self.patch_size, self.patch_size),
            padding="VALID",
            kernel_init=torch_init,  # timm keeps torch's initialization here
            dtype=self.dtype,
            name="proj",
        )(images)
        return x.reshape(len(x), -1, self.dim)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x [batch, tokens, dim] is float32 whatever `dtype` is.

    drop: which images have which of the two branches.
      None: all images have both.
      float [batch, 2]: the factor of each image's branch, either 0 or the number that makes the factors' mean 1.
      int [groups, 2, kept]: in each group of batch / groups consecutive images, those that have a branch, in rising
        order. Their branch is multiplied by batch / groups / kept. For the other images it is not computed.
    attend: as in `ViT`. bias: added to attention's logits, broadcast to [batch, heads, tokens, tokens].
    Parameters that are shards (see ops.shards) are gathered here.
    """

    heads: int
    mlp_width: int
    layer_scale: float
    dtype: Any
    mlp: str = "gelu"

    @nn.compact
    def __call__(self, x, drop=None, attend=None, bias=None):
        if has_shards(self.variables):
            return nn.map_variables(Block.branches, "params", gather_all)(self, x, drop, attend, bias)
        return self.branches(x, drop, attend, bias)

    def branches(self, x, drop, attend, bias):
        def attention(x, attend):
            y = layer_norm(self.dtype, "norm1")(x)
            return self.scale(Attention(self.heads, self.dtype, name="attn")(y, attend, bias), "ls1")

        def feed_forward(x, _):
            y = layer_norm(self.dtype, "norm2")(x)
            return self.scale(FeedForward(self.mlp_width, self.dtype, self.mlp, name="mlp")(y), "ls2")

        first, second = (None, None) if drop is None else drop.swapaxes(0, 1)
        x = add_branch(x, attention, first, attend)
        return add_branch(x, feed_forward, second, None)

    def scale(self, y, name):
        y = y.astype(jnp.float32)
        return y if self.layer_scale == 0.0 else LayerScale(self.layer_scale, name=name)(y)


def add_branch(
    x: Float[Array, "batch tokens dim"],
    branch: Callable[[Any, Any], Any],
    drop: Array | None,
    attend: Bool[Array, "#batch _ _"] | None,
) -> Float[Array, "batch tokens dim"]:
    """x + branch(x, attend), for the images that have the branch. drop: as in `Block`, of this branch alone."""
    if drop is None:
        return x + branch(x, attend)
    if jnp.issubdtype(drop.dtype, jnp.floating):
        return x + branch(x, attend) * drop[:, None, None]
    groups, kept = drop.shape
    size = len(x) // groups
    rows = (drop + size * jnp.arange(groups)[:, None]).ravel()
    known: dict[str, Any] = dict(unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds")
    own = attend if attend is None or len(attend) == 1 else attend[rows]
    return x.at[rows].add(branch(x.at[rows].get(**known), own) * (size / kept), **known)


def count_kept(group: int, rate: float) -> int:
    """How many images of a group keep a branch that is dropped at this rate: DINOv2's count, at least 1."""
    return max(math.floor(group * (1.0 - rate) + 1e-6), 1)


class LayerScale(nn.Module):
    start: float

    @nn.compact
    def __call__(self, y):
        gamma = self.param("gamma", nn.initializers.constant(self.start), y.shape[-1:], jnp.float32)
        return y * gamma


class Attention(nn.Module):
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x, attend, bias):
        batch, tokens, dim = x.shape
        qkv = dense(3 * dim, self.dtype, "qkv")(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        mask = None if attend is None else attend[:, None]  # the same for all heads
        # dot_product_attention computes the softmax in float32.
        x = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], bias, mask)
        return dense(dim, self.dtype, "proj")(x.reshape(batch, tokens, dim))


class FeedForward(nn.Module):
    width: int
    dtype: Any
    kind: str = "gelu"

    @nn.compact
    def __call__(self, x):
        y = dense(self.width, self.dtype, "fc1")(x)
        if self.kind == "swiglu":
            gate, y = jnp.split(y, 2, axis=-1)
            y = nn.silu(gate) * y
        else:
            y = nn.gelu(y, approximate=False)
        return dense(x.shape[-1], self.dtype, "fc2")(y)


def dense(features: int, dtype: Any, name: str) -> nn.Module:
    return nn.Dense(features, kernel_init=weight_init, dtype=dtype, name=name)


def layer_norm(dtype: Any, name: str) -> nn.Module:
    # Not the fast variance, E[x^2] - E[x]^2: it loses its digits where a token's mean is far from 0.
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)
