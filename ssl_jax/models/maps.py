"""A backbone's outputs besides its pooled features: those of each patch, of its last blocks, and class attention.

The functions are jitted and run the backbone in evaluation mode; `module` is static.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax.models._options import check_choice
from ssl_jax.models.abilities import has_feature_map, has_features_and_map, has_tokens
from ssl_jax.models.blocks import make_norm
from ssl_jax.models.positions import patch_grid
from ssl_jax.models.vit import ViT

BLOCK_POOLS = ("cls", "mean", "cls_and_mean")


def has_patch_map(module: nn.Module) -> bool:
    """Whether `patch_map` takes it."""
    if has_tokens(module):
        return module.pool != "mean"
    return has_feature_map(module)


def has_class_attention(module: nn.Module) -> bool:
    """Whether `class_attention` takes it."""
    return isinstance(module, ViT) and module.class_token


@functools.partial(jax.jit, static_argnames="module")
def patch_map(
    module: nn.Module, variables: Mapping[str, Any], images: Float[Array, "batch height width channels"]
) -> Float[Array, "batch rows columns dim"]:
    """Features of each place: a ViT's patches, or the map of a convolutional network's last stage.

    They come after the last LayerNorm, if there is one.

    Raises: ValueError for a ViT of pool="mean", whose LayerNorm is for the mean only, and for a module without a map.
    """
    if has_tokens(module):
        tokens: Any = module.apply(variables, images, method="tokens")
        return tokens[:, module.num_prefix :].reshape(len(images), *_grid(images, module.patch_size), module.dim)
    if not has_patch_map(module):
        raise ValueError(
            f"{type(module).__name__} has no feature map; give it a method feature_map(images, train, axis_name)"
        )
    found: Any = module.apply(variables, images, method="feature_map")
    return found


def method_of_both(module: nn.Module) -> str:
    """Name of the method of a module that `has_patch_map` whose output has both: see `both`."""
    if has_tokens(module):
        return "tokens"
    return "features_and_map" if has_features_and_map(module) else "feature_map"


def both(
    module: nn.Module,
    found: Float[Array, "batch ..."] | tuple[Float[Array, "batch dim"], Float[Array, "batch rows columns dim"]],
    images: Float[Array, "batch height width channels"],
) -> tuple[Float[Array, "batch dim"], Float[Array, "batch rows columns dim"]]:
    """(features of whole images, of each place) from what `method_of_both` gave for the images, in one pass.

    Args:
      module: one that `has_patch_map`.
      found: its tokens, its feature map, or both already. Features of whole images are the class token if it pools it,
        and the mean of the map where the module does not give both.
    """
    if isinstance(found, tuple):
        return found
    if not has_tokens(module):
        return jnp.mean(found, axis=(1, 2)), found
    places = found[:, module.num_prefix :].reshape(len(images), *_grid(images, module.patch_size), module.dim)
    return found[:, 0] if module.pool == "cls" else jnp.mean(places, axis=(1, 2)), places


@functools.partial(jax.jit, static_argnames=("module", "blocks", "pool", "norm"))
def block_features(
    module: nn.Module,
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    *,
    blocks: int,
    pool: str,
    norm: bool = True,
) -> Float[Array, "batch dims"]:
    """Features of a ViT's last blocks, concatenated in the blocks' order. The final LayerNorm is applied to each token.

    Args:
      blocks: number of blocks, in 1 .. depth.
      pool: "cls": their class tokens (DINO: 4 blocks of ViT-S). "mean": the means of their patches (I-JEPA: 4 blocks).
        "cls_and_mean": their class tokens, then the mean of the last block's patches (DINO: 1 block of ViT-B; DINOv2:
        1 or 4).
      norm: False for tokens as the blocks give them, before the final LayerNorm (MSN).
    Returns: [batch, blocks * dim], or with "cls_and_mean" [batch, (blocks + 1) * dim].
    Raises: ValueError for a module that is not a ViT, has no such token, or has fewer blocks.
    Source: Caron et al. 2021, arXiv:2104.14294, appendix F.2 and the authors' eval_linear.py; Oquab et al. 2023,
      arXiv:2304.07193, the authors' eval/linear.py; Assran et al. 2023, arXiv:2301.08243, appendix A.
    """
    check_choice("pool", pool, BLOCK_POOLS)
    vit = _check_vit(module, class_token=pool != "mean")
    if not 1 <= blocks <= vit.depth:
        raise ValueError(f"blocks must be in 1..{vit.depth}, the model's depth, got {blocks}")
    if norm and vit.pool == "mean":
        raise ValueError('a model of pool="mean" has no LayerNorm for single tokens; use one of pool="norm_mean"')
    outputs: Any = vit.apply(variables, images, last_blocks=blocks)
    if norm:
        outputs = make_norm(vit.norm_kind, jnp.float32, "norm", vit.norm_eps).apply(
            {"params": variables["params"]["norm"]}, outputs
        )
    classes = outputs[:, :, 0]
    means = jnp.mean(outputs[:, :, vit.num_prefix :], axis=2)
    if pool == "cls_and_mean":
        chosen = jnp.concatenate([classes, means[:, -1:]], axis=1)
    else:
        chosen = classes if pool == "cls" else means
    return chosen.reshape(len(images), -1)


@functools.partial(jax.jit, static_argnames="module")
def class_attention(
    module: nn.Module, variables: Mapping[str, Any], images: Float[Array, "batch height width channels"]
) -> Float[Array, "batch heads rows columns"]:
    """How much a ViT's class token attends to each patch in the last block, >= 0.

    The rest, up to 1, is attention to itself and to registers.

    Raises: ValueError for a module that is not a ViT or has no class token.
    """
    vit = _check_vit(module, class_token=True)
    last = f"blocks_{vit.depth - 1}"

    def wanted(submodule, method):
        return (submodule.path, method) in (((last, "attn"), "project"), (("rel_pos_bias",), "__call__"))

    # Computed from the queries and keys. The attention layer gives no weights: fused kernels never hold them.
    _, captured = vit.apply(variables, images, capture_intermediates=wanted, mutable=["intermediates"])
    outputs: Any = captured["intermediates"]
    queries, keys, _ = (part.astype(jnp.float32) for part in outputs[last]["attn"]["project"][0])
    logits = jnp.einsum("bhd,bkhd->bhk", queries[:, 0], keys, precision="highest") / jnp.sqrt(keys.shape[-1])
    if vit.positions == "relative":
        logits += outputs["rel_pos_bias"]["__call__"][0][:, :, 0]
    attention = jax.nn.softmax(logits)[:, :, vit.num_prefix :]
    return attention.reshape(len(images), vit.heads, *_grid(images, vit.patch_size))


def _grid(images: Array, patch_size: int) -> tuple[int, int]:
    _, height, width, _ = images.shape
    return patch_grid((height, width), patch_size)


def _check_vit(module: nn.Module, *, class_token: bool) -> ViT:
    if not isinstance(module, ViT):
        raise ValueError(f"{type(module).__name__} has no blocks of tokens; use a ViT, or patch features instead")
    if class_token and not module.class_token:
        raise ValueError('the model has no class token; use pool="mean", or a model of model.class_token=True')
    return module
