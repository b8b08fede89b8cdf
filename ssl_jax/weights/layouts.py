"""Tensors of other libraries' and authors' files, translated to timm's names and shapes, which are ours.

Nothing is read before its shape is checked: a `Stored` is a promise of a tensor.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

Rule = tuple[str, str | Callable[[re.Match[str]], str]]  # arguments of re.sub


class Stored(NamedTuple):
    """A tensor in a file. dtype: as safetensors names it, such as "F32". read: gives its values."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> "Stored":
        return Stored(shape, self.dtype, lambda: function(self.read()))

    def reshape(self, shape: tuple[int, ...]) -> "Stored":
        return self.map(lambda values: values.reshape(shape), shape)


Tensors = Mapping[str, Stored]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How some files name their tensors.

    whose: for messages. marker: the name of a tensor that shows the layout; others may follow a prefix alone. rules:
    applied to each name in this order.
    """

    whose: str
    marker: str
    rules: tuple[Rule, ...] = ()


def _shifted(pattern: str, form: str, shift: Callable[[int], int] = lambda n: n) -> Rule:
    """pattern has a group of digits, which form's "{}" gets after `shift`; other groups are named and kept."""

    def replace(found: re.Match[str]) -> str:
        return form.format(shift(int(found[1])), *found.groups()[1:])

    return pattern, replace


# DINO, DINOv2, DINOv3, MAE, MoCo v3, SwAV, I-JEPA and others name most tensors as timm does.
AUTHORS: tuple[Rule, ...] = (
    (r"^(register_tokens|storage_tokens)$", "reg_token"),
    (r"^blocks\.\d+\.(\d+)\.(?=[a-z])", r"blocks.\1."),  # DINOv2's blocks in chunks
    (r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),
    (r"\.attn\.([qkv])_bias$", r".attn.\1.bias"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
SWIN: tuple[Rule, ...] = (  # the authors count a merging of patches to the stage before it
    _shifted(r"^layers\.(\d+)\.downsample\.", "layers.{}.downsample.", lambda n: n + 1),
)
# Hugging Face's, before and after version 5: ViT, ViTMAE, DINOv2, DINOv3, CLIP, Swin
HUGGING_FACE: tuple[Rule, ...] = (
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.(patch_embeddings\.projection|patch_embeddings|patch_embedding)\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^embeddings\.", ""),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(post_layernorm|layernorm)\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.blocks\.", r"layers.\1.blocks."),
    _shifted(r"^encoder\.layers\.(\d+)\.downsample\.", "layers.{}.downsample.", lambda n: n + 1),
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.(?!blocks|downsample)", r"blocks.\1."),
    (r"\.attention\.(?:self\.|relative_position_bias\.)?relative_position", ".attn.relative_position"),
    (r"\.(?:attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.(?:attention\.attention|attention\.self|attention|self_attn)\.([qkv])(?:uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.(?:layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(?:layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
)
OPENAI: tuple[Rule, ...] = (
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
TORCHVISION_VIT: tuple[Rule, ...] = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)
TORCHVISION_SWIN: tuple[Rule, ...] = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    _shifted(r"^features\.(\d*[13579])\.", "layers.{}.blocks.", lambda n: n // 2),
    _shifted(r"^features\.(\d*[02468])\.", "layers.{}.downsample.", lambda n: n // 2),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
TORCHVISION_CONVNEXT: tuple[Rule, ...] = (
    (r"^features\.0\.", "stem."),
    _shifted(r"^features\.(\d*[13579])\.", "stages.{}.blocks.", lambda n: n // 2),
    _shifted(r"^features\.(\d*[02468])\.", "stages.{}.downsample.", lambda n: n // 2),
    (r"\.block\.0\.", ".conv_dw."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".mlp.fc1."),
    (r"\.block\.5\.", ".mlp.fc2."),
    (r"\.layer_scale$", ".gamma"),
    (r"^classifier\.0\.", "head.norm."),
)
TORCHVISION_EFFICIENTNET: tuple[Rule, ...] = (
    (r"^features\.0\.0\.", "conv_stem."),
    (r"^features\.0\.1\.", "bn1."),
    (r"^features\.8\.0\.", "conv_head."),
    (r"^features\.8\.1\.", "bn2."),
    _shifted(r"^features\.(\d)\.(\d+)\.block\.", "blocks.{}.{}.", lambda n: n - 1),
    (r"\.fc1\.", ".conv_reduce."),
    (r"\.fc2\.", ".conv_expand."),
    # The first stage's blocks do not expand their channels.
    (r"^(blocks\.0\.\d+)\.0\.0\.", r"\1.conv_dw."),
    (r"^(blocks\.0\.\d+)\.0\.1\.", r"\1.bn1."),
    (r"^(blocks\.0\.\d+)\.1\.conv_", r"\1.se.conv_"),
    (r"^(blocks\.0\.\d+)\.2\.0\.", r"\1.conv_pw."),
    (r"^(blocks\.0\.\d+)\.2\.1\.", r"\1.bn2."),
    (r"^(blocks\.[1-9]\.\d+)\.0\.0\.", r"\1.conv_pw."),
    (r"^(blocks\.[1-9]\.\d+)\.0\.1\.", r"\1.bn1."),
    (r"^(blocks\.[1-9]\.\d+)\.1\.0\.", r"\1.conv_dw."),
    (r"^(blocks\.[1-9]\.\d+)\.1\.1\.", r"\1.bn2."),
    (r"^(blocks\.[1-9]\.\d+)\.2\.conv_", r"\1.se.conv_"),
    (r"^(blocks\.[1-9]\.\d+)\.3\.0\.", r"\1.conv_pwl."),
    (r"^(blocks\.[1-9]\.\d+)\.3\.1\.", r"\1.bn3."),
)
CONVNEXT: tuple[Rule, ...] = (  # the authors', DINOv3's, Hugging Face's of both
    (r"^(?:model|encoder)\.", ""),
    (r"^(?:stages\.0\.downsample_layers|downsample_layers\.0)\.", "stem."),
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^(?:layernorm|layer_norm|norm)\.", "head.norm."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(?:downsampling_layer|downsample_layers)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(?:layers\.)?(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.(?:dwconv|depthwise_conv)\.", ".conv_dw."),
    (r"\.(?:layernorm|layer_norm)\.", ".norm."),
    (r"\.(?:pwconv|pointwise_conv)([12])\.", r".mlp.fc\1."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"\.grn\.(?:gamma|weight)$", ".mlp.grn.weight"),
    (r"\.grn\.(?:beta|bias)$", ".mlp.grn.bias"),
)
RESNET: tuple[Rule, ...] = (  # Hugging Face's
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    _shifted(r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.", "layer{}.{}.", lambda n: n + 1),
    _shifted(r"(?<=\.)layer\.(\d+)\.convolution\.", "conv{}.", lambda n: n + 1),
    _shifted(r"(?<=\.)layer\.(\d+)\.normalization\.", "bn{}.", lambda n: n + 1),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
)
SEQUENTIAL: tuple[Rule, ...] = (  # nn.Sequential(*list(resnet.children())[:-1])
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    _shifted(r"^(\d)\.", "layer{}.", lambda n: n - 3),
)

LAYOUTS = (  # the first whose marker is found
    Layout("OpenAI's CLIP", "ln_pre.weight", OPENAI),
    Layout("torchvision's Swin", "features.1.0.attn.relative_position_bias_table", TORCHVISION_SWIN),
    Layout("torchvision's ConvNeXt", "features.1.0.layer_scale", TORCHVISION_CONVNEXT),
    Layout("torchvision's EfficientNet", "features.1.0.block.0.0.weight", TORCHVISION_EFFICIENTNET),
    Layout("torchvision's ViT", "conv_proj.weight", TORCHVISION_VIT),
    Layout("Hugging Face's ResNet", "embedder.embedder.convolution.weight", RESNET),
    Layout("Hugging Face's ConvNeXt", "encoder.stages.0.layers.0.dwconv.weight", CONVNEXT),
    Layout("Hugging Face's ConvNeXt of DINOv3", "model.stages.0.layers.0.depthwise_conv.weight", CONVNEXT),
    Layout("Hugging Face's ConvNeXt of DINOv3", "stages.0.layers.0.depthwise_conv.weight", CONVNEXT),
    Layout("ConvNeXt's authors'", "downsample_layers.0.0.weight", CONVNEXT),
    Layout("Hugging Face's", "embeddings.patch_embeddings.projection.weight", HUGGING_FACE),
    Layout("Hugging Face's DINOv3", "embeddings.patch_embeddings.weight", HUGGING_FACE),
    Layout("Hugging Face's CLIP", "embeddings.patch_embedding.weight", HUGGING_FACE),
    Layout("a sequence of a ResNet's parts", "4.0.conv1.weight", SEQUENTIAL),
    Layout("Swin's authors'", "layers.0.downsample.reduction.weight", SWIN),
    Layout("timm's or the authors'", "patch_embed.proj.weight", AUTHORS),
    Layout("timm's or the authors'", "stem.0.weight"),
    Layout("timm's or the authors'", "conv_stem.weight"),
    Layout("timm's or torchvision's", "layer1.0.conv1.weight"),
)


def find(names: Iterable[str]) -> tuple[Layout, list[str]] | None:
    """The layout of a file's tensors, and every prefix that its names have, in order; None for no known layout."""
    names = list(names)
    for layout in LAYOUTS:
        ends = [name for name in names if name == layout.marker or name.endswith(f".{layout.marker}")]
        if ends:
            return layout, sorted(name.removesuffix(layout.marker) for name in ends)
    return None


def translate(tensors: Tensors, layout: Layout, prefix: str) -> dict[str, Stored]:
    """timm's name -> tensor, of the tensors whose names start with the prefix."""
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    found: dict[str, Stored] = {}
    for name, tensor in inside.items():
        for pattern, replacement in layout.rules:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return _join(found)


def _join(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Queries, keys and values as one tensor, and so a SwiGLU's two linear maps. Keys without a bias get zeros."""
    joined: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"(.*\.attn)\.([qkv])\.(weight|bias)", name):
            parts = [tensors.get(f"{found[1]}.{part}.{found[3]}") for part in "qkv"]
            zeros = Stored(tensor.shape, tensor.dtype, functools.partial(np.zeros, tensor.shape, np.float32))
            joined[f"{found[1]}.qkv.{found[3]}"] = _concatenate([part or zeros for part in parts])
        elif found := re.fullmatch(r"(.*\.mlp\.fc1)_([gx])\.(weight|bias)", name):
            parts = [tensors.get(f"{found[1]}_{part}.{found[3]}") for part in "gx"]
            joined[f"{found[1]}.{found[3]}"] = _concatenate([part for part in parts if part])
        elif name.endswith(".attn.qkv.bias_mask"):
            continue
        else:
            joined[name] = tensor
    for name in tensors:
        if name.endswith(".attn.qkv.bias_mask"):  # DINOv3's authors keep a bias of keys that does not count
            bias = name.removesuffix("_mask")
            joined[bias] = joined[bias].map(_without_keys, joined[bias].shape)
    return joined


def with_last_norm(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """A ConvNeXt V2's tensors, with its last LayerNorm as it begins, 1 and 0, if the file has none.

    FCMAE trains the network before it; timm, too, loads such files (`convnextv2_*.fcmae`) in this way.
    """
    if "stages.0.blocks.0.mlp.grn.weight" not in tensors or "head.norm.weight" in tensors:
        return tensors
    shape = tensors[max(name for name in tensors if name.endswith(".conv_dw.weight"))].shape[:1]
    ones, zeros = (functools.partial(np.full, shape, value, np.float32) for value in (1.0, 0.0))
    made = {"head.norm.weight": Stored(shape, "F32", ones), "head.norm.bias": Stored(shape, "F32", zeros)}
    return {**tensors, **made}


def _without_keys(bias: np.ndarray) -> np.ndarray:
    queries, _, values = np.split(bias, 3)
    return np.concatenate([queries, np.zeros_like(queries), values])


def _concatenate(parts: list[Stored]) -> Stored:
    first = parts[0]
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    return Stored(shape, first.dtype, lambda: np.concatenate([part.read() for part in parts]))


def timm_tensors(name: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our tensors with the names that timm's model `name` has: those of DINOv3's ViTs differ.

    Raises: ValueError for a bias of keys, which timm's model has not.
    """
    if not name.endswith("_dinov3") or not name.startswith("vit"):
        return dict(tensors)
    found: dict[str, np.ndarray] = {}
    gated = tensors["blocks.0.mlp.fc1.weight"].shape[0] != tensors["blocks.0.mlp.fc2.weight"].shape[1]
    for key, tensor in tensors.items():
        if key.endswith("attn.qkv.bias"):
            queries, keys, values = np.split(tensor, 3)
            if keys.any():
                raise ValueError(f"timm's {name} has no bias of keys, and {key} has one that is not 0")
            stem = key.removesuffix("qkv.bias")
            found |= {f"{stem}q_bias": queries, f"{stem}v_bias": values}
        elif gated and ".mlp.fc1." in key:
            gate, value = np.split(tensor, 2)
            found |= {key.replace("fc1", "fc1_g"): gate, key.replace("fc1", "fc1_x"): value}
        else:
            found[re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key)] = tensor
    return found
