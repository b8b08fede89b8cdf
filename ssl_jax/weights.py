"""Backbones as safetensors files, with timm's and torchvision's names and layouts of tensors.

So timm loads a saved backbone: `timm.create_model("resnet50", num_classes=0).load_state_dict(load_file(...))`.
The file's own header says how to use it (architecture, normalization). backbone.json beside the file says the same to
people and other programs. Nothing is ever unpickled.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Num

from ssl_jax import models
from ssl_jax.data.augment import normalize
from ssl_jax.models import maps
from ssl_jax.models.adapt import EXAMPLE, as_backbone
from ssl_jax.workdir import files

FILE = "backbone.safetensors"
META = "ssl_jax"  # the entry of the header that holds the `meta` of save_backbone
META_KEYS = ("model", "image_size", "channels", "mean", "std")
# Used for weights that do not say their normalization. Nearly all published weights use this one.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Tensors that may be in a file and are ignored: a classifier, and a counter that no result depends on.
UNUSED = re.compile(r"(fc|head)\..*|.*\.num_batches_tracked")
MAX_SIDE = 2**16  # the largest side of images in pixels, and the largest number of channels
FLOATS = ("F16", "BF16", "F32", "F64")
PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl", ".pickle")

Variables = Mapping[str, Any]  # {"params": ..., "batch_stats": ...}, nested dicts of arrays


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen backbone: images in, features out.

    mean, std: of each channel, of images in 0..1; () if unknown. To change the normalization: dataclasses.replace.
    image_size: (height, width) that it was trained at; None if unknown. It takes other sizes if its model does.
    facts: what else its file says about it: model, method, step, and the data that it was trained on.
    """

    model: nn.Module
    variables: Variables
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def dim(self) -> int:
        return self.model.dim

    def preprocess(
        self, images: Num[np.ndarray | Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Normalizes images, uint8 or float in 0..1, as in training. Returns float32.

        Raises: ValueError for other values, another number of channels, or weights whose normalization is unknown.
        """
        if not self.mean:
            raise ValueError("these weights do not say how their images were normalized; pass normalized=True")
        if images.shape[-1] != len(self.mean):
            raise ValueError(f"these weights take images of {len(self.mean)} channels, got {images.shape}")
        if images.dtype != np.uint8 and images.size and not (images.min() > -0.01 and images.max() < 1.01):
            raise ValueError(
                f"images must be uint8 or float in 0..1, got {images.dtype} in {images.min():g}..{images.max():g}; "
                "images that are normalized already take normalized=True"
            )
        return normalize(images, self.mean, self.std)

    def features(
        self,
        images: Num[np.ndarray | Array, "batch height width channels"],
        normalized: bool = False,
        batch_size: int = 256,
    ) -> Float[np.ndarray, "batch dim"]:
        """Features, float32 (ResNet: averaged over positions; ViT: as the model pools).

        Args:
          images: uint8, or float in 0..1.
          normalized: whether images are normalized floats already, so that `preprocess` is skipped.
          batch_size: images on the device at once. A smaller last batch is padded, so that it is compiled once.
        Raises: ValueError as `preprocess`, and for images that the model cannot take.
        """
        return self._by_batches(self._apply, images, normalized, batch_size)

    def patch_features(
        self,
        images: Num[np.ndarray | Array, "batch height width channels"],
        normalized: bool = False,
        batch_size: int = 256,
    ) -> Float[np.ndarray, "batch rows columns dim"]:
        """Features of each patch or position, float32: `models.maps.patch_map`. Arguments are those of `features`.

        Raises: ValueError as `features`, and for a model that has none.
        """
        return self._by_batches(functools.partial(maps.patch_map, self.model), images, normalized, batch_size)

    def block_features(
        self,
        images: Num[np.ndarray | Array, "batch height width channels"],
        normalized: bool = False,
        batch_size: int = 256,
        *,
        blocks: int = 4,
        pool: str = "cls",
        norm: bool = True,
    ) -> Float[np.ndarray, "batch dims"]:
        """Features of a ViT's last blocks, concatenated, float32: see `models.maps.block_features`, also for `blocks`,
        `pool` and `norm`. The other arguments are those of `features`.

        Raises: ValueError as `features`, for a model that is no ViT, and for blocks or tokens that it has not.
        """
        function = functools.partial(maps.block_features, self.model, blocks=blocks, pool=pool, norm=norm)
        return self._by_batches(function, images, normalized, batch_size)

    def class_attention(
        self,
        images: Num[np.ndarray | Array, "batch height width channels"],
        normalized: bool = False,
        batch_size: int = 256,
    ) -> Float[np.ndarray, "batch heads rows columns"]:
        """Attention of a ViT's class token in the last block: `models.maps.class_attention`. Arguments are those of
        `features`.

        Raises: ValueError as `features`, and for a model without a class token.
        """
        return self._by_batches(functools.partial(maps.class_attention, self.model), images, normalized, batch_size)

    def _by_batches(
        self, function: Callable[[Variables, Array], Array], images: Any, normalized: bool, batch_size: int
    ) -> np.ndarray:
        """Applies `function` to the variables and the images, batch by batch."""
        h = None
        for start in range(0, len(images), batch_size):
            x = images[start : start + batch_size]
            x = jnp.asarray(x, jnp.float32) if normalized else self.preprocess(x)
            rows = len(x)
            if start and rows < batch_size:
                x = jnp.pad(x, ((0, batch_size - rows), (0, 0), (0, 0), (0, 0)))
            found = function(self.variables, x)[:rows]
            h = np.empty((len(images), *found.shape[1:]), np.float32) if h is None else h
            h[start : start + rows] = found
        if h is None:
            example = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
            return np.empty((0, *jax.eval_shape(function, self.variables, example).shape[1:]), np.float32)
        return h

    @functools.cached_property
    def _apply(self):
        return jax.jit(self.model.apply)


def save_backbone(directory: str | os.PathLike, variables: Variables, meta: Mapping[str, Any]) -> None:
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
    directory = Path(directory)
    with files.replacing(directory / FILE) as file:
        file.write(safetensors.numpy.save(tensors, header))
    with files.replacing((directory / FILE).with_suffix(".json")) as file:
        file.write((json.dumps(meta, indent=2, sort_keys=True) + "\n").encode())


def load_backbone(path: str | os.PathLike, model: Any = None) -> Backbone:
    """Loads the backbone of a run's directory, or of a safetensors file of ours, timm's or torchvision's.

    Args:
      path: a directory with backbone.safetensors, or a safetensors file.
      model: the architecture, for files that do not name one of models.MODELS. Either such a name; then the sizes of
        images and patches, the pooling and a small stem are found from the tensors. Or a module as `pretrain` takes it,
        `flax.linen` or `flax.nnx`, such as `models.create("resnet50", width=2)`.
    Returns: a Backbone. Weights that do not say how images were normalized, and take 3 channels, get ImageNet's
      normalization.
    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is pickled or damaged, does not say its architecture, or has other tensors than it.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if path.suffix in PICKLED:
        raise ValueError(_convert_recipe(path))
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; a run of ssl_jax train writes {FILE} into its workdir at its end")
    try:
        # The library compares the sizes in the header with the file's size before it returns any array.
        with safetensors.safe_open(path, framework="numpy") as file:
            return _read(file, path, model)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); copy or save it again") from error


def _read(file: Any, path: Path, model: Any) -> Backbone:
    meta = _read_meta(file, path)
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  it is no dict
    channels, facts = meta["channels"] if meta else _channels(shapes), meta or {}
    own = facts["model"].get("given") if meta else None
    if isinstance(model, str):
        facts = {**facts, "model": {"name": model, **_options(model, shapes)}}
        module = models.create(**facts["model"])
    elif model is not None:
        height, width = meta["image_size"] if meta else EXAMPLE
        module = as_backbone(model, (height, width, channels))
    elif own is not None:
        raise ValueError(
            f"{path} was trained with a network that a script gave, {own}; give it: load_backbone(path, model={own})"
        )
    elif meta is not None:
        try:
            module = models.create(**meta["model"])
            blocks = max(getattr(module, "depth", 0), sum(getattr(module, "stages", ())))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: its header names a model that cannot be made, {meta['model']}: {error}"
            ) from error
        if blocks > len(shapes):  # all blocks are made before tensors are compared; a million would take hours
            raise ValueError(f"{path} has {len(shapes)} tensors, too few for the {meta['model']} that its header names")
    else:
        raise ValueError(
            f"{path} does not say what architecture it is of; name it: load_backbone(..., model='resnet50'), "
            f"one of {', '.join(models.MODELS)}"
        )
    images = jax.ShapeDtypeStruct((1, *(meta["image_size"] if meta else (224, 224)), channels), jnp.float32)
    template: dict[tuple[str, ...], Any] = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), images))
    axes = {leaf: torch_axes(leaf, x.ndim) for leaf, x in template.items()}
    wanted = {torch_name(leaf): tuple(x.shape[axis] for axis in axes[leaf]) for leaf, x in template.items()}
    _check_shapes(path, shapes, wanted)
    variables = {}
    for leaf, order in axes.items():
        name = torch_name(leaf)
        if (kind := file.get_slice(name).get_dtype()) not in FLOATS:
            raise ValueError(f"{path}: tensor {name} holds {kind}, not floats ({', '.join(FLOATS)})")
        tensor = file.get_tensor(name).astype(np.float32)
        variables[leaf] = jnp.asarray(tensor.transpose(np.argsort(order)))
    if meta:
        mean, std = tuple(meta["mean"]), tuple(meta["std"])
    else:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((), ())
    image_size = tuple(meta["image_size"]) if meta else None
    return Backbone(module, unflatten_dict(variables), mean, std, image_size, facts=facts)


def _read_meta(file: Any, path: Path) -> dict[str, Any] | None:
    """The `meta` of save_backbone; None for a file that it did not write. Raises: ValueError for unusable meta."""
    text = (file.metadata() or {}).get(META)
    if text is None:
        return None
    try:
        meta = json.loads(text)
        size, channels, normalization = meta["image_size"], meta["channels"], (meta["mean"], meta["std"])
        sides_fit = all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in (*size, channels)) and len(size) == 2
        values_fit = all(len(of) == channels and all(isinstance(v, (int, float)) for v in of) for of in normalization)
        model = meta["model"]
        if sides_fit and values_fit and isinstance(model["given" if "given" in model else "name"], str):
            return meta
        reason = f"image_size {size}, channels {channels}, mean and std {normalization}"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(f"{path}: its header's entry {META!r} cannot be used ({reason}); copy or save the file again")


def _check_shapes(path: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError for the first tensor that is missing, not in the architecture, or of another shape."""
    unknown = [name for name in found if name not in wanted and not UNUSED.fullmatch(name)]
    for name, shape in wanted.items():
        if name not in found:
            has = f"; it has {unknown[0]}, which the architecture has not" if unknown else ""
            raise ValueError(f"{path} has no tensor {name} {list(shape)}{has}; is it of another architecture?")
        if found[name] != shape:
            raise ValueError(f"{path}: tensor {name} is {list(found[name])}, but the architecture's is {list(shape)}")
    if unknown:
        raise ValueError(f"{path} has a tensor {unknown[0]}, which the architecture has not; name another `model`")


def _options(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Options of the model `name` that can be told from the shapes of its tensors."""
    if name.startswith("vit") and {"patch_embed.proj.weight", "pos_embed"} <= shapes.keys():
        patch_size = shapes["patch_embed.proj.weight"][-1]
        side = round((shapes["pos_embed"][1] - 1) ** 0.5)
        pool = "mean" if "fc_norm.weight" in shapes else "cls"
        return {"patch_size": patch_size, "image_size": side * patch_size, "pool": pool}
    if name.startswith("resnet") and name != "resnet8" and shapes.get("conv1.weight", ())[-1:] == (3,):
        return {"stem": "small"}
    return {}


def _channels(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of channels of images, from the first convolution [channels out, channels in, height, width]."""
    first = shapes.get("conv1.weight") or shapes.get("patch_embed.proj.weight") or (0, 3)
    return first[1]


# Flax's name of an array -> torch's name. All other names (bias, cls_token, pos_embed) are the same in both.
ARRAYS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_name(path: tuple[str, ...]) -> str:
    """("params", "layer1_0", "bn1", "scale") -> "layer1.0.bn1.weight". path: collection, modules, array."""
    _, *modules, array = path
    return ".".join([*(re.sub(r"_(\d+)$", r".\1", module) for module in modules), ARRAYS.get(array, array)])


def torch_axes(path: tuple[str, ...], ndim: int) -> tuple[int, ...]:
    """For each of torch's axes, the axis of Flax's array: Flax's kernels [..., in, out] are [out, in, ...] in torch."""
    return (ndim - 1, ndim - 2, *range(ndim - 2)) if path[-1] == "kernel" else tuple(range(ndim))


def torch_tensors(variables: Variables) -> dict[str, np.ndarray]:
    """torch's name -> float32 array in torch's layout. Raises: ValueError if two arrays would have the same name."""
    tensors = {}
    for path, value in flatten_dict(variables).items():
        name, value = torch_name(path), np.asarray(value, np.float32)
        if name in tensors:
            raise ValueError(f"two arrays would be saved as {name}, one of them {'/'.join(path)}; rename its module")
        tensors[name] = np.array(value.transpose(torch_axes(path, value.ndim)), order="C")
    return tensors


def from_torch(tensors: Mapping[str, np.ndarray], like: Variables) -> Variables:
    """The inverse of `torch_tensors`: variables from tensors. like: variables with the same names and shapes."""
    of: Any = flatten_dict(like)
    leaves = {
        path: tensors[torch_name(path)].transpose(np.argsort(torch_axes(path, np.ndim(x)))) for path, x in of.items()
    }
    return unflatten_dict(leaves)


def _convert_recipe(path: Path) -> str:
    converted = path.with_suffix(".safetensors").name
    return (
        f"{path} is pickled, and opening it could run code from it; convert it once, where torch is installed: "
        f"python -c \"import torch, safetensors.torch as s; w = torch.load({path.name!r}, map_location='cpu', "
        "weights_only=True); w = w.get('state_dict', w); "
        f's.save_file({{k: v.contiguous() for k, v in w.items()}}, {converted!r})"'
    )
