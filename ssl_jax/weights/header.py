"""Our own files: backbone.safetensors, whose header says how to use it, and backbone.json, which says it to people."""

# pyright: reportUnknownMemberType=false

import json
import os
from collections.abc import Mapping
from typing import Any, cast

import safetensors.numpy

from ssl_jax import paths
from ssl_jax.data.normalization import Normalization
from ssl_jax.paths import AnyPath
from ssl_jax.weights.backbone import Variables
from ssl_jax.weights.names import torch_tensors
from ssl_jax.workdir import files

FILE = "backbone.safetensors"
META = "ssl_jax"  # the entry of the header that holds the `meta` of save_backbone
META_KEYS = ("model", "image_size", "channels", "mean", "std")
VALUE_KEYS = ("value_range", "dtype", "nodata")  # of data.Normalization, where they are not its defaults
MAX_SIDE = 2**16  # the largest side of images in pixels, and the largest number of channels


def save_backbone(directory: str | os.PathLike[str], variables: Variables, meta: Mapping[str, Any]) -> None:
    """Writes backbone.safetensors and backbone.json, each whole or not at all. The same weights give the same bytes.

    Args:
      variables: {"params": ..., "batch_stats": ...} of the backbone alone.
      meta: "model" (name and options, as models.create takes them), "image_size" ([height, width]), "channels", "mean",
        "std" (of each channel, of images in 0..1), and whatever else JSON can hold.
    Raises: ValueError if one of these keys is missing, and as `torch_tensors`.
    """
    missing = [key for key in META_KEYS if key not in meta]
    if missing:
        raise ValueError(f"meta has no {missing[0]!r}; load_backbone needs {', '.join(META_KEYS)}")
    tensors = torch_tensors(variables)
    # One entry only, as the library writes several in no fixed order.
    header = {META: json.dumps(meta, sort_keys=True)}
    directory = paths.path(directory)
    with files.replacing(directory / FILE) as file:
        file.write(safetensors.numpy.save(tensors, header))
    with files.replacing((directory / FILE).with_suffix(".json")) as file:
        file.write((json.dumps(meta, indent=2, sort_keys=True) + "\n").encode())


def as_tuple(value: Any) -> Any:
    return tuple(cast(list[Any], value)) if isinstance(value, list) else value


def read_meta(file: Any, path: AnyPath) -> dict[str, Any] | None:
    """The `meta` of save_backbone; None for a file that it did not write. Raises: ValueError for unusable meta."""
    header: Mapping[str, str] = file.metadata() or {}
    text = header.get(META)
    return None if text is None else checked_meta(text, f"{path}: its header's entry {META!r}")


def checked_meta(text: str, where: str) -> dict[str, Any]:
    """The `meta` of save_backbone from JSON. where: it stands, for messages. Raises: ValueError for unusable meta."""
    try:
        meta = json.loads(text)
        size, channels, normalization = meta["image_size"], meta["channels"], (meta["mean"], meta["std"])
        sides_fit = all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in (*size, channels)) and len(size) == 2
        values_fit = all(len(of) == channels and all(isinstance(v, (int, float)) for v in of) for of in normalization)
        model = meta["model"]
        if sides_fit and values_fit and isinstance(model["given" if "given" in model else "name"], str):
            values: dict[str, Any] = {key: as_tuple(meta[key]) for key in VALUE_KEYS if key in meta}
            Normalization(tuple(meta["mean"]), tuple(meta["std"]), **values)  # raises for what does not fit
            return meta
        reason = f"image_size {size}, channels {channels}, mean and std {normalization}"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(f"{where} cannot be used ({reason}); copy or save the file again")
