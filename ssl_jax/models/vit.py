"""Vision transformers (Dosovitskiy et al. 2020, arXiv:2010.11929), as timm has them.

Modules are named as timm's, a "." before a number being a "_", so that weights.py needs no table of names.
"""

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

weight_init = nn.initializers.truncated_normal(0.02)


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
      at the first. Above 0, training takes a key: apply(..., rngs={"dropout": key}).
    remat: each block's activations are computed again in the backward pass instead of kept.
    scan: in training the blocks are one loop, so that a deep model compiles in the time of a block. Give remat with it:
      a loop keeps all that its backward pass needs.
    microbatch: above 0, in training the blocks take so many images at a time, forward and again backward, so that no
      more images' activations are in memory: gradient accumulation, with the same result for every loss, as it is only
      the blocks that do not see the whole batch (of contrastive losses known as GradCache, arXiv:2101.06983).
    dtype: of the computation, "float32" or "bfloat16".

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
        x = PatchEmbed(self.dim, self.patch_size, dtype, name="patch_embed")(images.astype(dtype))
        if mask is not None:
            x = jnp.where(mask[..., None], mask_token.astype(dtype), x)
        cls_position, positions = self.position_embedding(grid)
        x = x + positions.astype(dtype)
        if keep is not None:
            x = jnp.take_along_axis(x, keep[..., None], axis=1)
        if self.class_token:
            cls_token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.dim), jnp.float32)
            first = jnp.broadcast_to((cls_token + cls_position).astype(dtype), (len(x), 1, self.dim))
            x = jnp.concatenate([first, x], axis=1)
        bias = None
        if self.positions == "relative":
            if grid != self.learned_grid:
                raise ValueError(f"relative positions are of {self.learned_grid} patches, got an image of {grid}")
            bias = RelativePositions(self.heads, grid, self.class_token, name="rel_pos_bias")()
        scales = self.branch_scales(len(x), axis_name) if train and self.drop_path > 0.0 else None
        train = train and not self.is_initializing()  # there are no parameters yet to be stacked
        run = ViT.run_blocks
        if train and (self.microbatch or self.scan):
            run = ViT.run_in_turn if self.microbatch else ViT.scan_blocks
            if has_parts(self.variables):
                run = nn.map_variables(run, "params", before_loop)
        outputs = run(self, x, scales, attend, bias, max(last_blocks, 1))
        x = outputs[-1]
        if last_blocks:
            return jnp.stack(outputs, axis=1).astype(jnp.float32)
        if self.pool == "mean":
            if tokens:
                raise ValueError('a model of pool="mean" has no LayerNorm for single tokens; use pool="norm_mean"')
            x = jnp.mean(x[:, self.num_prefix :], axis=1, dtype=jnp.float32)
            return layer_norm(jnp.float32, "fc_norm")(x)
        if self.pool == "cls" and not tokens:
            return layer_norm(jnp.float32, "norm")(x[:, 0])
        x = layer_norm(jnp.float32, "norm")(x)
        return x if tokens else jnp.mean(x[:, self.num_prefix :], axis=1)

    def branch_scales(self, batch: int, axis_name: str | None) -> Float[Array, "batch depth 2"]:
        """Of stochastic depth (arXiv:1603.09382): what each image's branches of each block are multiplied by, 0 with
        that block's probability, else so much that the mean is 1."""
        # One key for each row of the global batch, so that the number of devices changes nothing.
        first = 0 if axis_name is None else lax.axis_index(axis_name) * batch
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), first + jnp.arange(batch))
        keep = 1.0 - self.drop_path * jnp.arange(self.depth) / max(self.depth - 1, 1)

        def draw(key, number):
            return jax.vmap(lambda key: jax.random.bernoulli(key, keep[number]))(
                jax.random.split(jax.random.fold_in(key, number))
            )

        kept = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(keys, jnp.arange(self.depth))
        return jnp.where(kept, 1.0 / keep[:, None], 0.0)

    def block_options(self, dtype: Any) -> dict[str, Any]:
        width = round(self.mlp_ratio * self.dim)
        return dict(heads=self.heads, mlp_width=width, mlp=self.mlp, layer_scale=self.layer_scale, dtype=dtype)

    def run_blocks(self, x, scales, attend, bias, count):
        """What the last `count` blocks give."""
        block = nn.remat(Block) if self.remat else Block
        outputs = []
        for i in range(self.depth):
            of_block = None if scales is None else scales[:, i]
            x = block(**self.block_options(x.dtype), name=f"blocks_{i}")(x, of_block, attend, bias)
            outputs.append(x)
        return tuple(outputs[-count:])

    def scan_blocks(self, x, scales, attend, bias, count):
        """`run_blocks` as one loop over the blocks' parameters, stacked."""
        of_blocks = [self.variables["params"][f"blocks_{i}"] for i in range(self.depth)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_blocks)
        block = Block(**self.block_options(x.dtype), parent=None)

        def step(x, of_block):
            params, scale = of_block
            x = block.apply({"params": params}, x, scale, attend, bias)
            return x, x if count > 1 else None

        # Within Flax's scan, of microbatches, `x` is not always known to differ between devices, as what comes out is.
        varying = set().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(stacked)))
        if missing := varying - jax.typeof(x).manual_axis_type.varying:
            x = lax.pcast(x, tuple(missing), to="varying")
        by_block = None if scales is None else scales.swapaxes(0, 1)
        step = jax.checkpoint(step, prevent_cse=False) if self.remat else step
        last, outputs = lax.scan(step, x, (stacked, by_block))
        return (last,) if count == 1 else tuple(outputs[-count:])

    def run_in_turn(self, x, scales, attend, bias, count):
        """The blocks on `microbatch` images after the other."""
        batch, size = len(x), self.microbatch
        if batch % size:
            raise ValueError(f"{batch} images a device do not divide into microbatches of {size}; use a divisor of it")
        shared = attend is None or len(attend) == 1  # by all images

        def step(self, _, chunk):
            x, scales, own = chunk
            run = self.scan_blocks if self.scan else self.run_blocks
            return None, run(x, scales, attend if shared else own, bias, count)

        chunks = jax.tree.map(
            lambda a: a.reshape(batch // size, size, *a.shape[1:]), (x, scales, None if shared else attend)
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
    """x + attention(norm(x)), then x + mlp(norm(x)); x [batch, tokens, dim].

    scales: [batch, 2], what the two branches are multiplied by, in training with drop_path; else None.
    attend: as `ViT` has it. bias: added to attention's logits, broadcast to [batch, heads, tokens, tokens].
    Of parameters of which each device has a part (see `split`) it gathers the rest.
    """

    heads: int
    mlp_width: int
    layer_scale: float
    dtype: Any
    mlp: str = "gelu"

    @nn.compact
    def __call__(self, x, scales=None, attend=None, bias=None):
        if has_parts(self.variables):
            return nn.map_variables(Block.branches, "params", whole)(self, x, scales, attend, bias)
        return self.branches(x, scales, attend, bias)

    def branches(self, x, scales, attend, bias):
        first, second = (None, None) if scales is None else scales[:, :, None, None].swapaxes(0, 1)
        y = layer_norm(self.dtype, "norm1")(x)
        y = Attention(self.heads, self.dtype, name="attn")(y, attend, bias)
        x = x + self.scale(y, "ls1", first)
        y = layer_norm(self.dtype, "norm2")(x)
        y = FeedForward(self.mlp_width, self.dtype, self.mlp, name="mlp")(y)
        return x + self.scale(y, "ls2", second)

    def scale(self, y, name, drop_path):
        if self.layer_scale != 0.0:
            y = LayerScale(self.layer_scale, name=name)(y)
        return y if drop_path is None else (y * drop_path).astype(y.dtype)


class LayerScale(nn.Module):
    start: float

    @nn.compact
    def __call__(self, y):
        gamma = self.param("gamma", nn.initializers.constant(self.start), y.shape[-1:], jnp.float32)
        return y * gamma.astype(y.dtype)


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
