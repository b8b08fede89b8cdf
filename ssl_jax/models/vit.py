"""Vision transformers (Dosovitskiy et al. 2020, arXiv:2010.11929), as timm has them.

Modules are named as timm's, a "." before a number being a "_", so that weights.py needs no table of names.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ssl_jax.models._options import DTYPES, check_choice
from ssl_jax.models.conv import Conv
from ssl_jax.models.heads import torch_init
from ssl_jax.models.positions import RelativePositions, patch_grid, resize_positions, sincos_positions
from ssl_jax.split import before_loop, has_parts, whole

POOLS = ("cls", "mean", "norm_mean")
POSITIONS = ("learned", "sincos", "relative")
MLPS = ("gelu", "swiglu")

# timm's and most authors' trunc_normal_(std=0.02) cuts off at -2 and 2, a hundred deviations: it is normal.
weight_init = nn.initializers.normal(0.02)


class ViT(nn.Module):
    """Images [batch, height, width, channels], sides multiples of patch_size -> features [batch, dim], float32.

    dim, depth, heads: width of a token, blocks, attention heads.
    mlp, mlp_ratio: "gelu": a hidden layer of mlp_ratio * dim; or "swiglu": of half as many, each a linear map's SiLU
      times another linear map (Shazeer 2020, arXiv:2002.05202, as timm's SwiGLUPacked).
    patch_size: pixels a side.
    image_size: (height, width), or the side of a square; what learned positions are made for. On images of another
      size they are interpolated.
    positions: "learned"; "sincos": fixed, built for whatever grid the images have; or "relative": none are added, but
      all blocks' attention has the same learned bias for each offset of two patches, for images of image_size alone
      (BEiT's, arXiv:2106.08254).
    class_token: whether there is one before the patches; without it pool is one of the means.
    pool: "cls" (the class token after the last LayerNorm), "mean" (over the patches, the LayerNorm after it, as timm
      has it) or "norm_mean" (over the patches after the LayerNorm).
    layer_scale: above 0, each branch is multiplied by a vector that begins there (arXiv:2103.17239).
    drop_path: probability of leaving out the last block's branches for an image, in training; it grows linearly from 0
      at the first, or with drop_path_uniform is that of every block. Above 0, training takes a key: apply(...,
      rngs={"dropout": key}).
    drop_path_group: 0: each image's branches are drawn by themselves, and those left out are computed and multiplied
      by 0. Above 0: of each branch, among so many images in a row, a fixed number is left out and not computed, in the
      forward pass and in the backward pass: DINOv2's way, whose group is the views of a device. The group must divide
      a device's images (and a microbatch); then results do not depend on the number of devices.
    remat: each block's activations are computed again in the backward pass instead of kept.
    scan: in training the blocks are one loop, so that a deep model compiles in the time of a block. Give remat with it:
      a loop keeps all that its backward pass needs.
    microbatch: above 0, in training the blocks take so many images at a time, forward and again backward, so that no
      more images' activations are in memory: gradient accumulation, with the same result for every loss, as it is only
      the blocks that do not see the whole batch (of contrastive losses known as GradCache, arXiv:2101.06983).
    dtype: of the computation within a branch, "float32" or "bfloat16". The sum that the branches are added to is
      float32 always, as under torch's autocast: with a layer_scale of 1e-4, bfloat16 rounds nearly all of it away.

    Raises: ValueError for an option or an image size that it cannot have.
    """

    dim: int
    heads: int
    depth: int = 12
    mlp: str = "gelu"
    mlp_ratio: float = 4.0
    patch_size: int = 16
    image_size: int | tuple[int, int] = 224
    positions: str = "learned"
    pool: str = "cls"
    class_token: bool = True
    layer_scale: float = 0.0
    drop_path: float = 0.0
    drop_path_uniform: bool = False
    drop_path_group: int = 0
    remat: bool = False
    scan: bool = False
    microbatch: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("pool", self.pool, POOLS)
        check_choice("positions", self.positions, POSITIONS)
        check_choice("mlp", self.mlp, MLPS)
        check_choice("dtype", self.dtype, DTYPES)
        if self.mlp == "swiglu" and round(self.mlp_ratio * self.dim) % 2:
            raise ValueError(f"swiglu halves mlp_ratio * dim, which must be even, got {self.mlp_ratio} * {self.dim}")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(f"dim={self.dim} must be a multiple of 4 and of heads={self.heads}")
        if self.pool == "cls" and not self.class_token:
            raise ValueError('pool="cls" needs class_token; without it use pool="norm_mean"')
        if self.microbatch < 0:
            raise ValueError(f"microbatch must be at least 0 (all images at once), got {self.microbatch}")
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
        """[batch, dim], or with `tokens` all of them, [batch, (1 +) patches, dim], after the last LayerNorm; or with
        `last_blocks` all of them as that many blocks at the end give them, [batch, last_blocks, (1 +) patches, dim].

        mask, mask_token: patches whose embedding is replaced by the token, before positions are added (BERT's trick).
        keep: indices of the only patches that enter the blocks, in this order (MAE).
        attend: which tokens see which, in every block: True where the query may attend to the key, of the tokens that
          enter the blocks, the class token first if there is one; broadcast to [batch, tokens, tokens]. By default all
          see all. A query that may attend to nothing gets the mean of all values.

        Raises: ValueError for an image that patches do not fill, or options that do not go together.
        """
        if keep is not None and self.positions == "relative":
            raise ValueError('patches that are left out need a position of their own; use model.positions="sincos"')
        dtype = jnp.dtype(self.dtype)
        _, height, width, _ = images.shape
        grid = patch_grid((height, width), self.patch_size)
        x = PatchEmbed(self.dim, self.patch_size, dtype, name="patch_embed")(images.astype(dtype)).astype(jnp.float32)
        if mask is not None:
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
        train = train and not self.is_initializing()  # there are no parameters yet to be stacked
        drops = self.draw_drops(len(x), axis_name) if train and self.drop_path > 0.0 else [None] * self.depth
        run = ViT.run_blocks
        if train and (self.microbatch or self.scan):
            run = ViT.run_in_turn if self.microbatch else ViT.scan_blocks
            if has_parts(self.variables):
                run = nn.map_variables(run, "params", before_loop)
        outputs = run(self, x, drops, attend, bias, max(last_blocks, 1))
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

    @property
    def drop_rates(self) -> list[float]:
        """Of each block."""
        grows = [self.drop_path * i / max(self.depth - 1, 1) for i in range(self.depth)]
        return [self.drop_path] * self.depth if self.drop_path_uniform else grows

    def draw_drops(self, batch: int, axis_name: str | None) -> list[Any]:
        """Stochastic depth (arXiv:1603.09382): for each block, what `Block` takes as `drop`."""
        # One key for each row of the global batch, so that the number of devices changes nothing.
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
        """What the last `count` blocks give."""
        block = nn.remat(Block) if self.remat else Block
        outputs = []
        for i, drop in enumerate(drops):
            x = block(**self.block_options, name=f"blocks_{i}")(x, drop, attend, bias)
            outputs.append(x)
        return tuple(outputs[-count:])

    def scan_blocks(self, x, drops, attend, bias, count):
        """`run_blocks` as one loop over the blocks' parameters, stacked."""
        of_blocks = [self.variables["params"][f"blocks_{i}"] for i in range(self.depth)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_blocks)
        block = Block(**self.block_options, parent=None)

        def step(x, of_block):
            params, drop = of_block
            x = block.apply({"params": params}, x, drop, attend, bias)
            return x, x if count > 1 else None

        # Within Flax's scan, of microbatches, `x` is not always known to differ between devices, as what comes out is.
        varying = set().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(stacked)))
        if missing := varying - jax.typeof(x).manual_axis_type.varying:
            x = lax.pcast(x, tuple(missing), to="varying")
        by_block = None if drops[0] is None else jnp.stack(drops)
        step = jax.checkpoint(step, prevent_cse=False) if self.remat else step
        last, outputs = lax.scan(step, x, (stacked, by_block))
        return (last,) if count == 1 else tuple(outputs[-count:])

    def run_in_turn(self, x, drops, attend, bias, count):
        """The blocks on `microbatch` images after the other."""
        batch, size = len(x), self.microbatch
        if batch % size:
            raise ValueError(f"{batch} images a device do not divide into microbatches of {size}; use a divisor of it")
        shared = attend is None or len(attend) == 1  # by all images

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
        """Tokens before the patches."""
        return int(self.class_token)

    def position_embedding(
        self, grid: tuple[int, int]
    ) -> tuple[Float[Array, "1 _ dim"], Float[Array, "1 patches dim"]]:
        """(of the class token, if there is one; of the patches row by row)"""
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
    """Not a method: Flax would take it for one that is part of the forward pass, when it is called on a model in the
    making.

    Raises: ValueError for a drop_path_group that does nothing, or does not go together with other options.
    """
    group = model.drop_path_group
    if group < 0:
        raise ValueError(f"drop_path_group must be at least 0 (each image by itself), got {group}")
    if not group or not model.drop_path:
        return
    if group == 1:
        raise ValueError("of drop_path_group=1 image none is left out; use 0 (each image by itself), or more")
    if model.scan and not model.drop_path_uniform:
        raise ValueError("scan has the same shapes in every block; with drop_path_group use drop_path_uniform=True")
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
            kernel_init=torch_init,  # which timm leaves as it is
            dtype=self.dtype,
            name="proj",
        )(images)
        return x.reshape(len(x), -1, self.dim)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x [batch, tokens, dim], float32 whatever `dtype` is.

    drop: None: all images have both branches. float [batch, 2]: what each image's two branches are multiplied by: 0, or
      so much that the mean is 1. int [groups, 2, kept]: which images of each group of batch / groups in a row have the
      branch, in rising order; the others' is not computed, and theirs is multiplied by the group's size / kept.
    attend: as `ViT` has it. bias: added to attention's logits, broadcast to [batch, heads, tokens, tokens].
    Of parameters of which each device has a part (see `split`) it gathers the rest.
    """

    heads: int
    mlp_width: int
    layer_scale: float
    dtype: Any
    mlp: str = "gelu"

    @nn.compact
    def __call__(self, x, drop=None, attend=None, bias=None):
        if has_parts(self.variables):
            return nn.map_variables(Block.branches, "params", whole)(self, x, drop, attend, bias)
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
    """x + branch(x, attend), for the images that have it: drop as `Block` has it, of this branch alone."""
    if drop is None:
        return x + branch(x, attend)
    if jnp.issubdtype(drop.dtype, jnp.floating):
        return x + branch(x, attend) * drop[:, None, None]
    groups, kept = drop.shape
    size = len(x) // groups
    rows = (drop + size * jnp.arange(groups)[:, None]).ravel()
    known = dict(unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds")
    own = attend if attend is None or len(attend) == 1 else attend[rows]
    return x.at[rows].add(branch(x.at[rows].get(**known), own) * (size / kept), **known)


def count_kept(group: int, rate: float) -> int:
    """Of a group of images, how many have a branch that is left out at this rate: DINOv2's count, one at least."""
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
        # Its softmax is in float32.
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
    # Not the fast variance, E[x^2] - E[x]^2: it cancels where a token's mean is far from 0.
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)
