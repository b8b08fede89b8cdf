"""Files with other libraries' and the authors' names: the same features as in their own code."""

import json
import re
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ssl_jax import load_backbone, models
from ssl_jax.models.positions import resize_positions
from ssl_jax.weights.adapting import inflated, resized_kernel

REFERENCES = Path(__file__).parent / "references"
sys.path.insert(0, str(REFERENCES))
MADE = runpy.run_path(str(REFERENCES / "make_layouts.py"))
with np.load(REFERENCES / "layouts.npz") as _file:
    FOUND = {key: _file[key] for key in _file}
CASES = {key.removesuffix("/case"): json.loads(str(FOUND[key])) for key in FOUND if key.endswith("/case")}


def write(path, case, change=lambda tensors: None):
    integers = ("num_batches_tracked", "relative_position_index", "position_ids")
    tensors = {
        name: np.zeros(shape, np.int64) if name.endswith(integers) else MADE["value"](name, tuple(shape))
        for name, shape in case["shapes"].items()
    }
    change(tensors)
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.mark.parametrize("key", CASES)
def test_a_file_gives_what_its_own_library_gives(key, tmp_path):
    case = CASES[key]
    module = models.create(case["model"], **case["fields"])
    backbone = load_backbone(write(tmp_path / "weights.safetensors", case), module)
    h = backbone.features(MADE["images"](tuple(case["size"])), normalized=True)
    np.testing.assert_allclose(h, FOUND[key], atol=1e-4)


def test_a_convnext_v2_without_its_last_norm_has_it_as_it_begins(tmp_path):
    case = CASES["convnextv2"]

    def without(tensors):
        for name in [name for name in tensors if re.match(r"norm\.|head\.norm\.", name)]:
            del tensors[name]

    module = models.create(case["model"], **case["fields"])
    path = write(tmp_path / "fcmae.safetensors", case, without)
    norm = load_backbone(path, module).variables["params"]["head"]["norm"]
    np.testing.assert_array_equal(norm["scale"], np.ones_like(norm["scale"]))
    np.testing.assert_array_equal(norm["bias"], np.zeros_like(norm["scale"]))
    whole = load_backbone(write(tmp_path / "whole.safetensors", case), module).variables["params"]
    assert np.any(whole["head"]["norm"]["bias"])


VIT = CASES["mae"]
SMALL = models.create("vit_tiny_patch16_224", **VIT["fields"])


def copied(prefix):
    """Changes a file: its backbone a second time, under another prefix."""

    def change(tensors):
        tensors |= {prefix + name.removeprefix(VIT["prefix"]): array for name, array in tensors.items()}

    return change


def test_of_several_backbones_one_is_chosen_by_its_prefix(tmp_path):
    path = write(tmp_path / "weights.safetensors", VIT, copied("teacher.backbone."))
    with pytest.raises(ValueError, match=r"has 2 backbones, .* by prefix, one of 'model.', 'teacher.backbone.'"):
        load_backbone(path, SMALL)
    with pytest.raises(ValueError, match=r"no backbone with prefix='student.'; .* 'model.', 'teacher.backbone.'"):
        load_backbone(path, SMALL, prefix="student.")
    images = MADE["images"]((32, 32))
    h = load_backbone(path, SMALL, prefix="teacher.backbone.").features(images, normalized=True)
    np.testing.assert_allclose(h, FOUND["mae"], atol=1e-4)


def test_positions_are_resized_on_request(tmp_path):
    path = write(tmp_path / "weights.safetensors", VIT)
    larger = SMALL.clone(image_size=(48, 64))
    with pytest.raises(ValueError, match=r"pos_embed is \[1, 5, 48\], .* another size: give image_size"):
        load_backbone(path, larger)
    found = load_backbone(path, larger, image_size=(48, 64))
    learned = MADE["value"]("model.pos_embed", (1, 5, 48))
    resized = found.variables["params"]["pos_embed"]
    np.testing.assert_array_equal(resized[:, :1], learned[:, :1])
    expected = resize_positions(jnp.asarray(learned[0, 1:].reshape(2, 2, 48)), (3, 4))
    np.testing.assert_allclose(resized[0, 1:], expected.reshape(12, 48), atol=1e-6)
    images = MADE["images"]((48, 64))
    as_they_were = load_backbone(path, SMALL).features(images, normalized=True)  # resized at every call
    np.testing.assert_allclose(found.features(images, normalized=True), as_they_were, atol=1e-5)
    assert found.image_size == (48, 64)


def test_a_resized_kernel_sees_enlarged_patches_as_the_old_one_saw_them():
    rng = np.random.default_rng(0)
    kernel, patches = rng.normal(size=(5, 2, 4, 4)), rng.normal(size=(7, 2, 4, 4))
    larger = np.asarray(jax.image.resize(patches, (7, 2, 6, 6), "bilinear"))
    found = np.einsum("ochw,nchw->no", resized_kernel(kernel.astype(np.float32), 6), larger)
    np.testing.assert_allclose(found, np.einsum("ochw,nchw->no", kernel, patches), atol=1e-4)


def test_patches_are_resized_on_request(tmp_path):
    path = write(tmp_path / "weights.safetensors", VIT)
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight is .*: give patch_size"):
        load_backbone(path, SMALL.clone(patch_size=32, image_size=64))
    with pytest.raises(ValueError, match="patch_size=8 is for ViTs, and ResNet has no patches"):
        load_backbone(write(tmp_path / "resnet.safetensors", CASES["swav"]), "resnet18", patch_size=8)
    found = load_backbone(path, SMALL.clone(patch_size=32, image_size=64), patch_size=32)
    images = np.repeat(np.repeat(MADE["images"]((32, 32)), 2, axis=1), 2, axis=2)
    assert found.features(images, normalized=True).shape == (2, 48)


@pytest.mark.parametrize("how", ["sum", "mean", "first"])
def test_channels_are_made_from_three(how, tmp_path):
    path = write(tmp_path / "weights.safetensors", VIT)
    gray = MADE["images"]((32, 32), 1)
    of_gray = load_backbone(path, SMALL).features(np.repeat(gray, 3, axis=3), normalized=True)
    found = load_backbone(path, SMALL, channels=13, inflate=how)
    assert not found.mean  # nobody knows those of the other channels
    images = np.zeros((2, 32, 32, 13), np.float32)
    images[..., : 13 if how == "sum" else 3] = gray
    h = found.features(images, normalized=True)
    np.testing.assert_allclose(h, of_gray, atol=1e-4)  # the kernels' sum is the same in all three


def test_inflated_kernels():
    kernel = np.float32([[[[1.0]], [[2.0]], [[6.0]]]])
    assert inflated(kernel, 1, "sum").ravel().tolist() == [9.0]
    assert inflated(kernel, 6, "sum").ravel().tolist() == [1.5] * 6
    assert inflated(kernel, 2, "mean").ravel().tolist() == [3.0, 3.0]
    assert inflated(kernel, 5, "first").ravel().tolist() == [1.0, 2.0, 6.0, 0.0, 0.0]
    assert inflated(kernel, 2, "first").ravel().tolist() == [1.0, 2.0]


def test_a_directory_of_timms_names_its_architecture_and_normalization(tmp_path):
    write(tmp_path / "model.safetensors", CASES["swav"], lambda tensors: _without_prefix(tensors, "module."))
    of_images = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "input_size": [3, 96, 64]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": of_images}))
    with pytest.raises(ValueError, match=r"no tensor layer1\.1\.bn1"):  # one block in place of two
        load_backbone(tmp_path)
    backbone = load_backbone(tmp_path, models.create("resnet18", stages=(1, 1, 1, 1)))
    assert backbone.mean == (0.5, 0.5, 0.5)
    assert backbone.std == (0.25, 0.25, 0.25)
    assert backbone.image_size == (96, 64)
    (tmp_path / "config.json").write_text('{"pretrained_cfg": 3}')
    with pytest.raises(ValueError, match=r"its config.json cannot be used"):
        load_backbone(tmp_path, "resnet18")


def _without_prefix(tensors, prefix):
    for name in list(tensors):
        tensors[name.removeprefix(prefix)] = tensors.pop(name)
