"""Loads backbones: our own files, timm's, torchvision's, Hugging Face's and the authors'. Nothing is ever unpickled."""

# pyright: reportUnknownMemberType=false

import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from ssl_jax import models, paths
from ssl_jax.models import swin
from ssl_jax.models.adapt import EXAMPLE, as_backbone
from ssl_jax.models.positions import patch_grid
from ssl_jax.models.vit import ViT
from ssl_jax.paths import AnyPath
from ssl_jax.weights import adapting, layouts
from ssl_jax.weights.backbone import Backbone
from ssl_jax.weights.header import FILE, META, VALUE_KEYS, as_tuple, checked_meta, read_meta
from ssl_jax.weights.layouts import Stored
from ssl_jax.weights.names import Leaves, leaves_of, nested, torch_axes, torch_name

HUB_FILE = "model.safetensors"  # of timm's and Hugging Face's directories, beside config.json
# Used for weights that do not say their normalization. Nearly all published weights use the first one.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Tensors that may be in a file and are ignored: heads, what only pre-training needs, and what no result depends on.
UNUSED = re.compile(
    r"(fc|head|heads|head_dist|classifier|pooler|projection_head|prototypes|projector|predictor|decoder\w*|proj_head|"
    r"local_cls_norm|rope_embed|norms)\..*|(mask_token|decoder_\w+|proj)(\..*)?|"
    r".*\.(num_batches_tracked|relative_position_index|attn_mask|position_ids)|position_ids"
)
FLOATS = ("F16", "BF16", "F32", "F64")
PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl", ".pickle")


class Changes(NamedTuple):
    """What is asked for that differs from the file; see `load_backbone`."""

    prefix: str | None
    image_size: tuple[int, int] | None
    patch_size: int | None
    channels: int | None
    inflate: str


def load_backbone(
    path: str | os.PathLike[str],
    model: Any = None,
    *,
    prefix: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    channels: int | None = None,
    inflate: str = "sum",
) -> Backbone:
    """Loads the backbone of a run's directory, or of a safetensors file.

    The tensors' names may be ours, timm's, torchvision's, Hugging Face's, or those of the authors of DINO, DINOv2,
    DINOv3, MAE, MoCo, SwAV, I-JEPA, CLIP, Swin and ConvNeXt.

    Args:
      path: a directory of a run, of timm's or of Hugging Face's; or a safetensors file.
      model: the architecture, for files that do not name one of models.MODELS. Either such a name; then the sizes of
        images and patches, the pooling and a small stem are found from the tensors. Or a module as `pretrain` takes it,
        `flax.linen` or `flax.nnx`, such as `models.create("resnet50", width=2)`.
      prefix: of the backbone's tensors, for a file with several networks, such as "teacher.backbone.".
      image_size: of the images, in pixels, a square's side or (height, width). Learned positions are resized to it.
      patch_size: side of a patch in pixels. The patch embedding is resized to it (FlexiViT, arXiv:2212.08013).
      channels: of the images, if others than the file's. The first convolution is made for them by `inflate`.
      inflate: "sum": each channel has the sum of the kernels of all old channels, divided by the number of the new, so
        that channels that all show a gray image give what the old ones gave. "mean": each has the mean of the old ones.
        "first": the first channels keep their kernels, further ones start at 0.
    Returns: a Backbone. Weights that do not say how images were normalized, and take 3 channels, get ImageNet's
      normalization, or CLIP's if they have its architecture. With other `channels` than the file's it is unknown.
      facts["fitted"] has the tensors that were made for another size, if any: {name: (old shape, new shape)}.
    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is pickled or damaged, does not say its architecture, or has other tensors than it.
    """
    path = find_file(path)
    if path.suffix in PICKLED:
        raise ValueError(_convert_recipe(path))
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; a run of ssl_jax train writes {FILE} into its workdir when it ends")
    if inflate not in adapting.INFLATIONS:
        raise ValueError(f"inflate={inflate!r} is unknown; it is one of {', '.join(adapting.INFLATIONS)}")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    changes = Changes(prefix, size, patch_size, channels, inflate)
    try:
        # The library compares the sizes in the header with the file's size before it returns any array.
        with paths.local(path) as copy, cast(Any, safetensors.safe_open(copy, framework="numpy")) as file:
            return _read(file, path, model, changes)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or save it again") from error


def find_file(path: str | os.PathLike[str]) -> AnyPath:
    """The file that `load_backbone` reads for this path. It need not be there."""
    path = paths.path(path)
    if not path.is_dir():
        return path
    return path / HUB_FILE if (path / HUB_FILE).is_file() and not (path / FILE).is_file() else path / FILE


def model_in(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The name and options of the architecture that a run's directory or a file names; {} if it names none.

    Raises: as `load_backbone`.
    """
    path = find_file(path)
    with paths.local(path) as copy, cast(Any, safetensors.safe_open(copy, framework="numpy")) as file:
        meta = read_meta(file, path)
    if meta is not None:
        return meta["model"]
    name = _hub_config(path).get("model")
    return {"name": name.partition(".")[0]} if name else {}


def _read(file: Any, path: AnyPath, model: Any, changes: Changes) -> Backbone:
    meta = read_meta(file, path)
    tensors = {name: _stored(file, name) for name in file.keys()}  # noqa: SIM118  it is no dict
    hub = _hub_config(path) if meta is None else {}
    if meta is None:
        tensors = _translated(path, tensors, changes.prefix)
        meta = hub.get("meta")
        model = model or (None if meta else hub.get("model"))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    old_channels = meta["channels"] if meta else adapting.channels_of(shapes)
    channels = changes.channels or old_channels
    size: tuple[int, int] | None = hub.get("image_size")
    if meta or changes.image_size:
        height, width = changes.image_size or (meta or {})["image_size"]
        size = height, width
    height, width = size or EXAMPLE
    module, facts = _module(path, model, meta, shapes, changes, (height, width, channels))
    images = jax.ShapeDtypeStruct((1, *(size or (224, 224)), channels), jnp.float32)
    template = leaves_of(jax.eval_shape(module.init, jax.random.key(0), images))
    axes = {leaf: torch_axes(leaf, x.ndim) for leaf, x in template.items()}
    wanted = {torch_name(leaf): tuple(x.shape[axis] for axis in axes[leaf]) for leaf, x in template.items()}
    fitted = adapting.fit(
        tensors,
        wanted,
        class_position=getattr(module, "class_position", True),
        grid=_grid(module) if changes.image_size or changes.patch_size else None,
        patch_size=changes.patch_size,
        channels=changes.channels,
        inflate=changes.inflate,
    )
    if resized := adapting.resized(tensors, fitted):
        facts = {**facts, "fitted": resized}
    tensors = fitted
    _check_shapes(path, {name: tensor.shape for name, tensor in tensors.items()}, wanted)
    variables: Leaves = {}
    for leaf, order in axes.items():
        values = _values(path, torch_name(leaf), tensors[torch_name(leaf)])
        variables[leaf] = jnp.asarray(values.transpose(np.argsort(order)))
    if channels != old_channels:
        mean, std = (), ()
    elif meta:
        mean, std = tuple(meta["mean"]), tuple(meta["std"])
    else:
        known = OPENAI if "norm_pre.weight" in tensors else IMAGENET  # of these architectures, CLIP's alone has it
        mean, std = hub.get("normalization", known) if channels == 3 else ((), ())
    of_values = VALUE_KEYS if meta and channels == old_channels else ()
    found: dict[str, Any] = {key: as_tuple(meta[key]) for key in of_values if meta and key in meta}
    return Backbone(module, nested(variables), mean, std, size, {**facts, "channels": channels}, **found)


def _stored(file: Any, name: str) -> Stored:
    tensor = file.get_slice(name)
    return Stored(tuple(tensor.get_shape()), tensor.get_dtype(), lambda: file.get_tensor(name))


def _values(path: AnyPath, name: str, tensor: Stored) -> np.ndarray:
    """Raises: ValueError for what is not floats, or not finite."""
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{path}: tensor {name} holds {tensor.dtype}, not floats ({', '.join(FLOATS)})")
    values = tensor.read().astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{path}: tensor {name} holds NaN or infinite values; its training diverged, use other weights"
        )
    return values


def _translated(path: AnyPath, tensors: dict[str, Stored], prefix: str | None) -> dict[str, Stored]:
    """With timm's names. Raises: ValueError for an unknown prefix, or several to choose from."""
    found = layouts.find(tensors)
    if found is None:  # of a module of the user's own, perhaps
        inside = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix or "")}
        if not inside:
            raise ValueError(f"{path} has no tensor whose name starts with prefix={prefix!r}; it has {min(tensors)}")
        return {name.removeprefix(prefix or ""): tensor for name, tensor in inside.items()}
    layout, prefixes = found
    listed = ", ".join(map(repr, prefixes))
    if prefix is None and len(prefixes) > 1:
        raise ValueError(
            f"{path} has {len(prefixes)} backbones, with {layout.whose} names; choose one by prefix, one of {listed}"
        )
    if prefix is not None and prefix not in prefixes:
        raise ValueError(f"{path} has no backbone with prefix={prefix!r}; its tensors' prefix is {listed}")
    return layouts.with_last_norm(layouts.translate(tensors, layout, prefixes[0] if prefix is None else prefix))


def _module(
    path: AnyPath,
    model: Any,
    meta: dict[str, Any] | None,
    shapes: Mapping[str, tuple[int, ...]],
    changes: Changes,
    image_shape: tuple[int, int, int],
) -> tuple[nn.Module, dict[str, Any]]:
    """(the network, what is known of it)"""
    facts = meta or {}
    if isinstance(model, str):
        name = model.partition(".")[0]  # timm writes which weights after a point
        usual = models.create(name)
        options = {"name": name, **_options(name, usual, shapes), **_requested(usual, changes)}
        return models.create(**options), {**facts, "model": options}
    if model is not None:
        return as_backbone(model, image_shape), facts
    if meta is None:
        raise ValueError(
            f"{path} does not say which architecture it has; name it, --model=resnet50 or "
            f"load_backbone(..., model='resnet50'), one of {', '.join(models.MODELS)}"
        )
    if own := meta["model"].get("given"):
        raise ValueError(
            f"{path} was trained with a network that a script gave, {own}; give it: load_backbone(path, model={own})"
        )
    try:
        options = meta["model"] | _requested(models.create(meta["model"]["name"]), changes)
        module = models.create(**options)
        blocks = max(getattr(module, "depth", 0), sum(getattr(module, "stages", ())))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its header names a model that cannot be made, {meta['model']}: {error}") from error
    if blocks > len(shapes):  # all blocks are made before tensors are compared; a million would take hours
        raise ValueError(f"{path} has {len(shapes)} tensors, too few for the {meta['model']} that its header names")
    return module, {**facts, "model": options}


def _requested(model: nn.Module, changes: Changes) -> dict[str, Any]:
    """Options of the model that the changes ask for. Raises: ValueError for patches of a model that has none."""
    options: dict[str, Any] = {}
    if changes.image_size and hasattr(model, "image_size"):
        options["image_size"] = changes.image_size
    if changes.patch_size:
        if not hasattr(model, "patch_size"):
            raise ValueError(f"patch_size={changes.patch_size} is for ViTs, and {type(model).__name__} has no patches")
        options["patch_size"] = changes.patch_size
    return options


def _grid(module: nn.Module) -> tuple[int, int] | None:
    size, patch = getattr(module, "image_size", None), getattr(module, "patch_size", None)
    if size is None or patch is None:
        return None
    return patch_grid((size, size) if isinstance(size, int) else size, patch)


def _hub_config(path: AnyPath) -> dict[str, Any]:
    """What config.json and preprocessor_config.json beside timm's and Hugging Face's model.safetensors say: model (only
    timm's), image_size, normalization; and meta, as `save_backbone` has it, in a directory that we exported."""
    if path.name != HUB_FILE:
        return {}
    found: dict[str, Any] = {}
    try:
        config = _json(path.with_name("config.json"))
        of_images = _json(path.with_name("preprocessor_config.json"))
        timm = config.get("pretrained_cfg", {})
        if META in config:
            found["meta"] = checked_meta(
                json.dumps(config[META]), f"{path.with_name('config.json')}: its entry {META!r}"
            )
        if "architecture" in config:
            found["model"] = str(config["architecture"])
        mean, std = (timm.get(k) or of_images.get(f"image_{k}") for k in ("mean", "std"))
        if mean and std:
            found["normalization"] = tuple(map(float, mean)), tuple(map(float, std))
        if timm.get("input_size"):
            found["image_size"] = tuple(map(int, timm["input_size"][1:]))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path.parent}: its config.json cannot be used ({error}); copy it again") from error
    return found


def _json(path: AnyPath) -> dict[str, Any]:
    return json.loads(paths.read_bytes(path)) if path.is_file() else {}


def _check_shapes(path: AnyPath, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError for the first tensor that is missing, not in the architecture, or of another shape."""
    unknown = [name for name in found if name not in wanted and not UNUSED.fullmatch(name)]
    for name, shape in wanted.items():
        if name not in found:
            has = f"; it has {unknown[0]}, which the architecture does not have" if unknown else ""
            raise ValueError(f"{path} has no tensor {name} {list(shape)}{has}; does it have another architecture?")
        if found[name] != shape:
            raise ValueError(
                f"{path}: tensor {name} is {list(found[name])}, but the architecture's is {list(shape)}"
                f"{_remedy(name, found[name], shape)}"
            )
    if unknown:
        raise ValueError(
            f"{path} has a tensor {unknown[0]}, which the architecture does not have; name another `model`"
        )


def _remedy(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Which option of `load_backbone` fits a tensor to the architecture; "" if none does."""
    if name == "pos_embed" and found[2:] == wanted[2:]:
        return "; its positions are for images of another size: give image_size"
    if name == "patch_embed.proj.weight" and found[:2] == wanted[:2]:
        return "; its patches are of another size: give patch_size"
    return ""


def _options(name: str, usual: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Options of the model `name` that can be told from the shapes of its tensors. usual: the model without options."""
    if isinstance(usual, ViT) and "patch_embed.proj.weight" in shapes:
        patch_size = shapes["patch_embed.proj.weight"][-1]
        options: dict[str, Any] = {"patch_size": patch_size}
        if "pos_embed" in shapes:
            rows = shapes["pos_embed"][-2]
            classes = int(usual.class_token and (usual.class_position or round(rows**0.5) ** 2 != rows))
            options["image_size"] = round((rows - classes) ** 0.5) * patch_size
        if "fc_norm.weight" in shapes:
            options["pool"] = "mean"
        found = {
            "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
            "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
            "bias": "blocks.0.attn.proj.bias" in shapes,
            "norm_kind": "layer" if "blocks.0.norm1.bias" in shapes else "rms",
            "registers": shapes.get("reg_token", (1, 0))[1],
        }
        return options | {option: value for option, value in found.items() if getattr(usual, option) != value}
    if name.startswith("swin"):
        return swin.options_of(shapes)
    if name.startswith("convnext") and "stem.0.weight" in shapes:
        return {
            "patch_size": shapes["stem.0.weight"][-1],
            "pool": "norm_mean" if "norm_pre.weight" in shapes else "mean",
        }
    resnet = name.startswith(("resnet", "resnext", "wide_resnet")) and name != "resnet8"
    if resnet and shapes.get("conv1.weight", ())[-1:] == (3,):
        return {"stem": "small"}
    return {}


def _convert_recipe(path: AnyPath) -> str:
    converted = path.with_suffix(".safetensors").name
    return (
        f"{path} is pickled, and opening it could run code that it holds; convert it once, where torch is installed: "
        'python -c "import argparse, torch, safetensors.torch as s; '
        "torch.serialization.add_safe_globals([argparse.Namespace]); "
        "f = lambda x, n='': {n: x.contiguous().clone()} if torch.is_tensor(x) else {k: v for i in x for k, v in "
        "f(x[i], (n and n + '.') + str(i)).items()} if isinstance(x, dict) else {}; "
        f"s.save_file(f(torch.load({path.name!r}, map_location='cpu', weights_only=True)), {converted!r})\""
    )
