"""Do exported backbones give the same features in other programs?

    .venv/bin/python benchmarks/exported.py write DIRECTORY   # backbones with random weights, in every format
    OTHER/bin/python benchmarks/exported.py check DIRECTORY   # without ssl_jax

`check` uses what OTHER has of timm, transformers, onnxruntime and jax. It prints the largest difference from our
features, as a share of the largest feature, and fails above 1e-4.
"""

import argparse
import ast
import importlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

TOLERANCE = 1e-4
# name -> (options of models.create, height, width, channels). Depths and sizes are small; each family's options differ.
CASES = {
    "resnet18": ({"name": "resnet18"}, 64, 64, 3),
    "resnet50_gray": ({"name": "resnet50"}, 64, 64, 1),
    "vit_tiny": ({"name": "vit_tiny_patch16_224"}, 224, 224, 3),
    "vit_mae": (
        {"name": "vit_small_patch16_224", "depth": 2, "heads": 12, "patch_size": 4, "positions": "sincos"},
        *(32, 48, 3),
    ),
    "vit_mean": (
        {"name": "vit_tiny_patch16_224", "depth": 2, "pool": "mean", "layer_scale": 1e-5, "image_size": 64},
        *(64, 64, 4),
    ),
    "ijepa": ({"name": "vit_huge_patch14_gap_224", "dim": 64, "heads": 4, "depth": 2}, 224, 224, 3),
    "dinov2": (
        {"name": "vit_small_patch14_reg4_dinov2", "depth": 2, "image_size": 56, "pool": "norm_mean"},
        *(56, 56, 3),
    ),
    "dinov3": ({"name": "vit_small_patch16_dinov3", "depth": 2}, 64, 96, 3),
    "dinov3_swiglu": ({"name": "vit_small_plus_patch16_dinov3", "depth": 2, "pool": "norm_mean"}, 64, 64, 3),
    "clip": ({"name": "vit_base_patch32_clip_quickgelu_224", "depth": 2}, 224, 224, 3),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("write", "check"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cases", nargs="*", default=[*CASES], choices=CASES, metavar="CASE")
    arguments = parser.parse_args()
    if arguments.step == "write":
        for case in arguments.cases:
            write(case, arguments.directory / case)
        return
    sys.modules["ssl_jax"] = None  # so that no import finds it
    checks = {"timm": (check_timm, check_hf), "transformers": (check_transformers,), "onnxruntime": (check_onnx,)}
    checks["jax"] = (check_stablehlo,)
    off = [
        check_one(check, case, arguments.directory / case)
        for library, of_library in checks.items()
        if importlib.util.find_spec(library)
        for check in of_library
        for case in arguments.cases
    ]
    sys.exit(0 if off and max(off) <= TOLERANCE else 1)


def write(case, directory):
    import jax
    import jax.numpy as jnp

    from ssl_jax import exporting, models, weights

    options, height, width, channels = CASES[case]
    directory.mkdir(parents=True)
    module = models.create(**options)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, height, width, channels)))
    variables = jax.tree_util.tree_map_with_path(trained, variables)
    normalization = [(0.5, 0.4, 0.3, 0.6)[:channels], (0.2, 0.25, 0.3, 0.15)[:channels]]
    backbone = weights.Backbone(module, variables, *normalization, (height, width), {"model": options})
    images = np.random.default_rng(1).random((5, height, width, channels), np.float32)
    np.savez(directory / "expected.npz", images=images, features=backbone.features(images))
    for to in exporting.WRITERS:
        exporting.export(backbone, directory / to, to=to)
    call = exporting.how_to_load(backbone, "FILE", to="timm")
    (directory / "facts.json").write_text(json.dumps({"normalization": normalization, "call": call}))
    print("wrote", case, flush=True)


def trained(path, leaf):
    """A leaf as training could leave it: no vector is 0 or 1 everywhere. DINOv3's keys have no bias."""
    if leaf.ndim > 1:
        return leaf
    noise = np.random.default_rng(len(path)).uniform(-0.1, 0.1, leaf.shape).astype(np.float32)
    return leaf + np.float32(0.3) + noise if path[-1].key in ("gamma", "var") else leaf + noise


def check_one(check, case, directory):
    expected = np.load(directory / "expected.npz")
    found = check(directory, expected["images"])
    off = float(np.abs(found - expected["features"]).max() / np.abs(expected["features"]).max())
    verdict = "" if off <= TOLERANCE else "  DIFFERS"
    print(f"{check.__name__.removeprefix('check_'):12} {case:14} {off:.1e}{verdict}", flush=True)
    return off


def for_torch(directory, images):
    import torch

    mean, std = (np.array(x, np.float32) for x in normalization(directory))
    return torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2).copy())


def by_torch(model, x):
    import torch

    with torch.no_grad():
        return model.eval()(x).numpy()


def check_timm(directory, images):
    """The call that `how_to_load` gives, and its file."""
    import safetensors.torch
    import timm

    call = json.loads((directory / "facts.json").read_text())["call"].partition(".load_state_dict")[0]
    made = ast.parse(call, mode="eval").body
    options = {option.arg: ast.literal_eval(option.value) for option in made.keywords}
    model = timm.create_model(*map(ast.literal_eval, made.args), **options)
    model.load_state_dict(safetensors.torch.load_file(directory / "timm"))
    return by_torch(model, for_torch(directory, images))


def check_hf(directory, images):
    import timm

    model = timm.create_model(f"local-dir:{directory / 'hf'}", pretrained=True, num_classes=0)
    config = timm.data.resolve_model_data_config(model)
    assert [[*config["mean"]], [*config["std"]]] == normalization(directory), config
    assert [*config["input_size"]] == [images.shape[3], *images.shape[1:3]], config
    return by_torch(model, for_torch(directory, images))


def normalization(directory):
    return json.loads((directory / "facts.json").read_text())["normalization"]


def check_transformers(directory, images):
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(directory / "hf").eval()
    with torch.no_grad():
        return model(for_torch(directory, images)).pooler_output.numpy()


def check_onnx(directory, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / "onnx", providers=["CPUExecutionProvider"])
    parts = [images[:1], images[1:]]  # batches of any size
    return np.concatenate([session.run(None, {"images": part})[0] for part in parts])


def check_stablehlo(directory, images):
    from jax import export

    program = export.deserialize(bytearray((directory / "stablehlo").read_bytes()))
    return np.concatenate([program.call(part) for part in (images[:1], images[1:])])


if __name__ == "__main__":
    main()
