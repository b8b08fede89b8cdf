"""Makes layouts.npz: what small networks of other libraries and of authors give for weights made from names.

The weights are files' tensors, with the names and shapes that these networks have. Run with torch, torchvision,
transformers and the authors' repositories: python tests/references/make_layouts.py DIRECTORY, which holds clones named
dinov2, dinov3, mae, ijepa, moco-v3, CLIP, Swin-Transformer and ConvNeXt-V2. The stored file is of torch 2.14.1,
torchvision 0.29.1, transformers 5.24.0, timm 1.0.31.
"""

import argparse
import functools
import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
from make_models import images, named_tensor

VIT = {"dim": 48, "depth": 2, "heads": 3, "image_size": 32}
HUGGING_FACE_VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "image_size": 32,
    "patch_size": 16,
}
SIZE = (32, 32)


def value(name, shape):
    """The weights of a file: `named_tensor`, except for what DINOv3's files have of their own: a mask of biases, which
    leaves out those of keys, and a second name of ConvNeXt's last LayerNorm."""
    if name.endswith("bias_mask"):
        return np.repeat(np.float32([1, 0, 1]), shape[0] // 3)
    return named_tensor(name.replace("norms.3.", "norm."), shape)


class Maker:
    def __init__(self):
        self.saved = {}

    def add(self, key, model, fields, network, forward, *, prefix="", names=None, more=(), size=SIZE):
        """key: of the case. model, fields: ours. forward: network, images -> features. prefix: of names in the file.

        names: of the tensors in the file, where they are not those of state_dict. more: (name, shape) of tensors that
        the file has, too.
        """
        import torch

        state = network.state_dict()
        names = names or {name: name for name in state}
        fixed = ("num_batches_tracked", "periods", "bias_mask", "relative_position_index", "attn_mask", "position_ids")
        weights = {
            name: torch.from_numpy(value(prefix + names[name], tuple(tensor.shape)).reshape(tensor.shape))
            for name, tensor in state.items()
            if not name.endswith(fixed)
        }
        with torch.no_grad():
            network.load_state_dict(state | weights)
            x = torch.from_numpy(images(size).transpose(0, 3, 1, 2).copy())
            features = forward(network.eval(), x).reshape(len(x), -1)
        kept = {prefix + names[name]: tuple(tensor.shape) for name, tensor in state.items()}
        of_case = {"model": model, "fields": fields, "shapes": kept | dict(more), "size": size, "prefix": prefix}
        self.saved[key] = features.numpy()
        self.saved[f"{key}/case"] = np.array(json.dumps(of_case))
        print(f"{key}: {tuple(features.shape)}, standard deviation {features.std():.3f}")


def saved_names(network):
    """Name in state_dict -> name in the file that Hugging Face's save_pretrained writes; {} if it joins tensors."""
    import torch
    from safetensors.torch import load_file

    with torch.no_grad():
        for i, tensor in enumerate(network.state_dict().values()):
            tensor.fill_(float(i))
    with tempfile.TemporaryDirectory() as directory:
        network.save_pretrained(directory)
        numbers = {float(t.flatten()[0]): name for name, t in load_file(Path(directory) / "model.safetensors").items()}
    names = {name: numbers.get(float(i)) for i, name in enumerate(network.state_dict())}
    return names if all(names.values()) else {}


def torchvision_cases(make):
    import torch
    from torchvision.models import convnext, efficientnet, resnet, swin_transformer, vision_transformer

    vit = vision_transformer.VisionTransformer(32, 16, 2, 3, 48, 192)
    heads = dict.fromkeys(("heads.head.weight",), (1000, 48)) | {"heads.head.bias": (1000,)}
    vit.heads = torch.nn.Identity()
    make.add("torchvision_vit", "vit_tiny_patch16_224", VIT, vit, lambda n, x: n(x), more=heads)
    setting = [convnext.CNBlockConfig(a, b, 1) for a, b in ((8, 16), (16, 32), (32, 64), (64, None))]
    net = convnext.ConvNeXt(setting, num_classes=1)
    net.classifier[2] = torch.nn.Identity()
    fields = {"stages": [1, 1, 1, 1], "base_width": 8}
    make.add("torchvision_convnext", "convnext_tiny", fields, net, lambda n, x: n(x), size=(64, 64))
    swin = swin_transformer.SwinTransformer([4, 4], 24, [2, 2], [3, 6], [7, 7])
    swin.head = torch.nn.Identity()
    fields = {"base_width": 24, "stages": [2, 2], "head_width": 8, "image_size": 56}
    make.add("torchvision_swin", "swin_tiny_patch4_window7_224", fields, swin, lambda n, x: n(x), size=(56, 56))
    kinds = ((1, 3, 1, 32, 16), (6, 3, 2, 16, 24), (6, 5, 2, 24, 40), (6, 3, 2, 40, 80))
    kinds += ((6, 5, 1, 80, 112), (6, 5, 2, 112, 192), (6, 3, 1, 192, 320))
    stages = [1, 2, 1, 1, 1, 1, 1]
    settings = [efficientnet.MBConvConfig(*kind, count, 0.25) for kind, count in zip(kinds, stages, strict=True)]
    net = efficientnet.EfficientNet(settings, dropout=0.0, num_classes=1)
    net.classifier = torch.nn.Identity()
    fields = {"stages": stages, "width": 0.25}
    more = {"classifier.1.weight": (1000, 320), "classifier.1.bias": (1000,)}
    make.add("torchvision_efficientnet", "efficientnet_b0", fields, net, lambda n, x: n(x), more=more, size=(64, 64))
    net = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])
    sequence = torch.nn.Sequential(*list(net.children())[:-1])
    fields = {"stages": [1, 1, 1, 1]}
    make.add("sequence", "resnet18", fields, sequence, lambda n, x: n(x), prefix="backbone.")
    net.fc = torch.nn.Identity()
    more = {"module.projection_head.0.weight": (8, 512), "module.prototypes.weight": (5, 8)}
    make.add("swav", "resnet18", fields, net, lambda n, x: n(x), prefix="module.", more=more)


def hugging_face_cases(make):
    import transformers as hf

    def first(network, x):
        return network(x).last_hidden_state[:, 0]

    def pooled(network, x):
        return network(x).pooler_output

    dinov2 = {"layer_scale": 1.0, "patch_size": 16}
    reg = dinov2 | {"registers": 4, "class_position": False}
    dinov3 = {"dim": 48, "depth": 2, "heads": 3, "registers": 4, "qkv_bias": True}
    of_dinov3 = HUGGING_FACE_VIT | {"num_register_tokens": 4}
    without = {k: v for k, v in HUGGING_FACE_VIT.items() if k != "intermediate_size"}
    of_clip = HUGGING_FACE_VIT
    vits = {
        "vit": (hf.ViTModel(hf.ViTConfig(**HUGGING_FACE_VIT, layer_norm_eps=1e-6)), VIT, "vit_tiny_patch16_224"),
        "dinov2": (hf.Dinov2Model(hf.Dinov2Config(**without)), VIT | dinov2, "vit_small_patch14_dinov2"),
        "dinov2_swiglu": (
            hf.Dinov2Model(hf.Dinov2Config(**without, use_swiglu_ffn=True)),
            VIT | dinov2 | {"mlp": "swiglu", "mlp_ratio": 256 / 48},
            "vit_small_patch14_dinov2",
        ),
        "dinov2_registers": (
            hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**without)),
            VIT | reg,
            "vit_small_patch14_reg4_dinov2",
        ),
        "dinov3": (hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**of_dinov3)), dinov3, "vit_small_patch16_dinov3"),
        "dinov3_swiglu": (
            hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**of_dinov3, use_gated_mlp=True, hidden_act="silu")),
            dinov3 | {"mlp": "swiglu", "mlp_ratio": 8},
            "vit_small_patch16_dinov3",
        ),
        "clip": (
            hf.CLIPVisionModel(hf.CLIPVisionConfig(**of_clip)),
            VIT | {"patch_size": 16},
            "vit_base_patch32_clip_quickgelu_224",
        ),
    }
    for key, (network, fields, model) in vits.items():
        forward = pooled if key == "clip" else first
        names = saved_names(network)
        if names:
            make.add(f"hugging_face_{key}", model, fields, network, forward, names=names)
        if set(names) != set(names.values()) or not names:  # the names that the network has now, too
            make.add(f"hugging_face_{key}_renamed", model, fields, network, forward)
    hidden = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}
    fields = {"stages": [1, 1, 1, 1], "base_width": 8}
    convs = {
        "convnext": (hf.ConvNextModel(hf.ConvNextConfig(**hidden, layer_norm_eps=1e-6)), "convnext_tiny"),
        "convnextv2": (hf.ConvNextV2Model(hf.ConvNextV2Config(**hidden, layer_norm_eps=1e-6)), "convnextv2_tiny"),
        "dinov3_convnext": (hf.DINOv3ConvNextModel(hf.DINOv3ConvNextConfig(**hidden)), "convnext_tiny"),
    }
    for key, (network, model) in convs.items():
        names = saved_names(network)
        make.add(f"hugging_face_{key}", model, fields, network, pooled, names=names, size=(64, 64))
    swin = hf.SwinModel(
        hf.SwinConfig(image_size=56, embed_dim=24, depths=[2, 2], num_heads=[3, 6], layer_norm_eps=1e-5)
    )
    fields = {"base_width": 24, "stages": [2, 2], "head_width": 8, "image_size": 56}
    model, size = "swin_tiny_patch4_window7_224", (56, 56)
    make.add("hugging_face_swin", model, fields, swin, pooled, names=saved_names(swin), size=size)
    make.add("hugging_face_swin_renamed", model, fields, swin, pooled, size=size)
    resnet = hf.ResNetModel(hf.ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[1, 1, 1, 1], layer_type="basic"))
    fields = {"stages": [1, 1, 1, 1]}
    make.add("hugging_face_resnet", "resnet18", fields, resnet, pooled, names=saved_names(resnet))


def authors_cases(make, directory):
    import torch

    def repository(name):
        sys.path.insert(0, str(directory / name))

    repository("dinov2")
    from dinov2.layers import MemEffAttention, SwiGLUFFNFused  # noqa: F401
    from dinov2.models.vision_transformer import DinoVisionTransformer

    def dinov2(**options):
        return DinoVisionTransformer(
            **{"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 1.0}
            | {"block_chunks": 0}
            | options
        )

    fields = VIT | {"patch_size": 16, "layer_scale": 1.0}
    make.add("dinov2", "vit_small_patch14_dinov2", fields, dinov2(), lambda n, x: n(x))
    registers = fields | {"registers": 4, "class_position": False}
    name = "vit_small_patch14_reg4_dinov2"
    # The authors' code resizes positions for every image with registers; of the same size, as ours.
    network = dinov2(num_register_tokens=4, block_chunks=2, ffn_layer="swiglufused")
    swiglu = registers | {"mlp": "swiglu", "mlp_ratio": 256 / 48}
    more = {"teacher.dino_head.mlp.0.weight": (8, 48)}
    make.add("dinov2_registers", name, swiglu, network, lambda n, x: n(x), prefix="teacher.backbone.", more=more)
    for module in [name for name in sys.modules if name.startswith("dinov2")]:
        del sys.modules[module]

    repository("dinov3")
    from dinov3.models.vision_transformer import DinoVisionTransformer as DinoV3

    for key, options, ours in (
        ("dinov3", {}, {}),
        ("dinov3_swiglu", {"ffn_layer": "swiglu", "ffn_ratio": 6.0}, {"mlp": "swiglu", "mlp_ratio": 8}),
    ):
        network = DinoV3(
            img_size=32,
            embed_dim=48,
            depth=2,
            num_heads=3,
            n_storage_tokens=4,
            mask_k_bias=True,
            layerscale_init=1e-5,
            norm_layer="layernormbf16",
            pos_embed_rope_dtype="fp32",
            **options,
        )
        network.init_weights()
        fields = {"dim": 48, "depth": 2, "heads": 3, "registers": 4, "qkv_bias": True} | ours
        make.add(key, "vit_small_patch16_dinov3", fields, network, lambda n, x: n(x))
    from dinov3.models.convnext import ConvNeXt as DinoV3ConvNeXt

    network = DinoV3ConvNeXt(depths=[1, 1, 1, 1], dims=[8, 16, 32, 64])
    network.init_weights()
    fields = {"stages": [1, 1, 1, 1], "base_width": 8}
    make.add("dinov3_convnext", "convnext_tiny", fields, network, lambda n, x: n(x), size=(64, 64))

    repository("mae")
    import timm.models.vision_transformer as timm_vit

    if "qk_scale" not in timm_vit.Block.__init__.__code__.co_varnames:  # an option that timm has no more
        block = timm_vit.Block
        timm_vit.Block = lambda *a, qk_scale=None, **k: block(*a, **k)
    sys.modules["util"] = types.ModuleType("util")
    sys.modules["util.pos_embed"] = types.ModuleType("util.pos_embed")
    sys.modules["util.pos_embed"].get_2d_sincos_pos_embed = lambda dim, grid, cls_token: np.zeros(
        (grid * grid + 1, dim), np.float32
    )
    from models_mae import MaskedAutoencoderViT

    network = MaskedAutoencoderViT(
        32, 16, 3, 48, 2, 3, 48, 1, 3, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6)
    )

    def encode(network, x):
        return network.forward_encoder(x, 0.0)[0][:, 0]

    make.add("mae", "vit_tiny_patch16_224", VIT, network, encode, prefix="model.")

    repository("ijepa")
    from src.models.vision_transformer import VisionTransformer as IJepa

    network = IJepa(
        img_size=[32],
        patch_size=16,
        embed_dim=48,
        depth=2,
        num_heads=3,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    )
    more = {"predictor.module.predictor_embed.weight": (8, 48)}
    make.add(
        "ijepa",
        "vit_huge_patch14_gap_224",
        VIT | {"patch_size": 16},
        network,
        lambda n, x: n(x).mean(1),
        prefix="target_encoder.module.",
        more=more,
    )

    repository("CLIP")
    sys.modules.setdefault("ftfy", types.ModuleType("ftfy"))
    from clip.model import VisionTransformer as Clip

    network = Clip(32, 16, 48, 2, 3, 8)
    more = {"visual.proj": (48, 8), "logit_scale": (), "ln_final.weight": (16,)}
    network.proj = None
    fields = VIT | {"patch_size": 16}
    name = "vit_base_patch32_clip_quickgelu_224"
    make.add("clip", name, fields, network, lambda n, x: n(x), prefix="visual.", more=more)

    repository("Swin-Transformer")
    sys.modules["models"] = types.ModuleType("models")
    sys.modules["models"].__path__ = [str(directory / "Swin-Transformer" / "models")]
    from models.swin_transformer import SwinTransformer

    network = SwinTransformer(img_size=56, embed_dim=24, depths=[2, 2], num_heads=[3, 6], num_classes=0)
    fields = {"base_width": 24, "stages": [2, 2], "head_width": 8, "image_size": 56}
    make.add("swin", "swin_tiny_patch4_window7_224", fields, network, lambda n, x: n(x), size=(56, 56))

    sys.modules["MinkowskiEngine"] = types.ModuleType("MinkowskiEngine")  # for sparse images alone
    sys.modules["MinkowskiEngine"].SparseTensor = object
    sys.modules["models"].__path__ = [str(directory / "ConvNeXt-V2" / "models")]
    from models.convnextv2 import ConvNeXtV2

    network = ConvNeXtV2(depths=[1, 1, 1, 1], dims=[8, 16, 32, 64], num_classes=1)
    network.head = torch.nn.Identity()
    fields = {"stages": [1, 1, 1, 1], "base_width": 8}
    make.add("convnextv2", "convnextv2_tiny", fields, network, lambda n, x: n(x), size=(64, 64))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    found = Maker()
    torchvision_cases(found)
    hugging_face_cases(found)
    authors_cases(found, parser.parse_args().directory)
    np.savez_compressed(Path(__file__).parent / "layouts.npz", **found.saved)
