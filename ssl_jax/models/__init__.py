"""Backbones: images [batch, height, width, channels] -> features [batch, dim], by name and options."""

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from ssl_jax.models.convnext import ConvNeXt
from ssl_jax.models.dcgan import Discriminator
from ssl_jax.models.described import described
from ssl_jax.models.efficientnet import EfficientNet
from ssl_jax.models.heads import MLP
from ssl_jax.models.igpt import IGPT
from ssl_jax.models.lightness import LightnessResNet
from ssl_jax.models.resnet import ResNet
from ssl_jax.models.split import SplitResNet
from ssl_jax.models.swin import Swin
from ssl_jax.models.unet import UNet
from ssl_jax.models.vits import VITS

__all__ = ["MLP", "MODELS", "create", "described"]

V2 = functools.partial(ConvNeXt, grn=True, layer_scale=0.0)

# timm's names, except for resnet8, lightness_*, split_*, dcgan_discriminator, ddpm_unet and igpt_*.
MODELS: dict[str, Callable[..., nn.Module]] = {
    # For images of 28 to 32 pixels on a CPU: 77,000 weights.
    "resnet8": functools.partial(ResNet, stages=(1, 1, 1), base_width=16, stem="strided"),
    "resnet18": functools.partial(ResNet, stages=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, stages=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, stages=(3, 4, 6, 3), bottleneck=True),
    "resnet101": functools.partial(ResNet, stages=(3, 4, 23, 3), bottleneck=True),
    "resnet152": functools.partial(ResNet, stages=(3, 8, 36, 3), bottleneck=True),
    "wide_resnet50_2": functools.partial(ResNet, stages=(3, 4, 6, 3), bottleneck=True, inner_width=2.0),
    "wide_resnet101_2": functools.partial(ResNet, stages=(3, 4, 23, 3), bottleneck=True, inner_width=2.0),
    # 32 groups of 4 and 8 channels in the first stage, which has 64
    "resnext50_32x4d": functools.partial(ResNet, stages=(3, 4, 6, 3), bottleneck=True, inner_width=2.0, groups=32),
    "resnext101_32x8d": functools.partial(ResNet, stages=(3, 4, 23, 3), bottleneck=True, inner_width=4.0, groups=32),
    "lightness_resnet8": functools.partial(LightnessResNet, stages=(1, 1, 1), base_width=16, stem="strided"),
    "lightness_resnet18": functools.partial(LightnessResNet, stages=(2, 2, 2, 2)),
    "lightness_resnet50": functools.partial(LightnessResNet, stages=(3, 4, 6, 3), bottleneck=True),
    "split_resnet8": functools.partial(SplitResNet, stages=(1, 1, 1), base_width=16, stem="strided"),
    "split_resnet18": functools.partial(SplitResNet, stages=(2, 2, 2, 2)),
    "split_resnet50": functools.partial(SplitResNet, stages=(3, 4, 6, 3), bottleneck=True),
    "dcgan_discriminator": Discriminator,
    "ddpm_unet": UNet,
    "igpt_small": IGPT,
    "igpt_medium": functools.partial(IGPT, dim=1024, depth=36),
    "igpt_large": functools.partial(IGPT, dim=1536, depth=48, heads=16),
    "convnext_atto": functools.partial(ConvNeXt, stages=(2, 2, 6, 2), base_width=40, conv_mlp=True),
    "convnext_femto": functools.partial(ConvNeXt, stages=(2, 2, 6, 2), base_width=48, conv_mlp=True),
    "convnext_pico": functools.partial(ConvNeXt, stages=(2, 2, 6, 2), base_width=64, conv_mlp=True),
    "convnext_nano": functools.partial(ConvNeXt, stages=(2, 2, 8, 2), base_width=80, conv_mlp=True),
    "convnext_tiny": functools.partial(ConvNeXt, stages=(3, 3, 9, 3), base_width=96),
    "convnext_small": functools.partial(ConvNeXt, stages=(3, 3, 27, 3), base_width=96),
    "convnext_base": functools.partial(ConvNeXt, stages=(3, 3, 27, 3), base_width=128),
    "convnext_large": functools.partial(ConvNeXt, stages=(3, 3, 27, 3), base_width=192),
    "convnextv2_atto": functools.partial(V2, stages=(2, 2, 6, 2), base_width=40, conv_mlp=True),
    "convnextv2_femto": functools.partial(V2, stages=(2, 2, 6, 2), base_width=48, conv_mlp=True),
    "convnextv2_pico": functools.partial(V2, stages=(2, 2, 6, 2), base_width=64, conv_mlp=True),
    "convnextv2_nano": functools.partial(V2, stages=(2, 2, 8, 2), base_width=80, conv_mlp=True),
    "convnextv2_tiny": functools.partial(V2, stages=(3, 3, 9, 3), base_width=96),
    "convnextv2_base": functools.partial(V2, stages=(3, 3, 27, 3), base_width=128),
    "convnextv2_large": functools.partial(V2, stages=(3, 3, 27, 3), base_width=192),
    "efficientnet_b0": EfficientNet,
    "efficientnet_b1": functools.partial(EfficientNet, stages=(2, 3, 3, 4, 4, 5, 2)),
    "efficientnet_b2": functools.partial(EfficientNet, stages=(2, 3, 3, 4, 4, 5, 2), width=1.1),
    "efficientnet_b3": functools.partial(EfficientNet, stages=(2, 3, 3, 5, 5, 6, 2), width=1.2),
    "efficientnet_b4": functools.partial(EfficientNet, stages=(2, 4, 4, 6, 6, 8, 2), width=1.4),
    "swin_tiny_patch4_window7_224": functools.partial(Swin, base_width=96, stages=(2, 2, 6, 2)),
    "swin_small_patch4_window7_224": functools.partial(Swin, base_width=96, stages=(2, 2, 18, 2)),
    "swin_base_patch4_window7_224": functools.partial(Swin, base_width=128, stages=(2, 2, 18, 2)),
    "swin_large_patch4_window7_224": functools.partial(Swin, base_width=192, stages=(2, 2, 18, 2)),
    **VITS,
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
        if option not in known and option == "microbatch" and "batch_norm" in known:
            raise ValueError(
                f"{name} has no microbatch, because its BatchNorm normalizes over the whole batch; "
                "use remat, more devices, or a ViT"
            )
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; {_nearest(option, known)}")
    # Flax hashes modules, and lists cannot be hashed.
    return MODELS[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
