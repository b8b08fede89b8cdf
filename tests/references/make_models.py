"""Makes models.npz: what torchvision's and timm's networks give for weights and images made from names and seeds.

Run with torch, torchvision and timm: python tests/references/make_models.py. The stored file is of torch 2.13.0,
torchvision 0.29.2, timm 1.0.31.
"""

import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np


def named_tensor(name, shape):
    """The weights: a pure function of the tensor's name, of a scale that keeps activations near 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        values = rng.uniform(0.4, 1.1, shape)
    elif name.endswith("weight"):
        values = rng.normal(size=shape) / math.sqrt(math.prod(shape[1:]))
    else:
        values = 0.2 * rng.normal(size=shape)
    return np.asarray(values, np.float32)


def images(size, channels=3):
    """Two normalized images [2, height, width, channels]."""
    return np.random.default_rng(0).normal(size=(2, *size, channels)).astype(np.float32)


def main():
    import timm
    import torch
    import torchvision

    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, torchvision {torchvision.__version__}")
    print(f"timm {timm.__version__}")
    vit = "vit_tiny_patch16_224"
    # key -> (network, size of the images, their channels)
    cases = {
        # 65 x 96: odd and even sides, on which paddings differ
        **{f"resnet{n}": (torchvision.models.get_model(f"resnet{n}"), (65, 96), 3) for n in (18, 34, 50, 101)},
        **{name: (timm.create_model(name, num_classes=0), (224, 224), 3) for name in (vit, "vit_small_patch16_224")},
        "vit_base_patch16_224": (timm.create_model("vit_base_patch16_224", num_classes=0), (224, 224), 3),
        "vit_mean": (timm.create_model(vit, num_classes=0, global_pool="avg"), (224, 224), 3),
        "vit_patch4_gray": (timm.create_model(vit, num_classes=0, patch_size=4, img_size=32, in_chans=1), (32, 32), 1),
        "vit_other_size": (timm.create_model(vit, num_classes=0, dynamic_img_size=True), (160, 256), 3),
    }
    saved = {}
    for key, (network, size, channels) in cases.items():
        if key.startswith("resnet"):
            network.fc = torch.nn.Identity()
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        weights = {
            name: torch.zeros(shape, dtype=torch.int64)
            if name.endswith("num_batches_tracked")
            else torch.from_numpy(named_tensor(name, shape))
            for name, shape in shapes.items()
        }
        x = torch.from_numpy(images(size, channels).transpose(0, 3, 1, 2))
        with torch.no_grad():
            network.load_state_dict(weights)
            saved[key] = network.eval()(x).numpy()
            if key.startswith("resnet"):  # timm's ResNets have torchvision's names, and give the same
                twin = timm.create_model(key, num_classes=0)
                twin.load_state_dict(weights)
                np.testing.assert_allclose(twin.eval()(x).numpy(), saved[key], rtol=1e-5, atol=1e-5)
        saved[f"{key}/shapes"] = np.array(json.dumps(shapes))
        print(f"{key}: {saved[key].shape}, standard deviation {saved[key].std():.3f}")
    np.savez_compressed(Path(__file__).parent / "models.npz", **saved)


if __name__ == "__main__":
    main()
