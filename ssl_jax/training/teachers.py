"""The networks that a config names beside config.model: teachers, tokenizers, further students."""

import os
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ssl_jax import config as configs
from ssl_jax import models, paths
from ssl_jax.config import Config
from ssl_jax.methods import DINOv3Teacher, Teacher, Tokenizer
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.training.reading import normalization
from ssl_jax.weights import Backbone, load_backbone
from ssl_jax.workdir import config_file


def sizes(config: Config, module: nn.Module) -> dict[str, Any]:
    """Options of `load_backbone` that fit weights to a run's network and its images."""
    return dict(
        image_size=getattr(module, "image_size", None) or config.data.image_size,
        patch_size=getattr(module, "patch_size", None),
        channels=config.data.channels,
    )


def teacher(config: Config, key: str, model: str | nn.Module | None, **options: Any) -> Teacher:
    """The teacher that this key of config.method names, of this architecture; options: of `load_backbone`.

    Raises: ConfigError if it cannot be loaded, or cannot see these images.
    """
    where = f"config.method.{key}"
    found: Backbone = configs.call(load_backbone, options, where, os.path.expanduser(config.method[key]), model)
    data = normalization(config)
    if not found.mean:
        raise configs.ConfigError(
            f"{where}: the weights do not say how their images were normalized; save them by weights.save_backbone, "
            "with mean and std of each channel"
        )
    if data.channels not in (1, len(found.mean)):
        raise configs.ConfigError(
            f"{where}: the teacher takes images of {len(found.mean)} channels, but these have {data.channels}; use "
            f"another teacher, or --config.data.channels={len(found.mean)} if the files have them"
        )
    # Of a gray image, each channel of the teacher is the gray.
    std, mean = np.asarray(found.std), np.asarray(found.mean)
    scale, offset = np.asarray(data.std) / std, (np.asarray(data.mean) - mean) / std
    return Teacher(found.model, jax.device_get(found.variables), tuple(scale.tolist()), tuple(offset.tolist()))


def tokenizer(config: Config) -> Tokenizer:
    """The tokenizer of the run that config.method.tokenizer names.

    Raises: ConfigError if that is no finished run of vqkd, or its encoder cannot see these images.
    """
    encoder, kept = finished(config, "tokenizer", "vqkd")
    head, codebook = kept["params"]["head"], kept["model_state"]["codebook"]
    return Tokenizer(encoder, jax.device_get(head), jax.device_get(codebook))


def dinov3_teacher(config: Config) -> DINOv3Teacher:
    """The teacher of the run that config.method.teacher names.

    Raises: ConfigError if that is no finished run of dinov3, or its network cannot see these images.
    """
    network, kept = finished(config, "teacher", "dinov3")
    learnt = kept["model_state"]["teacher"]["params"]
    return DINOv3Teacher(network, {name: jax.device_get(learnt[name]) for name in ("head", "patch_head")})


def further_models(config: Config) -> dict[str, dict[str, Any]]:
    """{name: its options for `models.create`} of the students beside config.model, in order.

    Raises: ConfigError for what names no network.
    """
    where = "config.method.students"
    found = [configs.call(models.described, {}, where, text) for text in config.method.get("students", ())]
    return {options["name"]: {"dtype": config.compute_dtype, **options} for options in found}


def finished(config: Config, key: str, method: str) -> tuple[Teacher, dict[str, Any]]:
    """(the network, the newest checkpoint) of the run of this method that a key of config.method names.

    Raises: ConfigError if it is another run, or has not ended, and as `teacher`.
    """
    where, directory = f"config.method.{key}", paths.path(os.path.expanduser(config.method[key]))
    run = config_file.saved(directory)
    if run is None or run.method.name != method:
        found = "holds no run" if run is None else f"is a run of {run.method.name}"
        raise configs.ConfigError(f"{where}: {directory} {found}; give the directory of a run of {method}")
    network = teacher(config, key, None)
    kept = Checkpoints(directory / "checkpoints").newest()
    if kept is None:
        raise configs.ConfigError(
            f"{where}: {directory} has no checkpoint, and backbone.safetensors has not all that the run has learnt"
        )
    return network, kept
