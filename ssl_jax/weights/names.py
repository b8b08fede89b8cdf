"""Our variables as torch's tensors: names and order of axes, as timm and torchvision have them."""

# pyright: reportUnknownMemberType=false

import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from flax import traverse_util

from ssl_jax.weights.backbone import Variables

Leaves = dict[tuple[str, ...], Any]  # path -> array

# Flax's name of an array -> torch's name. All other names (bias, cls_token, pos_embed) are the same in both.
ARRAYS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_name(path: tuple[str, ...]) -> str:
    """("params", "blocks_1_0", "bn1", "scale") -> "blocks.1.0.bn1.weight". path: collection, modules, array."""
    _, *modules, array = path
    numbered = [re.sub(r"_(\d+)(?=(_\d+)*$)", r".\1", module) for module in modules]
    return ".".join([*numbered, ARRAYS.get(array, array)])


def torch_axes(path: tuple[str, ...], ndim: int) -> tuple[int, ...]:
    """For each of torch's axes, the axis of Flax's array: Flax's kernels [..., in, out] are [out, in, ...] in torch."""
    return (ndim - 1, ndim - 2, *range(ndim - 2)) if path[-1] == "kernel" else tuple(range(ndim))


def torch_tensors(variables: Variables) -> dict[str, np.ndarray]:
    """torch's name -> float32 array in torch's layout. Raises: ValueError if two arrays would have the same name."""
    tensors: dict[str, np.ndarray] = {}
    for path, value in leaves_of(variables).items():
        name, value = torch_name(path), np.asarray(value, np.float32)
        if name in tensors:
            raise ValueError(f"two arrays would be saved as {name}, one of them {'/'.join(path)}; rename its module")
        tensors[name] = np.array(value.transpose(torch_axes(path, value.ndim)), order="C")
    return tensors


def from_torch(tensors: Mapping[str, np.ndarray], like: Variables) -> Variables:
    """The inverse of `torch_tensors`: variables from tensors. like: variables with the same names and shapes."""
    leaves = {
        path: tensors[torch_name(path)].transpose(np.argsort(torch_axes(path, np.ndim(x))))
        for path, x in leaves_of(like).items()
    }
    return nested(leaves)


def leaves_of(variables: Variables) -> Leaves:
    """Path -> array."""
    return cast(Leaves, traverse_util.flatten_dict(variables))


def nested(leaves: Leaves) -> Variables:
    """The inverse of `leaves_of`."""
    return cast(Variables, traverse_util.unflatten_dict(leaves))
