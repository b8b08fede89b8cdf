"""What a backbone holds beside its pooled features: of each patch, of its last blocks, and where its class token looks.

Jitted, in evaluation mode; `module` is static.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax.models._options import check_choice
from ssl_jax.models.positions import patch_grid
from ssl_jax.models.vit import ViT, layer_norm

BLOCK_POOLS = ("cls", "mean", "cls_and_mean")


def has_patch_map(module: nn.Module) -> bool:
    """Whether `patch_map` takes it."""
    if isinstance(module, ViT):
        return module.pool != "mean"
    return "pool" in inspect.signature(type(module).__call__).parameters


def has_class_attention(module: nn.Module) -> bool:
    """Whether `class_attention` takes it."""
    return isinstance(module, ViT) and module.class_token


@functools.partial(jax.jit, static_argnames="module")
def patch_map(
    module: nn.Module, variables: Mapping[str, Any], images: Float[Array, "batch height width channels"]
) -> Float[Array, "batch rows columns dim"]:
    """Features of each place: of a ViT its patches after the last LayerNorm, of a ResNet the last stage's map.

    Raises: ValueError for a ViT of pool="mean", whose LayerNorm is of the mean, and for a module without a map.
    """
    if isinstance(module, ViT):
        tokens: Any = module.apply(variables, images, tokens=True)
        return tokens[:, module.num_prefix :].reshape(len(images), *_grid(module, images), module.dim)
    if not has_patch_map(module):
        raise ValueError(f"{type(module).__name__} has no feature map: its __call__ takes no `pool`; add that option")
    found: Any = module.apply(variables, images, pool=False)
    return found


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
    """Features of a ViT's last blocks side by side, the last block's last, each token after the final LayerNorm.

    Args:
      blocks: how many, in 1 .. depth.
      pool: "cls": their class tokens (DINO: 4 blocks of ViT-S). "mean": the means of their patches (I-JEPA: 4 blocks).
        "cls_and_mean": their class tokens, and after these the mean of the last block's patches (DINO: 1 block of
        ViT-B; DINOv2: 1 or 4).
      norm: False for tokens as the blocks give them, before the final LayerNorm (MSN).
    Returns: [batch, blocks * dim], or with "cls_and_mean" [batch, (blocks + 1) * dim].
    Raises: ValueError for a module that is no ViT, has no such token or not so many blocks.
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
        outputs = layer_norm(jnp.float32, "norm").apply({"params": variables["params"]["norm"]}, outputs)
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
    """How much a ViT's class token attends to each patch in the last block: >= 0; what is missing to 1 is to itself.

    Raises: ValueError for a module that is no ViT or has no class token.
    """
    vit = _check_vit(module, class_token=True)
    last = f"blocks_{vit.depth - 1}"

    def wanted(submodule, _):
        return submodule.path in ((last, "attn", "qkv"), ("rel_pos_bias",))

    # The attention itself gives no weights: fused kernels never hold them.
    _, captured = vit.apply(variables, images, capture_intermediates=wanted, mutable=["intermediates"])
    outputs: Any = captured["intermediates"]
    qkv = outputs[last]["attn"]["qkv"]["__call__"][0].astype(jnp.float32)
    queries, keys, _ = jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, vit.heads, -1), 2, 0)
    logits = jnp.einsum("bhd,bkhd->bhk", queries[:, 0], keys, precision="highest") / jnp.sqrt(keys.shape[-1])
    if vit.positions == "relative":
        logits += outputs["rel_pos_bias"]["__call__"][0][:, :, 0]
    attention = jax.nn.softmax(logits)[:, :, vit.num_prefix :]
    return attention.reshape(len(images), vit.heads, *_grid(vit, images))


def _grid(vit: ViT, images: Array) -> tuple[int, int]:
    _, height, width, _ = images.shape
    return patch_grid((height, width), vit.patch_size)


def _check_vit(module: nn.Module, *, class_token: bool) -> ViT:
    if not isinstance(module, ViT):
        raise ValueError(f"{type(module).__name__} has no blocks of tokens; use a ViT, or patch features instead")
    if class_token and not module.class_token:
        raise ValueError('the model has no class token; use pool="mean", or a model of model.class_token=True')
    return module
