"""Masked prediction of a frozen backbone's features: EVA and MILAN."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, INNER_SHARE, NOT_NEGATIVE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Batch, Output, Params, State, Traffic
from ssl_jax.methods.toolkit import drawing, masking, teachers, tiling
from ssl_jax.methods.toolkit.cross import CrossBlock
from ssl_jax.models import maps
from ssl_jax.models.blocks import layer_norm
from ssl_jax.models.dense import Dense
from ssl_jax.models.positions import patch_grid, sincos_positions


class PromptingDecoder(nn.Module):
    """The tokens that the encoder saw -> features of all patches.

    Each hidden patch begins as one and the same token; positions are fixed sines and cosines. In every block the hidden
    patches attend to the seen ones and to each other. The seen ones stay as the encoder made them.

    Source: Hou et al. 2022, arXiv:2208.06049, and the authors' code.
    """

    dim: int
    depth: int
    heads: int
    outputs: int
    grid: tuple[int, int]  # patches down, across
    prefix: int  # tokens before the patches

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch _ encoder_dim"],
        seen: Int[Array, "batch seen"],
        hidden: Int[Array, "batch hidden"],
    ) -> Float[Array, "batch patches outputs"]:
        """tokens: those before the patches, then those of the patches `seen`."""
        positions = sincos_positions(self.grid, self.dim)[0]
        x = Dense(self.dim, name="embed")(tokens)
        patches = x[:, self.prefix :] + positions[seen]
        context = jnp.concatenate([x[:, : self.prefix], patches], axis=1)
        y = self.param("mask_token", nn.initializers.normal(0.02), (self.dim,)) + positions[hidden]
        for i in range(self.depth):
            y = CrossBlock(self.heads, see_each_other=True, name=f"blocks_{i}")(y, context)
        back = jnp.argsort(jnp.concatenate([seen, hidden], axis=1), axis=1)
        whole = jnp.take_along_axis(jnp.concatenate([patches, y], axis=1), back[..., None], axis=1)
        return Dense(self.outputs, name="features")(layer_norm(jnp.float32, "norm")(whole))


@dataclasses.dataclass(frozen=True)
class FeatureTargets(teachers.Taught):
    """Predicts, from a part of an image's patches, the features that a frozen backbone has of the whole.

    As in EVA (`decoder_depth=0`), a token stands in for each hidden patch, and a linear layer predicts the teacher's
    features of the hidden patches. `config.mask` is of kind "block".

    As in MILAN (`decoder_depth` above 0), the encoder is given the patches that are seen alone, and a prompting decoder
    predicts the features of the others. With `by_attention`, patches are seen the more likely the more the teacher's
    class token attends to them, and there is no config.mask. With `of_all`, the patches that are seen count, too.

    The teacher sees the same view, distortions included, in evaluation mode. Its map of features is resized to the grid
    of patches. Its weights are a constant of the state: no checkpoint has them.

    Source: Fang et al. 2022, EVA, arXiv:2211.07636; Hou et al. 2022, MILAN, arXiv:2208.06049; and the authors' codes.
    Both predict CLIP's features after its projection to the space of texts, which backbones here do not have.
    """

    mask_ratio: Annotated[float, INNER_SHARE, "Share of each image's patches that is hidden; 0.75 in MILAN."] = 0.4
    by_attention: Annotated[bool, "Which patches are seen is drawn by the teacher's class attention."] = False
    of_all: Annotated[bool, "The loss is that of all patches, and not of the hidden ones alone."] = False
    decoder_depth: Annotated[
        int, NOT_NEGATIVE, "Blocks of the prompting decoder, 8 in MILAN. 0: none, and the encoder has mask tokens."
    ] = 0
    decoder_dim: Annotated[int, COUNT, "Width of the decoder."] = 512
    decoder_heads: Annotated[int, COUNT, "Attention heads of the decoder."] = 16

    views = ("view",)
    # chance_level: that of the best single vector, which the metric mean_loss shows.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_patches(self)
        model = self.frozen.model
        if not teachers.has_places(model):
            raise ValueError(f"the teacher, a {type(model).__name__}, has no features of places; use a ViT or a ResNet")
        if self.by_attention and not maps.has_class_attention(model):
            raise ValueError(
                f"by_attention=True needs a teacher with a class token, got a {type(model).__name__} without; use a "
                "ViT that has one, or by_attention=False and config.mask"
            )

    @property
    def masked(self) -> Sequence[str]:
        return () if self.by_attention else self.views

    @property
    def head(self) -> nn.Module:
        """Without a decoder."""
        return Dense(self.frozen.model.dim, kernel_init=drawing.beit_init)

    def decoder(self, images: Float[Array, "batch height width channels"]) -> PromptingDecoder:
        """For images of this size."""
        return PromptingDecoder(
            self.decoder_dim,
            self.decoder_depth,
            self.decoder_heads,
            outputs=self.frozen.model.dim,
            grid=self.grid(images),
            prefix=self.backbone.num_prefix,
        )

    def grid(self, images: Float[Array, "batch height width channels"]) -> tuple[int, int]:
        """Patches (down, across)."""
        return patch_grid((images.shape[1], images.shape[2]), self.backbone.patch_size)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng, 5)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        state = {"batch_stats": batch_stats, **self.constants}
        dim = self.backbone.dim
        if not self.decoder_depth:
            params["backbone"] = drawing.draw_beit(keys[1], params["backbone"])
            params["mask_token"] = drawing.beit_init(keys[2], (dim,))
            params["head"] = self.head.init(keys[3], jnp.zeros((1, dim)))["params"]
            return params, state
        params["backbone"] = drawing.draw_xavier(keys[1], params["backbone"], split_qkv=False)
        decoder, places = self.decoder(images), jnp.arange(2)[:, None, None]
        tokens = jnp.zeros((1, decoder.prefix + 1, dim))
        drawn = decoder.init(keys[2], tokens, places[0], places[1])["params"]
        params["decoder"] = drawing.draw_xavier(keys[3], drawn, split_qkv=False)
        return params, state

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        rng_mask, rng_drop = jax.random.split(rng)
        target = self.targets(state, images)
        mask = self.mask(rng_mask, state, batch)
        prediction, patches = self.predict(params, images, mask, rng_drop, axis_name)
        counts = jnp.ones_like(mask) if self.of_all else mask
        loss = losses.masked_cosine(prediction, target, counts, axis_name=axis_name)
        mean = jnp.broadcast_to(jnp.mean(ops.normalize(target), axis=(0, 1)), target.shape)
        mean_loss = losses.masked_cosine(mean, target, counts, axis_name=axis_name)
        return Output(loss, state, {"mean_loss": mean_loss}, embeddings=jnp.mean(patches, axis=1)[None])

    def targets(
        self, state: State, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches features"]:
        """The teacher's features of each patch, without gradient."""
        model, seen = self.frozen.model, self.frozen.sees(images, self.teacher_size)
        found: Any = model.apply(state["teacher"], seen, method=maps.method_of_both(model))
        _, places = maps.both(model, jax.lax.stop_gradient(found), seen)
        places = teachers.resized(places, (len(images), *self.grid(images), model.dim))
        return places.reshape(len(images), -1, model.dim)

    def mask(self, rng: Key[Array, ""], state: State, batch: Batch) -> Bool[Array, "batch patches"]:
        """True where a patch is hidden."""
        if not self.by_attention:
            return batch["masks"][0]
        (images,) = batch["views"]
        seen = self.frozen.sees(images, self.teacher_size)
        attention = maps.class_attention(self.frozen.model, state["teacher"], seen)
        weights = jnp.mean(attention, axis=1)[..., None]
        weights = teachers.resized(weights, (len(images), *self.grid(images), 1)).reshape(len(images), -1)
        return draw_hidden(rng, batch["index"], jax.lax.stop_gradient(weights), self.mask_ratio)

    def predict(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch patches"],
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch patches features"], Float[Array, "batch _ dim"]]:
        """(features of all patches, the encoder's tokens of its patches)"""
        if not self.decoder_depth:
            patches = masking.encode_masked(self.backbone, params, images, mask, axis_name=axis_name, rng=rng)
            prediction: Any = self.head.apply({"params": params["head"]}, patches)
            return prediction, patches
        seen = masking.unmasked(mask, self.mask_ratio)
        hidden = masking.unmasked(~mask, seen.shape[1] / mask.shape[1])
        tokens, _ = toolkit.train_apply(
            self.backbone, params["backbone"], {}, images, axis_name=axis_name, rng=rng, method="tokens", keep=seen
        )
        prediction = self.decoder(images).apply({"params": params["decoder"]}, tokens, seen, hidden)
        return prediction, tokens[:, self.backbone.num_prefix :]

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        """What the network saw of each image."""
        (images,) = batch["views"]
        mask = self.mask(jax.random.split(rng)[0], state, batch)
        return masking.pictures(images, mask, self.backbone.patch_size)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic()


def draw_hidden(
    rng: Key[Array, ""], index: ops.Index, weights: Float[Array, "batch patches"], ratio: float
) -> Bool[Array, "batch patches"]:
    """True for the share `ratio` of each image's patches: those that are not drawn to be seen.

    The seen ones are drawn one after the other without replacement, each in proportion to its weight, >= 0: they have
    the largest log(weight) plus Gumbel noise (Yellott 1977).
    """
    patches = weights.shape[1]
    noise = -jnp.log(-jnp.log(tiling.uniform(rng, index, (patches,))))
    rank = jnp.argsort(jnp.argsort(-(jnp.log(weights) + noise), axis=1), axis=1)
    return rank >= patches - masking.count_masked(patches, ratio)
