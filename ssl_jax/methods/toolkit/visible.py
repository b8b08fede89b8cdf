"""Convolutional networks that see some squares of an image, for methods that predict the pixels of the others."""

# pyright: reportUnknownMemberType=false

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from ssl_jax import losses
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Params, State
from ssl_jax.methods.toolkit import masking
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


def pixel_losses(
    prediction: Float[Array, "batch places pixels"],
    images: Float[Array, "batch height width channels"],
    mask: Bool[Array, "batch places"],
    *,
    side: int,
    normalize: bool,
    axis_name: str | None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(`losses.masked_pixels` of the hidden squares; that of a prediction of each square's own mean).

    side: pixels a side of a square.
    """
    target = patchify(images, side)
    own = jnp.zeros_like(target) if normalize else jnp.mean(target, axis=-1, keepdims=True) + jnp.zeros_like(target)
    loss, of_means = (
        losses.masked_pixels(found, target, mask, normalize=normalize, axis_name=axis_name)
        for found in (prediction, own)
    )
    return loss, of_means


def pictures(
    images: Float[Array, "batch height width channels"],
    mask: Bool[Array, "batch places"],
    prediction: Float[Array, "batch places pixels"],
    *,
    side: int,
    normalize: bool,
) -> dict[str, Float[Array, "batch height width channels"]]:
    """`masking.pictures`. normalize: whether the prediction is relative to each square's mean and deviation."""
    if normalize:
        center, deviation = masking.moments(patchify(images, side))
        prediction = prediction * deviation + center
    return masking.pictures(images, mask, side, prediction)
