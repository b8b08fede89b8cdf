"""Convolutional networks that see some squares of an image, for methods that predict the pixels of the others."""

# pyright: reportUnknownMemberType=false

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, State
from ssl_jax.methods.toolkit import autoencoding
from ssl_jax.models.abilities import has_stage_maps
from ssl_jax.models.patches import patchify

Maps = tuple[Float[Array, "batch _ _ _"], ...]


def check_stage_maps(method: Base) -> None:
    """Raises: ValueError for a backbone that cannot leave out hidden squares."""
    if not has_stage_maps(method.backbone):
        raise ValueError(
            f"this method hides squares from a convolutional network, which a {type(method.backbone).__name__} cannot "
            "do; use a ConvNeXt or a ResNet, such as model.name=convnextv2_atto, and mae or simmim for transformers"
        )


def init_maps(
    backbone: nn.Module, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]
) -> tuple[dict[str, Any], dict[str, Any], Maps]:
    """(params, batch_stats, stage maps of the images), as `toolkit.init_map` gives them with a feature map."""
    params, batch_stats = toolkit.init({"backbone": backbone}, rng, images)
    variables = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
    maps: Any = backbone.apply(variables, images, method="stage_maps")
    return params, batch_stats, maps


def encode(
    backbone: nn.Module,
    params: Params,
    batch_stats: State,
    images: Float[Array, "batch height width channels"],
    mask: Bool[Array, "batch places"],
    *,
    axis_name: str | None,
    rng: Key[Array, ""] | None,
) -> tuple[Maps, dict[str, Any]]:
    """The stage maps of what is visible, in training mode -> (maps, batch_stats with the backbone's new ones).

    params, batch_stats: by the networks' names, of which this reads "backbone". mask: True where a square is hidden.
    """
    maps, new = toolkit.train_apply(
        backbone,
        params["backbone"],
        batch_stats["backbone"],
        images,
        axis_name=axis_name,
        rng=rng,
        method="stage_maps",
        mask=mask,
    )
    return maps, {**batch_stats, "backbone": new}


def mean(x: Float[Array, "batch rows columns dim"], mask: Bool[Array, "batch places"]) -> Float[Array, "batch dim"]:
    """Each image's mean over the visible places of its last stage map, which is 0 at the others."""
    visible = jnp.maximum(jnp.sum(~mask, axis=1, dtype=jnp.float32), 1.0)
    return jnp.sum(x.astype(jnp.float32), axis=(1, 2)) / visible[:, None]


class SquarePredictor(Base):
    """The loss and the pictures of a method that predicts the pixels of hidden squares.

    It has a `predict`, and `normalize`: whether pixels are predicted relative to their square's mean and deviation.
    """

    normalize: bool = True

    def predict(
        self,
        params: Params,
        state: State,
        images: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch places"],
        rng: Key[Array, ""] | None,
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch places pixels"], Float[Array, "batch rows columns dim"], dict[str, Any]]:
        """(pixels of all squares, the last stage's map, batch_stats)"""
        raise NotImplementedError

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,), (mask,) = batch["views"], batch["masks"]
        prediction, last, batch_stats = self.predict(params, state, images, mask, rng, axis_name)
        loss, of_means = autoencoding.pixel_loss(
            prediction, patchify(images, self.backbone.stride), mask, normalize=self.normalize, axis_name=axis_name
        )
        embeddings = mean(last, mask)[None]
        return Output(loss, {"batch_stats": batch_stats}, {"square_mean_loss": of_means}, embeddings=embeddings)

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        (images,), (mask,) = batch["views"], batch["masks"]
        prediction, *_ = self.predict(params, state, images, mask, rng, None)
        return autoencoding.reconstructions(images, mask, self.backbone.stride, prediction, normalize=self.normalize)
