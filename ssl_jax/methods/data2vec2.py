"""data2vec 2.0, for images."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses, ops, optim
from ssl_jax.keys import COUNT, INNER_SHARE, NOT_NEGATIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import masking, tiling
from ssl_jax.models.conv import Conv
from ssl_jax.models.dense import Dense
from ssl_jax.models.heads import torch_bias_init, torch_init
from ssl_jax.models.positions import patch_grid
from ssl_jax.ops import gelu


class ConvLayers(nn.Module):
    """A grid of tokens [batch, rows, columns, dim] -> the same shape: 3x3 convolutions in groups, then a linear layer.

    Each convolution is followed by a LayerNorm without scale and offset, a GELU, and the sum with its input, where
    that has as many channels.
    """

    dim: int
    depth: int
    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch rows columns dim"]) -> Float[Array, "batch rows columns dim"]:
        outputs = x.shape[-1]
        for i in range(self.depth):
            fan_in = 9 * x.shape[-1] // self.groups
            y = Conv(
                self.dim,
                (3, 3),
                padding=1,
                feature_group_count=self.groups,
                kernel_init=torch_init,
                bias_init=torch_bias_init(fan_in),
                name=f"conv_{i}",
            )(x)
            y = gelu(jax.nn.standardize(y, axis=-1, epsilon=1e-5))
            x = x + y if x.shape == y.shape else y
        bias = torch_bias_init(self.dim)
        return Dense(outputs, kernel_init=torch_init, bias_init=bias, name="proj")(x)


@dataclasses.dataclass(frozen=True)
class Data2Vec2(Base):
    """data2vec with several masks for each pass of the teacher, and a student that sees visible patches alone.

    A target is the mean of the outputs of the teacher's last `target_blocks` blocks. In each image, each entry of a
    block's output is first normalized over the patches; the mean is normalized by each patch's own mean and deviation.
    One pass of the teacher serves `masks` passes of the student, each with another mask. The student's tokens go to
    their places in the grid, noise to the others, and a few convolutions predict the targets. The class token predicts
    the mean of the image's targets. The loss is sqrt(dim) * (the squared error of the hidden patches + `class_weight` *
    that of the class token).

    Masks are inverse: squares of `mask_block` patches a side are what stays visible. Their number covers a share of 1 -
    mask_ratio + `mask_adjust`, if they do not overlap; random patches then are hidden, or shown, until a share of
    mask_ratio is hidden. The method draws them itself.

    Give the ViT fixed positions and the features that the authors fine-tune: model.positions="sincos",
    pool="norm_mean". The student's backbone is kept.

    Source: Baevski et al. 2022, arXiv:2212.07525, section 3, and the authors' code (fairseq, examples/data2vec). Their
      blocks normalize after each branch, and their targets are the outputs of the MLPs; here blocks are those of all
      ViTs, normalized before each branch, and targets are the blocks' outputs.
    """

    backbone: nn.Module
    schedule: Schedule
    masks: Annotated[int, COUNT, "Masks of each image in a step."] = 16
    mask_ratio: Annotated[float, INNER_SHARE, "Share of each image's patches that the student does not see."] = 0.8
    mask_adjust: Annotated[
        float, SHARE, "Share of the patches by which the visible squares are more, since squares overlap."
    ] = 0.07
    mask_block: Annotated[int, COUNT, "Side of a visible square, in patches."] = 3
    target_blocks: Annotated[int, COUNT, "The teacher's last blocks whose mean is the target."] = 10
    decoder_dim: Annotated[int, COUNT, "Channels of the decoder's convolutions."] = 768
    decoder_depth: Annotated[int, COUNT, "Convolutions of the decoder."] = 6
    decoder_groups: Annotated[int, COUNT, "Groups of each convolution."] = 16
    noise: Annotated[float, NOT_NEGATIVE, "Deviation of the noise that stands in for hidden patches."] = 0.01
    class_weight: Annotated[
        float,
        NOT_NEGATIVE,
        "Weight of the class token's error. The authors' cls_loss=0.01 multiplies a sum over the 16 x 16 images and",
        "masks of a device: 2.56 times the mean.",
    ] = 2.56
    decay: Annotated[float, SHARE, "The teacher's decay at the start."] = 0.9998
    final_decay: Annotated[float, SHARE, "The teacher's decay after `decay_steps`, and from then on."] = 0.99999
    decay_steps: Annotated[
        int, NOT_NEGATIVE, "Steps in which the decay goes in a straight line from `decay` to `final_decay`."
    ] = 100_000

    views = ("view",)

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self)
        if self.target_blocks > self.backbone.depth:
            raise ValueError(f"target_blocks must be in 1..model.depth={self.backbone.depth}, got {self.target_blocks}")
        for name, width in (("decoder_dim", self.decoder_dim), ("model.dim", self.backbone.dim)):
            if width % self.decoder_groups:
                raise ValueError(f"decoder_groups={self.decoder_groups} must divide {name}={width}")

    @property
    def decoder(self) -> ConvLayers:
        return ConvLayers(self.decoder_dim, self.decoder_depth, self.decoder_groups)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng, 4)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        backbone = dict(params["backbone"])
        embed = backbone["patch_embed"]["proj"]
        flat = nn.initializers.xavier_uniform()(keys[1], (embed["kernel"].size // self.backbone.dim, self.backbone.dim))
        backbone["patch_embed"] = {"proj": {**embed, "kernel": flat.reshape(embed["kernel"].shape)}}
        backbone["cls_token"] = jax.random.normal(keys[2], backbone["cls_token"].shape)
        params["backbone"] = backbone
        teacher = toolkit.make_teacher({"backbone": self.backbone}, params, batch_stats)
        grid = self.grid(images)
        params["decoder"] = self.decoder.init(keys[3], jnp.zeros((1, *grid, self.backbone.dim)))["params"]
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def grid(self, images: Float[Array, "batch height width channels"]) -> tuple[int, int]:
        """Patches (down, across) of images of this size."""
        _, height, width, _ = images.shape
        return patch_grid((height, width), self.backbone.patch_size)

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        prediction, of_class, hidden = self.predict(params, images, batch["index"], rng, axis_name)
        target = self.targets(state["teacher"], images)
        # The masks of an image lie side by side.
        wanted, mean = (jnp.repeat(x, self.masks, axis=0) for x in (target, jnp.mean(target, axis=1)))
        of_patches = losses.masked_pixels(prediction, wanted, hidden, normalize=False, axis_name=axis_name)
        every = jnp.ones((len(mean), 1), bool)
        of_token = losses.masked_pixels(of_class[:, None], mean[:, None], every, normalize=False, axis_name=axis_name)
        loss = self.backbone.dim**0.5 * (of_patches + self.class_weight * of_token)
        metrics = {
            "patch_error": of_patches,
            "class_error": of_token,
            # The variance of each entry over the images and patches. Towards 0 the teacher has collapsed.
            "target_variance": jnp.mean(jnp.var(target, axis=(0, 1))),
        }
        return Output(loss, state, metrics, embeddings=of_class[:: self.masks][None])

    def predict(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        index: ops.Index,
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[Float[Array, "rows patches dim"], Float[Array, "rows dim"], Bool[Array, "rows patches"]]:
        """(predictions of all patches, class tokens, which patches were hidden), each image's masks side by side."""
        rng_mask, rng_noise, rng_backbone = jax.random.split(rng, 3)
        grid = self.grid(images)
        keep = self.draw_visible(rng_mask, index, grid)
        keep = keep.reshape(-1, keep.shape[-1])
        tokens, _ = toolkit.train_apply(
            self.backbone,
            params["backbone"],
            {},
            jnp.repeat(images, self.masks, axis=0),
            axis_name=axis_name,
            rng=rng_backbone,
            method="tokens",
            keep=keep,
        )
        shape = (self.masks, grid[0] * grid[1], self.backbone.dim)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(tiling.image_keys(rng_noise, index))
        noise = self.noise * noise.reshape(-1, *shape[1:])
        rows = jnp.arange(len(keep))[:, None]
        filled = noise.at[rows, keep].set(tokens[:, self.backbone.num_prefix :])
        hidden = jnp.ones(filled.shape[:2], bool).at[rows, keep].set(False)
        found: Any = self.decoder.apply({"params": params["decoder"]}, filled.reshape(-1, *grid, self.backbone.dim))
        return found.reshape(filled.shape), tokens[:, 0], hidden

    def draw_visible(
        self, rng: Key[Array, ""], index: ops.Index, grid: tuple[int, int]
    ) -> Int[Array, "batch masks visible"]:
        """The indices of the patches that each mask leaves visible."""
        patches = grid[0] * grid[1]
        share = 1.0 - self.mask_ratio
        squares = max(int(patches * (share + self.mask_adjust) / self.mask_block**2), 1)
        rng_places, rng_rest = jax.random.split(rng)
        middles = jnp.floor(patches * tiling.uniform(rng_places, index, (self.masks, squares)))
        inside = in_squares(middles, grid, self.mask_block)
        noise = tiling.uniform(rng_rest, index, (self.masks, patches))
        # Patches in squares come first, so that only as many as are missing are added to them.
        order = jnp.argsort(jnp.where(inside, noise, 1.0 + noise), axis=-1)
        return order[..., : max(int(patches * share), 1)]

    def targets(
        self, teacher: toolkit.Variables, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches dim"]:
        """Without gradient."""
        variables = {"params": teacher["params"]["backbone"]}
        return masking.mean_of_blocks(self.backbone, variables, images, self.target_blocks, over="patches")

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        """What the first two masks leave visible."""
        (images,) = batch["views"]
        keep = self.draw_visible(jax.random.split(rng, 3)[0], batch["index"], self.grid(images))
        rows = jnp.arange(len(images))[:, None]

        def seen(number: int) -> Float[Array, "batch height width channels"]:
            patches = self.grid(images)[0] * self.grid(images)[1]
            hidden = jnp.ones((len(images), patches), bool).at[rows, keep[:, number]].set(False)
            return masking.pictures(images, hidden, self.backbone.patch_size)["seen"]

        return {"image": images, **{f"mask {i + 1}": seen(i) for i in range(min(self.masks, 2))}}

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.linear(self.decay, self.final_decay, step, self.decay_steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic()


def in_squares(
    middles: Float[Array, "batch masks squares"], grid: tuple[int, int], side: int
) -> Bool[Array, "batch masks patches"]:
    """True for patches in a square of `side` patches around one of the `middles`, numbers of patches row by row."""
    numbers = jnp.arange(grid[0] * grid[1])
    down, across = (
        places[:, None] - of_middles[..., None, :]
        for places, of_middles in zip(
            jnp.divmod(numbers, grid[1]), (jnp.floor(middles / grid[1]), middles % grid[1]), strict=True
        )
    )
    within = [(offset >= -(side // 2)) & (offset < side - side // 2) for offset in (down, across)]
    return jnp.any(within[0] & within[1], axis=-1)
