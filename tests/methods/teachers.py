"""A teacher's file, for the methods that need one."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ssl_jax import config as configs
from ssl_jax import models, weights
from ssl_jax.methods.toolkit import tokenizers
from ssl_jax.models.heads import DINOHead
from ssl_jax.ops import normalize
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.workdir import config_file

_DIRECTORY = tempfile.TemporaryDirectory(prefix="teachers")


def with_teacher(config):
    """The config of any method; one that needs a teacher is given a small one that was never trained."""
    channels = config.data.channels or 3
    if config.method.name in ("clusterfit", "distill", "vqkd"):
        config.method.teacher = str(saved(channels))
    if config.method.name == "feature_targets":  # at some scales of a teacher with a class token
        config.method.teacher = str(saved_vit(channels))
        if "teacher_model" in config.method:
            config.method.teacher_model = ""
    if config.method.name == "dinov3_distillation":
        side = config.augment.global1.size[0] // config.method.get("teacher_scale", 1)
        config.method.teacher = str(saved_dinov3(channels, side, config.model.get("patch_size", 16)))
    if config.method.name == "beit_v2":
        side = config.augment.view.size[0]
        config.method.tokenizer = str(saved_tokenizer(channels, side, config.model.get("patch_size", 16)))
    return config


@functools.cache
def saved_tokenizer(channels: int = 1, side: int = 28, patch_size: int = 7, codes: int = 24) -> Path:
    """The directory of a run of vqkd with a small ViT of one block, which was never trained."""
    directory = Path(_DIRECTORY.name) / f"tokenizer-{channels}-{side}-{patch_size}-{codes}"
    directory.mkdir(exist_ok=True)  # saved_tokenizer() and saved_tokenizer(1) are two calls to functools.cache
    if (directory / "checkpoints").exists():
        return directory
    model: dict[str, Any] = dict(
        name="vit_tiny_patch16_224", dim=32, depth=1, heads=2, patch_size=patch_size, image_size=side
    )
    model["pool"] = "norm_mean"
    variables = models.create(**model).init(jax.random.key(7), jnp.zeros((1, side, side, channels)))
    meta = {"model": model, "image_size": [side, side], "channels": channels}
    meta |= {"mean": [0.3] * channels, "std": [0.5] * channels}
    weights.save_backbone(directory, jax.device_get(variables), meta)
    config_file.claim(directory, configs.get_config("vqkd:tiny"))
    codebook = normalize(jax.random.normal(jax.random.key(9), (codes, 8)))
    head = tokenizers.TanhHead(8).init(jax.random.key(8), jnp.zeros((1, 32)))["params"]
    checkpoints = Checkpoints(directory / "checkpoints")
    checkpoints.save(1, {"params": {"head": head}, "model_state": {"codebook": codebook}})
    checkpoints.close()
    return directory


@functools.cache
def saved_dinov3(channels: int = 1, side: int = 28, patch_size: int = 7) -> Path:
    """The directory of a run of dinov3 with a small ViT of one block, which was never trained."""
    directory = Path(_DIRECTORY.name) / f"dinov3-{channels}-{side}-{patch_size}"
    directory.mkdir(exist_ok=True)  # saved_dinov3() and saved_dinov3(1) are two calls to functools.cache
    if (directory / "checkpoints").exists():
        return directory
    model: dict[str, Any] = dict(
        name="vit_small_patch16_dinov3", dim=32, depth=1, heads=2, patch_size=patch_size, image_size=side
    )
    variables = models.create(**model).init(jax.random.key(7), jnp.zeros((1, side, side, channels)))
    meta = {"model": model, "image_size": [side, side], "channels": channels}
    meta |= {"mean": [0.3] * channels, "std": [0.5] * channels}
    weights.save_backbone(directory, jax.device_get(variables), meta)
    config_file.claim(directory, configs.get_config("dinov3:tiny"))
    heads = {
        name: DINOHead(prototypes, hidden=(24,), bottleneck=bottleneck, unit_prototypes=False).init(
            jax.random.key(8), jnp.zeros((1, 32))
        )["params"]
        for name, prototypes, bottleneck in (("head", 40, 12), ("patch_head", 30, 10))
    }
    checkpoints = Checkpoints(directory / "checkpoints")
    checkpoints.save(1, {"params": {}, "model_state": {"teacher": {"params": heads}}})
    checkpoints.close()
    return directory


@functools.cache
def saved(channels: int = 1, **changes) -> Path:
    """A directory with the weights of a resnet8 of one stage. changes: of what its file says."""
    directory = Path(_DIRECTORY.name) / f"{channels}{abs(hash(tuple(changes.items())))}"
    directory.mkdir(exist_ok=True)  # saved() and saved(1) are two calls to functools.cache
    options = dict(stages=(1,), base_width=8)
    images = jnp.zeros((1, 28, 28, channels))
    variables = models.create("resnet8", **options).init(jax.random.key(7), images)
    meta = {
        "model": {"name": "resnet8", "stages": [1], "base_width": 8},
        "image_size": [28, 28],
        "channels": channels,
        "mean": [0.3] * channels,
        "std": [0.5] * channels,
    }
    weights.save_backbone(directory, jax.device_get(variables), meta | changes)
    return directory


@functools.cache
def saved_vit(channels: int) -> Path:
    """A directory with the weights of a ViT of one block."""
    directory = Path(_DIRECTORY.name) / f"vit{channels}"
    directory.mkdir(exist_ok=True)
    options = dict(dim=8, depth=1, heads=2, patch_size=4, image_size=28)
    images = jnp.zeros((1, 28, 28, channels))
    variables = models.create("vit_tiny_patch16_224", **options).init(jax.random.key(7), images)
    meta = {
        "model": {"name": "vit_tiny_patch16_224", **options},
        "image_size": [28, 28],
        "channels": channels,
        "mean": [0.3] * channels,
        "std": [0.5] * channels,
    }
    weights.save_backbone(directory, jax.device_get(variables), meta)
    return directory
