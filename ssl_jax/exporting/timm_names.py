"""Backbones in timm's form: its names of tensors, and the arguments of `timm.create_model` that make the network."""

# pyright: reportUnknownMemberType=false

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ssl_jax import models
from ssl_jax.models.positions import sincos_positions
from ssl_jax.models.vit import ViT
from ssl_jax.weights import Backbone, torch_tensors
from ssl_jax.weights.layouts import timm_tensors

OURS = re.compile(r"resnet8|lightness_.*|split_.*|dcgan_.*|ddpm_.*|igpt_.*")  # of models.MODELS, not of timm
# Fields that change nothing about the features of trained weights, or only their rounding.
IN_TRAINING = (
    *("zero_init_residual", "batch_norm", "batch_norm_groups", "dtype", "remat", "scan", "microbatch", "rope_jitter"),
    *("attention", "drop_path", "drop_path_uniform", "drop_path_group"),
)
# Our field of a ViT -> timm's argument, of its VisionTransformer and of its Eva, which has DINOv3's ViTs.
OF_BOTH = {
    "dim": "embed_dim",
    "heads": "num_heads",
    "depth": "depth",
    "patch_size": "patch_size",
    "image_size": "img_size",
    "class_token": "class_token",
    "qkv_bias": "qkv_bias",
    "layer_scale": "init_values",
}
OF_VIT = OF_BOTH | {
    "mlp_ratio": "mlp_ratio",
    "class_position": "no_embed_class",
    "registers": "reg_tokens",
    "pre_norm": "pre_norm",
    "qk_norm": "qk_norm",
}
OF_EVA = OF_BOTH | {"registers": "num_reg_tokens", "rope_base": "rope_temperature"}
# timm's argument -> its value, where it is not ours.
VALUES: dict[str, Callable[[Any], Any]] = {
    "img_size": lambda size: [size, size] if isinstance(size, int) else [*size],
    "no_embed_class": lambda positioned: not positioned,
}


class NoForm(ValueError):
    """timm has no such network. The message says what differs."""


class TimmForm(NamedTuple):
    """name, arguments: of `timm.create_model`, beside num_classes=0. tensors: by timm's names.

    backbone: what `load_backbone` is to make of these; in float32, with learned positions where ours are fixed.
    reference: the backbone as it was given, in float32.
    """

    name: str
    arguments: dict[str, Any]
    tensors: dict[str, np.ndarray]
    backbone: Backbone
    reference: Backbone

    @property
    def call(self) -> str:
        """Python that makes timm's network."""
        arguments = "".join(f", {name}={value!r}" for name, value in self.arguments.items())
        return f'timm.create_model("{self.name}", num_classes=0{arguments})'


def timm_form(backbone: Backbone, size: tuple[int, int]) -> TimmForm:
    """The backbone as timm has it.

    Args:
      size: (height, width) of its images. Fixed positions are written as learned ones, for images of this size.
    Raises: NoForm for a network that timm cannot make.
    """
    name = str(backbone.facts.get("model", {}).get("name"))
    if name not in models.MODELS or OURS.fullmatch(name):
        raise NoForm(f"timm has no {name if name in models.MODELS else type(backbone.model).__name__}")
    reference = dataclasses.replace(backbone, model=backbone.model.clone(dtype="float32"))
    model, variables = _with_learned_positions(reference.model, backbone.variables, size)
    arguments = _arguments(name, model)
    if len(backbone.mean) != 3:
        arguments["in_chans"] = len(backbone.mean)
    try:
        tensors = timm_tensors(name, torch_tensors(variables))
    except ValueError as error:
        raise NoForm(str(error)) from error
    facts = {**backbone.facts, "model": {"name": name, **_changed(name, model)}}
    remade = dataclasses.replace(backbone, model=model, variables=variables, facts=facts)
    return TimmForm(name, arguments, tensors, remade, reference)


def _with_learned_positions(
    model: nn.Module, variables: Mapping[str, Any], size: tuple[int, int]
) -> tuple[nn.Module, Mapping[str, Any]]:
    if not isinstance(model, ViT) or model.positions != "sincos":
        return model, variables
    model = model.clone(positions="learned", image_size=size)
    positions = sincos_positions(model.learned_grid, model.dim)
    if model.class_token and model.class_position:
        positions = jnp.pad(positions, ((0, 0), (1, 0), (0, 0)))
    return model, {**variables, "params": {**variables["params"], "pos_embed": positions}}


def _changed(name: str, model: nn.Module) -> dict[str, Any]:
    """The fields in which a model differs from the one that has its name; not those for training only."""
    usual = models.create(name)
    fields = [field.name for field in dataclasses.fields(cast(Any, model))]
    fields = [field for field in fields if field not in ("parent", "name", *IN_TRAINING)]
    return {field: getattr(model, field) for field in fields if _plain(model, field) != _plain(usual, field)}


def _plain(model: nn.Module, field: str) -> Any:
    """The field's value, the same for values that mean the same."""
    value = getattr(model, field)
    if field == "layer_scale":
        return value > 0  # else only a start value
    return (value, value) if field == "image_size" and isinstance(value, int) else value


def _arguments(name: str, model: nn.Module) -> dict[str, Any]:
    known: dict[str, str] = {}
    arguments: dict[str, Any] = {}
    if isinstance(model, ViT):
        eva = name.endswith("_dinov3")
        known = OF_EVA if eva else OF_VIT
        arguments["global_pool"] = "token" if model.pool == "cls" else "avg"
        if model.pool != "cls":
            arguments["use_fc_norm" if eva else "fc_norm"] = model.pool == "mean"
    for field, value in _changed(name, model).items():
        if isinstance(model, ViT) and field == "pool":
            continue
        if field not in known or (field == "layer_scale" and not value):  # timm takes None for its own default
            raise NoForm(f"timm's {name} has no argument for {field}={value!r}")
        argument = known[field]
        arguments[argument] = VALUES[argument](value) if argument in VALUES else value
    return arguments
