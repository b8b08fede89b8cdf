"""Exports backbones for other programs. Each export is read back and compared before it is put in place.

export(backbone, "backbone.safetensors", to="timm")
export(backbone, "my_backbone", to="hf", workdir="runs/mine")
export(backbone, "backbone.onnx", to="onnx")
export(backbone, "backbone.stablehlo", to="stablehlo")
"""

# pyright: reportUnknownMemberType=false

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export as jax_export

from ssl_jax import paths
from ssl_jax.exporting import hub
from ssl_jax.exporting.timm_names import NoForm, TimmForm, timm_form
from ssl_jax.paths import AnyPath
from ssl_jax.weights import Backbone, load_backbone
from ssl_jax.workdir import files

TOLERANCE = 1e-4  # largest error of the features allowed, as a share of the largest feature
COMPARED = 3  # random images
PLATFORMS = ("cpu", "cuda", "tpu")
DIRECTORIES = ("hf",)  # formats that are a directory; the others are a file


class ExportError(ValueError):
    """A backbone cannot be exported. The message is for the user."""


def export(
    backbone: Backbone,
    path: str | os.PathLike[str],
    *,
    to: str,
    image_size: tuple[int, int] | None = None,
    workdir: str | os.PathLike[str] | None = None,
) -> Path:
    """Writes the backbone for another program, compares its features with ours on random images, and returns `path`.

    Args:
      path: the file, or for "hf" the directory. It is written whole or not at all; after an error it is as before.
      to: "timm": safetensors with timm's names, for `timm.create_model` with `num_classes=0` and the arguments that
        `how_to_load` gives.
        "hf": a directory that timm, transformers and `load_backbone` load, with a model card.
        "onnx", "stablehlo": a program that takes float32 images [batch, height, width, channels] in 0..1, of any batch
        size, and gives features float32 [batch, dim]. It normalizes the images itself. Of ONNX: input "images", output
        "features", opset 18. Of StableHLO: `jax.export.deserialize(bytes).call(images)`.
      image_size: (height, width) in pixels, of the program and of the comparison; the backbone's own if not given.
      workdir: of the run that trained the backbone, for the model card of "hf": its recipe, and its evaluation.
    Raises: ExportError for another `to`, a backbone that this format cannot hold or whose image size or normalization
      is unknown, a directory that is not empty, a library that is not installed, and features that differ by more than
      TOLERANCE of the largest; OSError for a file that cannot be written.
    """
    if to not in WRITERS:
        raise ExportError(f"there is no format to={to!r}; choose from {', '.join(WRITERS)}")
    size = image_size or backbone.image_size
    if size is None:
        raise ExportError(
            "these weights do not say which size of images they were trained at; give "
            "image_size=(height, width) in pixels"
        )
    if not backbone.mean:
        raise ExportError("these weights do not say how their images were normalized; give mean and std")
    for library in LIBRARIES.get(to, ()):
        if importlib.util.find_spec(library) is None:
            raise ExportError(f"to={to!r} needs {library}: pip install 'ssl_jax[{to}]'")
    path = Path(path)
    images = np.random.default_rng(0).random((COMPARED, *size, len(backbone.mean)), np.float32)
    with _replacing(path, directory=to in DIRECTORIES) as partial:
        written = WRITERS[to](backbone, partial, size, None if workdir is None else paths.path(workdir))
        expected, found = written.reference.features(images), written.features(images)
        off = float(np.max(np.abs(found - expected)) / max(float(np.max(np.abs(expected))), 1e-12))
        if not off <= TOLERANCE:  # refuses NaN, too
            raise ExportError(
                f"the export to {to} gives other features than the backbone: they differ by {off:.2g} "
                f"of the largest, more than {TOLERANCE:g}. {path} is not written. Please report it"
            )
    return path


def how_to_load(
    backbone: Backbone, path: str | os.PathLike[str], *, to: str, image_size: tuple[int, int] | None = None
) -> str:
    """Python that loads what `export` has written with these arguments."""
    if to == "timm":
        call = _timm_form(backbone, image_size or backbone.image_size or (0, 0)).call
        return f'{call}.load_state_dict(safetensors.torch.load_file("{path}"))'
    return {
        "hf": f'timm.create_model("local-dir:{path}", pretrained=True, num_classes=0)',
        "onnx": f'onnxruntime.InferenceSession("{path}").run(None, {{"images": images}})',
        "stablehlo": f'jax.export.deserialize(bytearray(open("{path}", "rb").read())).call(images)',
    }[to]


@contextlib.contextmanager
def _replacing(path: Path, *, directory: bool) -> Generator[Path]:
    """Where to write what is to become `path`."""
    if not directory:
        with files.replacing(path) as file:
            yield Path(file.name)
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExportError(f"{path} is there already; an export is a new directory, so remove it or use another name")
    with files.new_directory(path) as partial:
        yield partial


class Written(NamedTuple):
    """reference: the backbone whose features are to be found. features: images in 0..1 -> those of what was written."""

    reference: Backbone
    features: Callable[[np.ndarray], np.ndarray]


Size = tuple[int, int]
Writer = Callable[[Backbone, Path, Size, AnyPath | None], Written]  # (backbone, file or empty directory, size, workdir)


def _timm_form(backbone: Backbone, size: Size) -> TimmForm:
    try:
        return timm_form(backbone, size)
    except NoForm as error:
        raise ExportError(f"{error}; to='onnx' and to='stablehlo' take any backbone") from error


def _timm(backbone: Backbone, path: Path, size: Size, workdir: AnyPath | None) -> Written:
    form = _timm_form(backbone, size)
    path.write_bytes(safetensors.numpy.save(form.tensors))

    def features(images: np.ndarray) -> np.ndarray:
        loaded = load_backbone(path, model=form.backbone.model, image_size=size)
        return loaded.features(np.asarray(backbone.preprocess(images)), normalized=True)

    return Written(form.reference, features)


def _hf(backbone: Backbone, path: Path, size: Size, workdir: AnyPath | None) -> Written:
    form = _timm_form(backbone, size)
    hub.write_hub(form, path, size, workdir)

    def features(images: np.ndarray) -> np.ndarray:
        return load_backbone(path).features(images)

    return Written(form.reference, features)


def _onnx(backbone: Backbone, path: Path, size: Size, workdir: AnyPath | None) -> Written:
    from ssl_jax.exporting import onnx_graph

    try:
        path.write_bytes(onnx_graph.to_onnx(_program(backbone), (*size, len(backbone.mean))))
    except onnx_graph.NoTranslation as error:
        raise ExportError(f"{error}; to='stablehlo' takes any backbone") from error
    return Written(backbone, functools.partial(onnx_graph.run, path))


def _stablehlo(backbone: Backbone, path: Path, size: Size, workdir: AnyPath | None) -> Written:
    (batch,) = jax_export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *size, len(backbone.mean)), jnp.float32)
    path.write_bytes(jax_export.export(jax.jit(_program(backbone)), platforms=PLATFORMS)(shape).serialize())

    def features(images: np.ndarray) -> np.ndarray:
        return np.asarray(jax_export.deserialize(bytearray(path.read_bytes())).call(images))

    return Written(backbone, features)


def _program(backbone: Backbone) -> Callable[[jax.Array], jax.Array]:
    """Images in 0..1 [batch, height, width, channels] -> features, with the weights inside."""
    variables = jax.tree.map(jnp.asarray, backbone.variables)

    # One image at a time, vectorized: a module may take len() of its images, which a batch of unknown size has not.
    @jax.vmap
    def program(image: jax.Array) -> jax.Array:
        return backbone.model.apply(variables, backbone.normalization(image[None]))[0]

    return program


WRITERS: dict[str, Writer] = {"timm": _timm, "hf": _hf, "onnx": _onnx, "stablehlo": _stablehlo}
LIBRARIES = {"onnx": ("onnx", "onnxruntime"), "stablehlo": ("flatbuffers",)}  # that jax.export writes programs with
