"""Backbones: images [batch, height, width, channels] -> features [batch, dim], by name and options."""

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from ssl_jax.models.dcgan import Discriminator
from ssl_jax.models.heads import MLP
from ssl_jax.models.lightness import LightnessResNet
from ssl_jax.models.resnet import ResNet
from ssl_jax.models.split import SplitResNet
from ssl_jax.models.vit import ViT

__all__ = ["MLP", "MODELS", "create"]

# timm's names, except for resnet8, lightness_*, split_* and dcgan_discriminator.
MODELS: dict[str, Callable[..., nn.Module]] = {
    # For images of 28 to 32 pixels on a CPU: 77,000 weights.
    "resnet8": functools.partial(ResNet, stages=(1, 1, 1), base_width=16, stem="strided"),
    "resnet18": functools.partial(ResNet, stages=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, stages=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, stages=(3, 4, 6, 3), bottleneck=True),
    "resnet101": functools.partial(ResNet, stages=(3, 4, 23, 3), bottleneck=True),
    "lightness_resnet8": functools.partial(LightnessResNet, stages=(1, 1, 1), base_width=16, stem="strided"),
    "lightness_resnet18": functools.partial(LightnessResNet, stages=(2, 2, 2, 2)),
    "lightness_resnet50": functools.partial(LightnessResNet, stages=(3, 4, 6, 3), bottleneck=True),
    "split_resnet8": functools.partial(SplitResNet, stages=(1, 1, 1), base_width=16, stem="strided"),
    "split_resnet18": functools.partial(SplitResNet, stages=(2, 2, 2, 2)),
    "split_resnet50": functools.partial(SplitResNet, stages=(3, 4, 6, 3), bottleneck=True),
    "dcgan_discriminator": Discriminator,
    "vit_tiny_patch16_224": functools.partial(ViT, dim=192, heads=3),
    "vit_small_patch16_224": functools.partial(ViT, dim=384, heads=6),
    "vit_base_patch16_224": functools.partial(ViT, dim=768, heads=12),
    "vit_large_patch16_224": functools.partial(ViT, dim=1024, heads=16, depth=24),
    "vit_giant_patch14_dinov2": functools.partial(
        ViT,
        dim=1536,
        heads=24,
        depth=40,
        patch_size=14,
        image_size=518,
        mlp="swiglu",
        mlp_ratio=16 / 3,
        layer_scale=1e-5,
    ),
}


def create(name: str, **options: Any) -> nn.Module:
    """Makes the backbone `name` of MODELS. `options` replace fields of its class.

    An option is a number, a string, or several numbers as a tuple or a list (JSON has lists only).
    The backbone has `dim`, and `apply(variables, images, train=False, axis_name=None)` gives float32 [batch, dim].

    Raises: ValueError for an unknown name, option or value.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; {_nearest(name, list(MODELS))}")
    made = MODELS[name]()
    known = [field.name for field in dataclasses.fields(made) if field.name not in ("parent", "name")]
    for option in options:
        if option not in known and option == "microbatch":
            raise ValueError(
                f"{name} has no microbatch: its BatchNorm normalizes by the whole batch, and parts of it would "
                "train another network; use remat, more devices, or a ViT"
            )
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; {_nearest(option, known)}")
    # Flax hashes modules, and lists cannot be hashed.
    return MODELS[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
