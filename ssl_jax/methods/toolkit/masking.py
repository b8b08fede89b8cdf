"""The tokens of a ViT, for methods that mask patches."""

# pyright: reportUnknownMemberType=false

import math
from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Params, Variables
from ssl_jax.models.abilities import has_masked_map, has_tokens, sizes_together
from ssl_jax.models.patches import patchify, unpatchify
from ssl_jax.ops.shards import has_shards


def check_vit(method: Base, *, class_token: bool = True) -> None:
    """Refuses a backbone without patch tokens, or with another class token or pooling than the method needs.

    class_token: True for a method that needs a class token, False for one that must not have any.

    Raises: ValueError that says what to use.
    """
    backbone = method.backbone
    if not has_tokens(backbone):
        raise ValueError(
            f"this method masks patches, which a {type(backbone).__name__} does not have; use a ViT, "
            "such as model.name=vit_small_patch16_224"
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


def check_patches(method: Base) -> None:
    """Refuses a backbone without patch tokens, or with another pooling than the mean of the patches.

    For methods whose loss does not see the class token. Their authors fine-tune on the mean of the patches.

    Raises: ValueError that says what to use.
    """
    check_vit(method, class_token=method.backbone.class_token if has_tokens(method.backbone) else True)
    if method.backbone.pool != "norm_mean":
        raise ValueError(
            "this method trains the patches alone: its features are their mean after the last LayerNorm, not the class "
            f'token; use model.pool="norm_mean", got {method.backbone.pool!r}'
        )


def unmasked(mask: Bool[Array, "batch patches"], ratio: float) -> Int[Array, "batch kept"]:
    """The indices of the patches that are not masked, in rising order.

    ratio: the share that is masked in every image. It says how many patches are kept, which a compiled step must know
      beforehand. It is the method's `mask_ratio`, and config.mask.ratio must agree with it (see augmenting.masks).
    """
    patches = mask.shape[1]
    return jnp.argsort(mask, axis=1, stable=True)[:, : patches - count_masked(patches, ratio)]


def some_masked(
    mask: Bool[Array, "batch patches"], count: int, noise: Float[Array, "batch patches"]
) -> Int[Array, "batch count"]:
    """The indices of `count` masked patches, those of least noise. noise: below 1."""
    return jnp.argsort(jnp.where(mask, noise, 1.0), axis=1)[:, :count]


def count_masked(patches: int, ratio: float) -> int:
    """How many of an image's patches are masked, as data/masks.py counts them."""
    return int(np.round(np.float32(patches) * np.float32(ratio)))


def encode_masked(
    backbone: nn.Module,
    params: Params,
    images: Float[Array, "batch _ _ channels"],
    mask: Bool[Array, "batch patches"],
    *,
    axis_name: str | None,
    rng: Key[Array, ""] | None,
) -> Float[Array, "batch patches dim"]:
    """The patches of one view through params["backbone"], in training mode; of a masked map, its places row by row.

    Where the mask is True, params["mask_token"] stands in for the patch.
    """
    token = params["mask_token"]
    if has_masked_map(backbone):
        found, _ = toolkit.train_apply(
            backbone,
            params["backbone"],
            {},
            images,
            axis_name=axis_name,
            rng=rng,
            method="masked_map",
            mask=mask,
            mask_token=token,
        )
        return found.reshape(*mask.shape, -1)
    _, (patches,) = encode(
        backbone, params["backbone"], [images], masks=[mask], mask_token=token, axis_name=axis_name, rng=rng
    )
    return patches


def mean_of_blocks(
    backbone: nn.Module,
    variables: Variables,
    images: Float[Array, "batch height width channels"],
    blocks: int,
    *,
    over: str,
) -> Float[Array, "batch patches dim"]:
    """data2vec's targets: the mean of the outputs of a teacher's last blocks, in evaluation mode, without gradient.

    Each block's output is first normalized, without scale and offset: `over` "entries", each patch by its own mean and
    deviation, or "patches", each entry by those over the image's patches. The mean is normalized over the entries.
    """
    outputs: Any = backbone.apply(variables, images, last_blocks=blocks)
    axis = {"entries": -1, "patches": -2}[over]
    outputs = jax.nn.standardize(outputs[:, :, backbone.num_prefix :], axis=axis, epsilon=1e-5)
    return lax.stop_gradient(jax.nn.standardize(jnp.mean(outputs, axis=1), axis=-1, epsilon=1e-5))


def moments(
    patches: Float[Array, "batch patches pixels"],
) -> tuple[Float[Array, "batch patches 1"], Float[Array, "batch patches 1"]]:
    """(mean, deviation) of each patch's pixels. `losses.masked_pixels` normalizes by them."""
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return jnp.mean(patches, axis=-1, keepdims=True), jnp.sqrt(variance + 1e-6)


def pictures(
    images: Float[Array, "batch height width channels"],
    mask: Bool[Array, "batch patches"],
    patch_size: int,
    prediction: Float[Array, "batch patches pixels"] | None = None,
) -> dict[str, Float[Array, "batch height width channels"]]:
    """For the report: the image, what the network saw of it, and the image with the hidden patches as predicted."""
    patches = patchify(images, patch_size)
    _, height, width, _ = images.shape

    def fill(hidden: float | Float[Array, "batch patches pixels"]) -> Float[Array, "batch height width channels"]:
        return unpatchify(jnp.where(mask[..., None], hidden, patches), (height, width), patch_size)

    made = {"image": images, "seen": fill(0.0)}
    return made if prediction is None else {**made, "reconstruction": fill(prediction)}


def encode(
    backbone: nn.Module,
    params: Params,
    views: Sequence[Float[Array, "batch _ _ channels"]],
    *,
    masks: Sequence[Bool[Array, "batch patches"]] | None = None,
    mask_token: Float[Array, " dim"] | None = None,
    keep: Sequence[Int[Array, "batch kept"]] | None = None,
    axis_name: str | None,
    rng: Key[Array, ""] | None = None,
    **options: Any,
) -> tuple[Float[Array, "views batch dim"], Float[Array, "views batch _ dim"]]:
    """Views of one size through a ViT in training mode -> (class tokens, patches). The views pass as one batch.

    params: of the ViT. masks, keep: one for each view. masks, mask_token, keep and options are as the ViT takes them.
    """

    tokens, _ = toolkit.train_apply(
        backbone,
        params,
        {},
        _rows(views),
        axis_name=axis_name,
        rng=rng,
        method="tokens",
        mask=None if masks is None else _rows(masks),
        mask_token=mask_token,
        keep=None if keep is None else _rows(keep),
        **options,
    )
    return _views_apart(tokens, len(views), backbone.num_prefix)


def encode_sizes(
    backbone: nn.Module,
    params: Params,
    sizes: Sequence[Sequence[Float[Array, "batch _ _ channels"]]],
    *,
    masks: Sequence[Bool[Array, "batch patches"]],
    mask_token: Float[Array, " dim"],
    axis_name: str | None,
    rngs: Sequence[Key[Array, ""]],
    later_norm: Params | None = None,
) -> list[tuple[Float[Array, "views batch dim"], Float[Array, "views batch _ dim"]]]:
    """`encode` of the views of each size, of which the first have masks.

    later_norm: `prefix_norm` of the ViT for views of all sizes but the first; None: the ViT's own norm.
    If the backbone can, and its blocks are shards, the sizes pass the blocks together: then each block is gathered once
    for all of them. Otherwise one size passes after the other, which needs less memory. Results are the same.
    """
    of_sizes = [masks, *[None] * (len(sizes) - 1)]
    later: dict[str, Any] = {} if later_norm is None else {"prefix_norm": later_norm}
    options = [{}, *[later] * (len(sizes) - 1)]
    if len(sizes) == 1 or not (sizes_together(backbone) and has_shards(params)):
        return [
            encode(
                backbone,
                params,
                views,
                masks=masks,
                mask_token=mask_token,
                axis_name=axis_name,
                rng=rng,
                **of_size,
            )
            for views, masks, rng, of_size in zip(sizes, of_sizes, rngs, options, strict=True)
        ]
    found, _ = toolkit.train_apply(
        backbone,
        params,
        {},
        tuple(_rows(views) for views in sizes),
        axis_name=axis_name,
        rng=rngs,
        method="tokens",
        mask=tuple(None if masks is None else _rows(masks) for masks in of_sizes),
        mask_token=mask_token,
        **({} if later_norm is None else {"prefix_norm": (None, *[later_norm] * (len(sizes) - 1))}),
    )
    return [_views_apart(tokens, len(views), backbone.num_prefix) for tokens, views in zip(found, sizes, strict=True)]


def shrunk(images: Float[Array, "batch height width channels"], times: float) -> Float[Array, "batch _ _ channels"]:
    """Images whose sides are divided by `times`, bicubic, antialiased.

    Raises: ValueError if sides would not be whole.
    """
    if times == 1:
        return images
    batch, height, width, channels = images.shape
    shape = (batch, *divided(height, width, times=times), channels)
    return cast(Array, jax.image.resize(images, shape, "bicubic", precision=lax.Precision.HIGHEST))


def resized(
    patches: Float[Array, "batch patches dim"], grid: tuple[int, int], times: float
) -> Float[Array, "batch _ dim"]:
    """Features of a grid (rows, columns) of patches, as those of one whose sides are divided by `times`.

    Bicubic, without antialiasing: each new feature is interpolated from its 16 neighbors.

    Raises: ValueError if sides would not be whole.
    """
    if times == 1:
        return patches
    batch, _, dim = patches.shape
    rows, columns = grid
    shape = (batch, *divided(rows, columns, times=times), dim)
    x = patches.reshape(batch, rows, columns, dim)
    small = cast(Array, jax.image.resize(x, shape, "bicubic", antialias=False, precision=lax.Precision.HIGHEST))
    return small.reshape(batch, -1, dim)


def divided(*sides: int, times: float) -> tuple[int, ...]:
    """Sides divided by `times`. Raises: ValueError if they would not be whole."""
    found = tuple(round(side / times) for side in sides)
    if not all(math.isclose(times * side, old) for side, old in zip(found, sides, strict=True)):
        raise ValueError(f"sides {sides} do not become whole when divided by {times:g}; use multiples of it")
    return found


def _rows(x: Sequence[Shaped[Array, "batch ..."]]) -> Shaped[Array, "rows ..."]:
    # An image's views lie side by side. Then the rows of all devices are those of one device, in its order, which
    # drop_path depends on.
    return jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:])


def _views_apart(
    tokens: Float[Array, "rows tokens dim"], views: int, prefix: int
) -> tuple[Float[Array, "views batch dim"], Float[Array, "views batch _ dim"]]:
    """(class tokens, patches) of rows in which the views of an image lie side by side."""
    tokens = tokens.reshape(-1, views, *tokens.shape[1:]).swapaxes(0, 1)
    return tokens[:, :, 0], tokens[:, :, prefix:]
