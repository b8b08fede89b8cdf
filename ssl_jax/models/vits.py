"""Vision transformers by timm's names: the original ones, and those of DINOv2, DINOv3 and CLIP."""

import functools
from collections.abc import Callable
from typing import Any

from ssl_jax.models.vit import ViT

SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(dim=192, heads=3),
    "small": dict(dim=384, heads=6),
    "base": dict(dim=768, heads=12),
    "large": dict(dim=1024, heads=16, depth=24),
    "huge": dict(dim=1280, heads=16, depth=32),
}
# Oquab et al. 2023, arXiv:2304.07193; registers: Darcet et al. 2023, arXiv:2309.16588
DINOV2: dict[str, Any] = dict(patch_size=14, image_size=518, layer_scale=1e-5)
DINOV2_SIZES = {
    **{name: SIZES[name] for name in ("small", "base", "large")},
    "giant": dict(dim=1536, heads=24, depth=40, mlp="swiglu", mlp_ratio=16 / 3),
}
# Simeoni et al. 2025, arXiv:2508.10104. timm takes the mean of the patches by default, the authors the class token.
DINOV3: dict[str, Any] = dict(
    positions="rope", registers=4, layer_scale=1e-5, norm_eps=1e-5, qkv_bias=False, image_size=256
)
DINOV3_SIZES: dict[str, dict[str, Any]] = {
    **{name: SIZES[name] for name in ("small", "base", "large")},
    "small_plus": SIZES["small"] | dict(mlp="swiglu", mlp_ratio=8),
    "huge_plus": dict(dim=1280, heads=20, depth=32, mlp="swiglu", mlp_ratio=8),
    "7b": dict(dim=4096, heads=32, depth=40, mlp="swiglu", mlp_ratio=4),
}
# Radford et al. 2021, arXiv:2103.00020. The projection to the space of texts is no part of the backbone.
CLIP: dict[str, Any] = dict(pre_norm=True, norm_eps=1e-5)
CLIP_SIZES = (("base", 32), ("base", 16), ("large", 14), ("huge", 14))


def _vits() -> dict[str, Callable[..., ViT]]:
    fields: dict[str, dict[str, Any]] = {}
    for size in ("tiny", "small", "base", "large"):
        fields[f"vit_{size}_patch16_224"] = SIZES[size]
    for size in ("small", "base"):
        fields[f"vit_{size}_patch8_224"] = SIZES[size] | dict(patch_size=8)
    fields["vit_huge_patch14_224"] = SIZES["huge"] | dict(patch_size=14)
    # I-JEPA's
    fields["vit_huge_patch14_gap_224"] = SIZES["huge"] | dict(patch_size=14, class_token=False, pool="norm_mean")
    for size, of_size in DINOV2_SIZES.items():
        fields[f"vit_{size}_patch14_dinov2"] = DINOV2 | of_size
        fields[f"vit_{size}_patch14_reg4_dinov2"] = DINOV2 | of_size | dict(registers=4, class_position=False)
    for size, of_size in DINOV3_SIZES.items():
        fields[f"vit_{size}_patch16_dinov3"] = DINOV3 | of_size
    for size, patch in CLIP_SIZES:
        clip = CLIP | SIZES[size] | dict(patch_size=patch)
        fields[f"vit_{size}_patch{patch}_clip_224"] = clip
        # as OpenAI trained them
        fields[f"vit_{size}_patch{patch}_clip_quickgelu_224"] = clip | dict(mlp="quick_gelu")
    return {name: functools.partial(ViT, **of_model) for name, of_model in fields.items()}


VITS = _vits()
