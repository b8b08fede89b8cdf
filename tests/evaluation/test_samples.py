import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.data import crop, sources
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.normalization import Normalization
from ssl_jax.evaluation import samples
from ssl_jax.evaluation.subject import Images
from ssl_jax.report import patches
from ssl_jax.weights import Backbone

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 16, 12, 3), dtype=np.uint8)
VIT = dict(name="vit_tiny_patch16_224", dim=12, depth=1, heads=3, patch_size=4, image_size=(16, 12))
FEATURES, ATTENTION = ["features/pretrained", "features/random"], ["attention/pretrained", "attention/random"]
HEADS = ["attention/pretrained", "attention/head 1", "attention/head 2", "attention/head 3", "attention/random"]


def network(options, seed):
    """Of random weights."""
    module, rng = models.create(**options), np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 16, 12, 3), np.float32))
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes["params"])
    rest = {name: jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes[name]) for name in {*shapes} - {"params"}}
    return Backbone(module, {"params": params, **rest}, (0.5,) * 3, (0.25,) * 3)


def measured_on(images, size):
    source = sources.ArraySource(images)
    return Images(source, source, size, Normalization((0.5,) * 3, (0.25,) * 3), 2**20)


def saved(tmp_path, *backbones):
    """The arrays of patches.npz; {} where there is none."""
    samples.save_patches(tmp_path, measured_on(IMAGES, (16, 12)), *backbones)
    path = tmp_path / "patches.npz"
    return dict(np.load(path)) if path.exists() else {}


@pytest.mark.parametrize(
    "options, keys",
    [
        (VIT, FEATURES + HEADS),
        ({**VIT, "class_token": False, "pool": "norm_mean"}, FEATURES),
        ({**VIT, "pool": "mean", "heads": 1}, ATTENTION),  # the one head is their mean
        ({**VIT, "pool": "mean", "dim": 28, "heads": 7}, ATTENTION),
        ({**VIT, "pool": "mean", "class_token": False}, None),
        (dict(name="resnet8", width=0.25), FEATURES),
    ],
    ids=["vit", "no class token", "one head", "many heads", "neither", "resnet"],
)
def test_patches_are_pictured_as_far_as_the_network_has_them(tmp_path, options, keys):
    backbones = [network(options, seed) for seed in (1, 2)]
    found = saved(tmp_path, *backbones)
    assert list(found) == (["images", *keys] if keys else [])
    if keys is None:
        return
    shown = IMAGES[:16:2]  # every second one of 20 would be 10
    np.testing.assert_array_equal(found["images"], shown)
    for backbone, name in zip(backbones, ("pretrained", "random"), strict=True):
        if f"features/{name}" in keys:
            expected = patches.pca_picture(backbone.patch_features(shown))
            np.testing.assert_array_equal(found[f"features/{name}"], expected)
        if f"attention/{name}" in keys:
            expected = patches.attention_picture(backbone.class_attention(shown), shown)
            np.testing.assert_array_equal(found[f"attention/{name}"], expected)
    for head in range(3) if "attention/head 1" in keys else ():
        expected = patches.attention_picture(backbones[0].class_attention(shown)[:, [head]], shown)
        np.testing.assert_array_equal(found[f"attention/head {head + 1}"], expected)
    assert all((found[key] != found["attention/random"]).any() for key in keys[:-1] if key.startswith("attention"))
    assert [path.name for path in tmp_path.iterdir()] == ["patches.npz"]


def test_large_images_are_seen_whole_and_pictured_small(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "PICTURED_SIDE", 8)
    backbone = network({**VIT, "pool": "mean", "heads": 1}, 1)
    found = saved(tmp_path, backbone, backbone)
    small = crop.shrink(IMAGES[:16:2], 8)
    assert small.shape == (8, 8, 6, 3)
    np.testing.assert_array_equal(found["images"], small)
    expected = patches.attention_picture(backbone.class_attention(IMAGES[:16:2]), small)
    np.testing.assert_array_equal(found["attention/pretrained"], expected)


class Broken(sources.ArraySource):
    """Whose images at even places cannot be decoded."""

    def read(self, index):
        if index % 2 == 0:
            raise UndecodableImage(f"image {index}", "cut short")
        return super().read(index)


@pytest.mark.parametrize(
    "kind, count, expected",
    [
        (sources.ArraySource, 27, range(0, 24, 3)),
        (sources.ArraySource, 3, range(3)),
        (Broken, 16, range(1, 16, 2)),  # all of the first eight, 0, 2, 4 ..., are broken
        (Broken, 9, (1, 3, 5, 7)),
    ],
)
def test_images_are_spread_over_those_that_can_be_decoded(kind, count, expected):
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 1))
    found = samples.spread_images(kind(images), (4, 4))
    assert found[:, 0, 0, 0].tolist() == list(expected)
