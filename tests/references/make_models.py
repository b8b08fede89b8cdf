"""Makes models_FAMILY.npz: what timm's networks give for weights and images made from names and seeds.

Run with torch, torchvision and timm: python tests/references/make_models.py [FAMILY ...]. The stored files are of timm
1.0.31, with torch 2.13.0 and torchvision 0.29.2 (vit) or torch 2.14.1 and torchvision 0.29.1 (all others).
"""

import json
import math
import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """A network and the images that it is compared on.

    name: timm's, and that of ssl_jax.models. size: (height, width) of the images; None for networks whose tensors'
    names and shapes are compared, not their features. options: of timm.create_model. gain: of the weights. SiLUs and
    gates make activations smaller; with a gain of 1 the features of an EfficientNet would be the same for all images.
    own: of models.create, for a network whose options do not all follow from the shapes of its tensors.
    """

    name: str
    size: tuple[int, int] | None
    channels: int = 3
    options: dict[str, Any] = {}  # noqa: RUF012
    gain: float = 1.0
    own: dict[str, Any] = {}  # noqa: RUF012


VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
DYNAMIC = {"dynamic_img_size": True}
CLASS_TOKEN = {"global_pool": "token"}
# 65 x 97 and 65 x 96: odd and even sides, on which paddings, and what patches leave over, differ
GRAY, ODD = dict(size=(64, 64), channels=1, options={"in_chans": 1}), dict(size=(65, 97))
BANDS = dict(size=(64, 96), channels=13, options={"in_chans": 13})
# family -> key -> case. The key is the model's name, and what is special about the case, if anything.
CASES = {
    "resnet": {
        **{f"resnet{depth}": Case(f"resnet{depth}", (65, 96)) for depth in (18, 34, 50, 101)},
        **{name: Case(name, (65, 96)) for name in ("wide_resnet50_2", "resnext50_32x4d")},
        "resnet18_gray": Case("resnet18", **GRAY),
        "resnext50_bands": Case("resnext50_32x4d", **BANDS),
        **{name: Case(name, None) for name in ("resnet152", "wide_resnet101_2", "resnext101_32x8d")},
    },
    "convnext": {
        **{f"convnext{kind}": Case(f"convnext{kind}", **ODD) for kind in ("_atto", "_tiny", "v2_atto", "v2_tiny")},
        "convnext_atto_gray": Case("convnext_atto", **GRAY),
        "convnextv2_atto_bands": Case("convnextv2_atto", **BANDS),
        "convnext_atto_norm_first": Case("convnext_atto", (64, 96), options={"head_norm_first": True}),
        "convnextv2_atto_patch1": Case("convnextv2_atto", (28, 28), 1, {"patch_size": 1, "in_chans": 1}),
        **{
            name: Case(name, None)
            for name in (
                *(f"convnext_{size}" for size in ("femto", "pico", "nano", "small", "base", "large")),
                *(f"convnextv2_{size}" for size in ("femto", "pico", "nano", "base", "large")),
            )
        },
    },
    "efficientnet": {
        **{
            f"efficientnet_b{size}": Case(f"efficientnet_b{size}", **ODD, gain=gain)
            for size, gain in ((0, 1.58), (2, 1.5), (4, 1.45))
        },
        "efficientnet_b0_gray": Case("efficientnet_b0", **GRAY, gain=1.58),
        "efficientnet_b0_bands": Case("efficientnet_b0", **BANDS, gain=1.58),
        **{f"efficientnet_b{size}": Case(f"efficientnet_b{size}", None) for size in (1, 3)},
    },
    "vit": {
        **{name: Case(name, (224, 224)) for name in (VIT, "vit_small_patch16_224", "vit_base_patch16_224")},
        "vit_mean": Case(VIT, (224, 224), options={"global_pool": "avg"}),
        "vit_patch4_gray": Case(VIT, (32, 32), 1, {"patch_size": 4, "img_size": 32, "in_chans": 1}),
        "vit_other_size": Case(VIT, (160, 256), options={"dynamic_img_size": True}),
        "vit_qk_norm": Case(VIT, (224, 224), options={"qk_norm": True}),
        "vit_bands": Case(VIT, (48, 80), 13, options={"dynamic_img_size": True, "in_chans": 13}),
    },
    "dinov2": {
        "vit_small_patch14_reg4_dinov2": Case("vit_small_patch14_reg4_dinov2", (70, 98), options=DYNAMIC),
        "vit_small_patch14_dinov2": Case("vit_small_patch14_dinov2", (70, 98), 1, DYNAMIC | {"in_chans": 1}),
    },
    "dinov3": {  # the authors' features are the class token, timm's the mean of the patches
        "vit_small_patch16_dinov3": Case("vit_small_patch16_dinov3", (96, 64), options=CLASS_TOKEN),
        "vit_small_plus_patch16_dinov3": Case(
            "vit_small_plus_patch16_dinov3", (48, 80), 13, CLASS_TOKEN | {"in_chans": 13}
        ),
        "vit_base_patch16_dinov3": Case("vit_base_patch16_dinov3", (64, 64), 1, CLASS_TOKEN | {"in_chans": 1}),
    },
    "clip": {
        "vit_base_patch32_clip_224": Case("vit_base_patch32_clip_224", (64, 96), options=DYNAMIC),
        "vit_base_patch32_clip_quickgelu_224": Case(
            "vit_base_patch32_clip_quickgelu_224", (96, 96), 1, DYNAMIC | {"in_chans": 1}
        ),
    },
    "swin": {
        **{name: Case(name, (224, 224)) for name in (SWIN, "swin_base_patch4_window7_224")},
        # 25 x 31 patches: windows do not divide the maps, and the last one is smaller than a window
        "swin_other_size": Case(SWIN, (100, 124), 13, {"in_chans": 13, "strict_img_size": False}),
        "swin_larger_size": Case(SWIN, (260, 228), options={"strict_img_size": False}),
        "swin_small_windows": Case(SWIN, (64, 64), options={"img_size": 64}),
        # 8 x 24 patches, then 4 x 12: windows of 7, then of 4 x 7 that are shifted across alone
        "swin_rectangular_windows": Case(
            SWIN,
            (32, 96),
            options={"img_size": (32, 96), "depths": (1, 2), "num_heads": (3, 6)},
            own={"image_size": (32, 96), "stages": (1, 2)},
        ),
    },
}


def named_tensor(name, shape, gain=1.0):
    """The weights: a pure function of the tensor's name, of a scale that keeps activations near 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        values = rng.uniform(0.4, 1.1, shape)
    elif name.endswith("weight"):
        values = gain * rng.normal(size=shape) / math.sqrt(math.prod(shape[1:]))
    else:
        values = 0.2 * rng.normal(size=shape)
    return np.asarray(values, np.float32)


def images(size, channels=3):
    """Two normalized images [2, height, width, channels]."""
    return np.random.default_rng(0).normal(size=(2, *size, channels)).astype(np.float32)


def shapes_of(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def features(network, case):
    """Features of the case's images from a torch network that is given the weights."""
    import torch

    weights = {
        name: torch.zeros(shape, dtype=torch.int64)
        if name.endswith("num_batches_tracked")
        else torch.from_numpy(named_tensor(name, shape, case.gain))
        for name, shape in shapes_of(network).items()
    }
    with torch.no_grad():
        network.load_state_dict(weights)
        x = torch.from_numpy(images(case.size, case.channels).transpose(0, 3, 1, 2))
        return network.eval()(x).numpy()


def main(families):
    import timm
    import torch
    import torchvision

    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}")
    for family in families or CASES:
        saved = {}
        for key, case in CASES[family].items():
            network = timm.create_model(case.name, num_classes=0, **case.options)
            saved[f"{key}/shapes"] = np.array(json.dumps(shapes_of(network)))
            twin = None
            if family == "resnet" and case.channels == 3:  # torchvision's have the same tensors, and give the same
                twin = torchvision.models.get_model(case.name)
                twin.fc = torch.nn.Identity()
                assert shapes_of(twin) == shapes_of(network)
            if case.size is None:
                print(f"{key}: tensors alone")
                continue
            saved[key] = features(network, case)
            if twin is not None:
                np.testing.assert_allclose(features(twin, case), saved[key], rtol=1e-5, atol=1e-5)
            print(f"{key}: {saved[key].shape}, standard deviation {saved[key].std():.3f}")
        np.savez_compressed(Path(__file__).parent / f"models_{family}.npz", **saved)


if __name__ == "__main__":
    main(sys.argv[1:])
