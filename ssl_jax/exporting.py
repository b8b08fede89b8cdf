"""Exports backbones for other programs. Each file is read back and compared before it is put in place.

export(backbone, "backbone.safetensors", to="timm")
export(backbone, "backbone.stablehlo", to="stablehlo")
"""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export as jax_export

from ssl_jax import models
from ssl_jax.data.augment import normalize
from ssl_jax.weights import Backbone, from_torch, torch_tensors
from ssl_jax.workdir import files

TOLERANCE = 1e-4  # largest error of the features allowed, as a share of the largest feature
COMPARED = 3  # random images
NOT_YET = ("hf", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")


class ExportError(ValueError):
    """A backbone cannot be exported. The message is for the user."""


def export(backbone: Backbone, path: str | os.PathLike, *, to: str, image_size: tuple[int, int] | None = None) -> Path:
    """Writes the backbone for another program, compares its features with ours on random images, and returns `path`.

    Args:
      path: the file. It is written whole or not at all; after an error it is as before.
      to: "timm": safetensors with timm's names, for `timm.create_model(..., num_classes=0)` to load.
        "stablehlo": a program, `jax.export.deserialize(bytes).call(images)`: float32 images [batch, height, width,
        channels] in 0..1, of any batch size -> features float32 [batch, dim]. It normalizes the images itself.
      image_size: (height, width) in pixels, of the program and of the comparison; the backbone's own if not given.
    Raises: ExportError for another `to`, a backbone that this format cannot hold or whose image size or normalization
      is unknown, and features that differ by more than TOLERANCE of the largest; OSError for a file that cannot be
      written.
    """
    if to not in WRITERS:
        there = f"there are {', '.join(WRITERS)}"
        raise ExportError(f"to={to!r} is not there yet; {there}" if to in NOT_YET else f"no to={to!r}; {there}")
    size = image_size or backbone.image_size
    if size is None:
        raise ExportError("these weights do not say their size of images; give image_size=(height, width) in pixels")
    if not backbone.mean:
        raise ExportError("these weights do not say how their images were normalized; give mean and std")
    images = np.random.default_rng(0).random((COMPARED, *size, len(backbone.mean)), np.float32)
    expected = backbone.features(images)
    path = Path(path)
    with files.replacing(path) as file:
        features = WRITERS[to](backbone, file, size)
        file.flush()
        found = features(Path(file.name), images)
        off = float(np.max(np.abs(found - expected)) / max(float(np.max(np.abs(expected))), 1e-12))
        if not off <= TOLERANCE:  # refuses NaN, too
            raise ExportError(
                f"what was exported to {to} gives other features than the backbone: off by {off:.2g} of the largest, "
                f"more than {TOLERANCE:g}; {path} is not written. Please report it"
            )
    return path


Read = Callable[[Path, np.ndarray], np.ndarray]  # (file, images in 0..1) -> features by what the file holds


def _timm(backbone: Backbone, file: BinaryIO, size: tuple[int, int]) -> Read:
    name = backbone.facts.get("model", {}).get("name")
    if name not in models.MODELS:
        raise ExportError(
            f"timm has no {type(backbone.model).__name__}: only the architectures of ssl_jax.models go there "
            f"({', '.join(models.MODELS)}); to='stablehlo' takes any backbone"
        )
    file.write(safetensors.numpy.save(torch_tensors(backbone.variables)))

    def features(path: Path, images: np.ndarray) -> np.ndarray:
        variables = from_torch(safetensors.numpy.load_file(path), like=backbone.variables)
        return np.asarray(jax.jit(backbone.model.apply)(variables, backbone.preprocess(images)))

    return features


def _stablehlo(backbone: Backbone, file: BinaryIO, size: tuple[int, int]) -> Read:
    if importlib.util.find_spec("flatbuffers") is None:  # jax.export writes and reads programs with it
        raise ExportError("to='stablehlo' needs flatbuffers: pip install 'ssl_jax[stablehlo]'")
    variables = jax.tree.map(jnp.asarray, backbone.variables)

    # One image at a time, vectorized: a module may take len() of its images, which a batch of unknown size has not.
    @jax.vmap
    def program(image: jax.Array) -> jax.Array:
        return backbone.model.apply(variables, normalize(image[None], backbone.mean, backbone.std))[0]

    (batch,) = jax_export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *size, len(backbone.mean)), jnp.float32)
    file.write(jax_export.export(jax.jit(program), platforms=PLATFORMS)(shape).serialize())

    def features(path: Path, images: np.ndarray) -> np.ndarray:
        return np.asarray(jax_export.deserialize(bytearray(path.read_bytes())).call(images))

    return features


WRITERS = {"timm": _timm, "stablehlo": _stablehlo}
