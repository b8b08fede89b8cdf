import functools
import json
import re
import struct

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ssl_jax import load_backbone, models
from ssl_jax.models import maps
from ssl_jax.weights import Backbone, save_backbone, torch_name

IMAGES = np.random.default_rng(0).integers(0, 256, size=(5, 12, 12, 3), dtype=np.uint8)
OPTIONS = {"name": "resnet8", "width": 0.5, "zero_init_residual": False, "dtype": "float32"}
META = {
    "model": OPTIONS,
    "image_size": [12, 12],
    "channels": 3,
    "mean": [0.1, 0.2, 0.3],
    "std": [0.5, 0.25, 0.2],
    "method": "simclr",
}


@pytest.fixture(scope="module")
def variables():
    """Weights, and statistics as after some training: none of them at its initial value."""
    module = models.create(**OPTIONS)
    made = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    return jax.tree.map(lambda leaf: leaf + 0.1 + 0.01 * jnp.arange(leaf.shape[-1]), made)


@pytest.fixture
def saved(variables, tmp_path):
    save_backbone(tmp_path, variables, META)
    return tmp_path


def rewrite(path, change):
    """The file at `path` with its tensors changed by `change`, and without the header's word on what they are."""
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def test_loaded_features_are_those_that_were_saved(variables, saved):
    backbone = load_backbone(saved)
    normalized = (IMAGES / 255.0 - META["mean"]) / META["std"]
    expected = jax.jit(models.create(**OPTIONS).apply)(variables, jnp.asarray(normalized, jnp.float32))
    assert backbone.dim == 32
    for images, options in ((IMAGES, {}), (IMAGES / 255.0, {"batch_size": 2}), (normalized, {"normalized": True})):
        h = backbone.features(images, **options)
        assert h.dtype == np.float32
        assert isinstance(h, np.ndarray)
        np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(backbone.preprocess(IMAGES), normalized, atol=1e-5)
    assert backbone.features(IMAGES[:0]).shape == (0, 32)


def test_dense_features_are_of_the_images_as_the_model_takes_them():
    """Of normalized images, and the same in batches of any size."""
    options = {"name": "vit_tiny_patch16_224", "dim": 12, "depth": 2, "patch_size": 4, "image_size": (12, 12)}
    module = models.create(**options)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    backbone = Backbone(module, variables, tuple(META["mean"]), tuple(META["std"]))
    normalized = jnp.asarray((IMAGES / 255.0 - META["mean"]) / META["std"], jnp.float32)
    for found, function, shape in (
        (backbone.patch_features, maps.patch_map, (3, 3, 12)),
        (backbone.class_attention, maps.class_attention, (3, 3, 3)),
        (
            functools.partial(backbone.block_features, blocks=2, pool="mean"),
            functools.partial(maps.block_features, blocks=2, pool="mean"),
            (24,),
        ),
    ):
        expected = function(module, variables, normalized)
        h = found(IMAGES, batch_size=2)
        assert h.dtype == np.float32
        np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found(normalized, normalized=True), expected, rtol=1e-4, atol=1e-5)
        assert found(IMAGES[:0]).shape == (0, *shape)


def test_the_same_weights_make_the_same_bytes(variables, saved, tmp_path_factory):
    again = tmp_path_factory.mktemp("again")
    loaded = load_backbone(saved / "backbone.safetensors").variables
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    save_backbone(again, loaded, dict(reversed(META.items())))
    assert sorted(path.name for path in again.iterdir()) == ["backbone.json", "backbone.safetensors"]
    for path in again.iterdir():
        assert path.read_bytes() == (saved / path.name).read_bytes()
    assert json.loads((saved / "backbone.json").read_text()) == META


def test_a_file_travels_alone(saved, tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "mine.safetensors"
    path.write_bytes((saved / "backbone.safetensors").read_bytes())
    np.testing.assert_array_equal(load_backbone(path).features(IMAGES), load_backbone(saved).features(IMAGES))


def test_an_own_module_is_loaded_by_itself(tmp_path):
    class Linear(nn.Module):
        dim: int = 4

        @nn.compact
        def __call__(self, images, train=False, axis_name=None):
            return nn.Dense(self.dim)(images.reshape(len(images), -1))

    module = Linear()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    save_backbone(tmp_path, variables, {**META, "model": {"name": "mine"}})
    x = IMAGES.astype(np.float32)
    h = load_backbone(tmp_path, module).features(x, normalized=True)
    np.testing.assert_allclose(h, module.apply(variables, x), rtol=1e-5)
    with pytest.raises(ValueError, match="no model 'mine'"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("class_position", [True, False])
def test_a_vit_with_registers_comes_back_as_it_was_saved(tmp_path, class_position):
    options = {"name": "vit_tiny_patch16_224", "dim": 12, "depth": 1, "patch_size": 4, "image_size": [12, 12]}
    options |= {"registers": 2, "class_position": class_position}
    made = jax.jit(models.create(**options).init)(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    save_backbone(tmp_path, made, {**META, "model": options})
    jax.tree.map(np.testing.assert_array_equal, load_backbone(tmp_path).variables, made)


def test_options_of_several_numbers_survive(tmp_path):
    options = {"name": "vit_tiny_patch16_224", "dim": 12, "depth": 1, "patch_size": 4, "image_size": (12, 8)}
    module = models.create(**options)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 12, 8, 3)))
    save_backbone(tmp_path, variables, {**META, "model": options, "image_size": (12, 8)})
    assert load_backbone(tmp_path).model == module


def test_two_arrays_of_one_name_are_not_saved_over_each_other(tmp_path):
    layer = {"scale": np.ones(2), "kernel": np.ones((2, 2))}
    with pytest.raises(ValueError, match=r"two arrays would be saved as layer\.weight"):
        save_backbone(tmp_path, {"params": {"layer": layer}}, META)


@pytest.mark.parametrize(
    "path, name",
    [
        (("params", "conv1", "kernel"), "conv1.weight"),
        (("params", "layer1_0", "bn1", "scale"), "layer1.0.bn1.weight"),
        (("batch_stats", "layer4_22", "downsample_1", "var"), "layer4.22.downsample.1.running_var"),
        (("params", "blocks_11", "attn", "qkv", "bias"), "blocks.11.attn.qkv.bias"),
        (("params", "cls_token"), "cls_token"),
    ],
)
def test_names_are_torchvisions_and_timms(path, name):
    assert torch_name(path) == name


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_peoples_files_need_the_name_of_the_architecture(saved, dtype):
    path = saved / "backbone.safetensors"

    def change(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(dtype)
        tensors["fc.weight"] = np.zeros((10, 32), np.float32)
        tensors["bn1.num_batches_tracked"] = np.array(7)

    expected = load_backbone(saved)
    rewrite(path, change)
    with pytest.raises(ValueError, match=r"name it, --model=resnet50 or load_backbone\(..., model='resnet50'\)"):
        load_backbone(path)
    backbone = load_backbone(path, models.create("resnet8", width=0.5))
    assert backbone.mean == (0.485, 0.456, 0.406)
    x = expected.preprocess(IMAGES)
    h = backbone.features(x, normalized=True)
    np.testing.assert_allclose(h, expected.features(x, normalized=True), rtol=1e-5 if dtype == np.float64 else 0.05)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("layer2.0.conv1.weight"), r"no tensor layer2.0.conv1.weight \[16, 8, 3, 3\]"),
        (
            lambda t: t.update({"conv1.weight": t["conv1.weight"][:4]}),
            r"conv1.weight is \[4, 3, 3, 3\], but .*\[8, 3, 3",
        ),
        (lambda t: t.update(mask=np.zeros(3, np.float32)), "a tensor mask, which the architecture does not have"),
        (lambda t: t.update({"bn1.bias": np.zeros(8, np.int64)}), "tensor bn1.bias holds I64, not floats"),
        (lambda t: t["bn1.bias"].__setitem__(0, np.nan), "tensor bn1.bias holds NaN or infinite values"),
        (lambda t: t["bn1.running_var"].__setitem__(3, np.inf), "tensor bn1.running_var holds NaN or infinite values"),
    ],
)
def test_tensors_of_another_architecture_are_named(saved, change, message):
    rewrite(saved / "backbone.safetensors", change)
    with pytest.raises(ValueError, match=message):
        load_backbone(saved, models.create("resnet8", width=0.5))


def lie(header):
    """More numbers in the shape than bytes in the file: 2^42 of them would be 16 TB."""
    header["conv1.weight"]["shape"] = [2**40, 4]


def lie_with_offsets(header):
    lie(header)
    begin, _ = header["conv1.weight"]["data_offsets"]
    header["conv1.weight"]["data_offsets"] = [begin, begin + 2**44]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:-1],  # cut short
        lambda content: struct.pack("<Q", 2**60) + content[8:],  # a header longer than the file
        lambda content: struct.pack("<Q", 90_000_000) + content[8:],
        lambda content: content[:8] + b"[" + content[9:],
        lambda content: with_header(content, lie),
        lambda content: with_header(content, lie_with_offsets),
    ],
)
def test_damaged_files_are_refused_before_anything_is_allocated(saved, damage):
    path = saved / "backbone.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"backbone\.safetensors is not a whole safetensors file"):
        load_backbone(saved)


def change_meta(directory, change):
    """Our entry of the file's header, changed by `change`: str -> str."""
    path = directory / "backbone.safetensors"
    with safetensors.safe_open(path, framework="numpy") as file:
        text = file.metadata()["ssl_jax"]
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, {"ssl_jax": change(text)})


def without(key):
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != key})


def changed(**values):
    return lambda text: json.dumps(json.loads(text) | values)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text[:-1], "JSONDecodeError"),
        (lambda text: "[" * 100_000, "RecursionError"),
        (lambda text: "[]", "TypeError"),
        (lambda text: "null", "TypeError"),
        (without("model"), "KeyError: 'model'"),
        (without("std"), "KeyError: 'std'"),
        (changed(model="resnet8"), "TypeError"),
        (changed(image_size=[12]), r"image_size \[12\]"),
        (changed(image_size=[10**9, 10**9]), "image_size"),
        (changed(image_size=["12", "12"]), "image_size"),
        (changed(channels=-3), "channels -3"),
        (changed(channels=10**9), "channels 1000000000"),
        (changed(mean=[0.5]), r"mean and std \(\[0.5\]"),
        (changed(std=["a", "b", "c"]), "mean and std"),
        (changed(model={"name": "resnet8", "stages": "many"}), "a model that cannot be made"),
        (changed(model={"name": "resnet8", "stages": [10**9]}), "tensors, too few for"),
        (changed(model={"name": "vit_tiny_patch16_224", "depth": 10**9}), "tensors, too few for"),
        (changed(model={"name": "../../model"}), "no model '../../model'"),
    ],
)
def test_our_entry_of_a_header_is_checked_before_anything_is_made_of_it(saved, change, message):
    change_meta(saved, change)
    with pytest.raises(ValueError, match=rf"backbone\.safetensors.*{message}"):
        load_backbone(saved)


def with_header(content, change):
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + content[8 + length :]


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "checkpoint.pth.tar", "last.ckpt", "pytorch_model.bin"])
def test_pickled_files_are_refused_unopened_with_a_recipe(tmp_path, name):
    (tmp_path / name).write_bytes(b"not to be opened")
    with pytest.raises(ValueError, match=r"is pickled.*save_file.*weights_only=True.*\.safetensors"):
        load_backbone(tmp_path / name)


def test_a_missing_file_says_who_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ssl_jax train writes backbone.safetensors"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 12, 12, 1), np.uint8), "images of 3 channels, got (2, 12, 12, 1)"),
        (np.full((2, 12, 12, 3), 255.0), "float64 in 255..255; images that are normalized already"),
        (np.full((2, 12, 12, 3), np.nan), "uint8, or floats in 0..1"),
        (np.zeros((2, 12, 12, 3), np.int64) + 200, "uint8, or floats in 0..1"),
    ],
)
def test_images_in_another_scale_or_of_other_channels_are_refused(saved, images, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_backbone(saved).features(images)


def test_unknown_normalization_is_asked_for(saved):
    def one_channel(tensors):
        tensors["conv1.weight"] = tensors["conv1.weight"][:, :1]

    rewrite(saved / "backbone.safetensors", one_channel)
    backbone = load_backbone(saved, models.create("resnet8", width=0.5))
    with pytest.raises(ValueError, match="pass normalized=True"):
        backbone.features(IMAGES[..., :1])
    assert backbone.features(IMAGES[..., :1] / 255.0, normalized=True).shape == (5, 32)


def test_meta_must_be_enough_to_load_again(tmp_path, variables):
    with pytest.raises(ValueError, match="meta has no 'mean'"):
        save_backbone(tmp_path, variables, {key: value for key, value in META.items() if key != "mean"})
    assert not list(tmp_path.iterdir())
