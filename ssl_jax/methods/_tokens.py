"""The tokens of a ViT, for methods that mask patches."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax.methods import _common
from ssl_jax.models.patches import patchify, unpatchify
from ssl_jax.models.vit import ViT


def check_vit(method: Any, *, class_token: bool = True) -> None:
    """Raises: ValueError for a backbone without patch tokens, or without a class token; with class_token=False, for one
    that has a class token."""
    backbone = method.backbone
    if not isinstance(backbone, ViT):
        raise ValueError(
            f"this method masks patches, which a {type(backbone).__name__} has not; "
            "use a vision transformer, as model.name=vit_small_patch16_224"
        )
    if not class_token:
        if backbone.class_token or backbone.pool == "mean":
            raise ValueError(
                "this method takes the patches after the last LayerNorm, and no class token; use "
                f'model.class_token=False and model.pool="norm_mean", got {backbone.class_token}, {backbone.pool!r}'
            )
    elif not backbone.class_token or backbone.pool == "mean":
        raise ValueError(
            "this method takes the class token and the patches after the last LayerNorm; leave model.class_token=True "
            f'and model.pool="cls", got {backbone.class_token}, {backbone.pool!r}'
        )


def check_patches(method: Any) -> None:
    """Raises: ValueError for a backbone without patch tokens, or one that is pooled otherwise than by their mean.

    Of these methods no loss sees the class token, and the authors fine-tune on the mean of the patches.
    """
    check_vit(method, class_token=method.backbone.class_token if isinstance(method.backbone, ViT) else True)
    if method.backbone.pool != "norm_mean":
        raise ValueError(
            "this method trains the patches alone: its features are their mean after the last LayerNorm, not the class "
            f'token; use model.pool="norm_mean", got {method.backbone.pool!r}'
        )


def unmasked(mask: Bool[Array, "batch patches"], ratio: float) -> Int[Array, "batch kept"]:
    """The patches that are not masked, in their order; their number must be known beforehand.

    ratio: the share that is masked in every image: the method's `mask_ratio`, which config.mask.ratio has to agree
    with (see build.masks).
    """
    patches = mask.shape[1]
    masked = int(np.round(np.float32(patches) * np.float32(ratio)))  # as data/masks.py counts
    return jnp.argsort(mask, axis=1, stable=True)[:, : patches - masked]


def encode_masked(
    backbone: nn.Module,
    params: Any,
    images: Float[Array, "batch _ _ channels"],
    mask: Bool[Array, "batch patches"],
    *,
    axis_name: str | None,
    rng: Key[Array, ""] | None,
) -> Float[Array, "batch patches dim"]:
    """One view's patches, some hidden behind params["mask_token"], through params["backbone"], in training mode."""
    token = params["mask_token"]
    _, (patches,) = encode(
        backbone, params["backbone"], [images], masks=[mask], mask_token=token, axis_name=axis_name, rng=rng
    )
    return patches


def moments(
    patches: Float[Array, "batch patches pixels"],
) -> tuple[Float[Array, "batch patches 1"], Float[Array, "batch patches 1"]]:
    """(mean, deviation) of each patch's pixels, by which `losses.masked_pixels` normalizes them."""
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return jnp.mean(patches, axis=-1, keepdims=True), jnp.sqrt(variance + 1e-6)


def pictures(
    images: Float[Array, "batch height width channels"],
    mask: Bool[Array, "batch patches"],
    patch_size: int,
    prediction: Float[Array, "batch patches pixels"] | None = None,
) -> dict[str, Float[Array, "batch height width channels"]]:
    """For the report: the images, what was seen of them, and with the predicted pixels in place of what was not."""
    patches = patchify(images, patch_size)

    def fill(hidden):
        return unpatchify(jnp.where(mask[..., None], hidden, patches), images.shape[1:3], patch_size)

    made = {"image": images, "seen": fill(0.0)}
    return made if prediction is None else {**made, "reconstruction": fill(prediction)}


def encode(
    backbone: nn.Module,
    params: Any,
    views: Sequence[Float[Array, "batch _ _ channels"]],
    *,
    masks: Sequence[Bool[Array, "batch patches"]] | None = None,
    mask_token: Float[Array, " dim"] | None = None,
    keep: Sequence[Int[Array, "batch kept"]] | None = None,
    axis_name: str | None,
    rng: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "views batch dim"], Float[Array, "views batch patches dim"]]:
    """Views of one size through a ViT, as one batch, in training mode -> (class tokens, patches).

    masks, mask_token, keep: as the ViT takes them, for each view.
    """

    def rows(x):
        # An image's views side by side, so that the rows of all devices are those of one, in order, for drop_path.
        return jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:])

    tokens, _ = _common.train_apply(
        backbone,
        params,
        {},
        rows(views),
        axis_name=axis_name,
        rng=rng,
        tokens=True,
        mask=None if masks is None else rows(masks),
        mask_token=mask_token,
        keep=None if keep is None else rows(keep),
    )
    tokens = tokens.reshape(-1, len(views), *tokens.shape[1:]).swapaxes(0, 1)
    return tokens[:, :, 0], tokens[:, :, backbone.num_prefix :]
