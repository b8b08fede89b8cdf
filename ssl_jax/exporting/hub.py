"""A directory that timm, transformers and `load_backbone` load: model.safetensors, config.json, and a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ssl_jax.exporting.card import model_card, published
from ssl_jax.exporting.timm_names import TimmForm
from ssl_jax.models.vit import ViT
from ssl_jax.paths import AnyPath
from ssl_jax.weights.adapting import FIRST_CONVOLUTIONS
from ssl_jax.weights.header import META

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def write_hub(form: TimmForm, directory: Path, size: tuple[int, int], workdir: AnyPath | None) -> None:
    """Writes the files into the directory, which is there and empty.

    Args:
      size: (height, width) of the images.
      workdir: of the run that trained the backbone; the model card says what is found there.
    """
    # torch's BatchNorm has a counter, which no feature depends on. transformers warns where it is missing.
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for name in form.tensors
        if name.endswith(".running_mean")
    }
    metadata = {"format": "pt"}  # transformers asks for it
    (directory / WEIGHTS).write_bytes(safetensors.numpy.save(form.tensors | counters, metadata))
    (directory / CONFIG).write_text(json.dumps(hub_config(form, size), indent=2) + "\n")
    (directory / CARD).write_text(model_card(form, size, workdir))


def first_convolution(tensors: Mapping[str, Any]) -> str:
    return next(name.removesuffix(".weight") for name in FIRST_CONVOLUTIONS if name in tensors)


def hub_config(form: TimmForm, size: tuple[int, int]) -> dict[str, Any]:
    """config.json as timm writes it, and under "ssl_jax" what `load_backbone` needs beside it."""
    backbone, is_vit = form.backbone, isinstance(form.backbone.model, ViT)
    channels = len(backbone.mean)
    arguments = dict(form.arguments)
    pooling = arguments.get("global_pool", "avg")
    return {
        "architecture": form.name,
        "num_classes": 0,
        "num_features": backbone.dim,
        "global_pool": pooling,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "ssl_jax",
            "custom_load": False,
            "input_size": [channels, *size],
            "fixed_input_size": is_vit and not form.name.endswith("_dinov3"),
            "interpolation": "bilinear",
            # Like our reading of whole images: the shorter side at the size, and the middle of the longer one.
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [*backbone.mean],
            "std": [*backbone.std],
            "num_classes": 0,
            "pool_size": None,
            # timm makes a convolution of 3 channels one of `in_chans`; these weights have `in_chans` already.
            "first_conv": first_convolution(form.tensors) if channels == 3 else None,
            "classifier": "head" if is_vit else "fc",
        },
        META: published(backbone, size),
    }
