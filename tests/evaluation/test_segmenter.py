import dataclasses
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssl_jax
from ssl_jax import data, models, weights
from ssl_jax.evaluation import segmentation, segmenter
from ssl_jax.evaluation.segmentation import IGNORE

SIZE = (24, 24)
OPTIONS = {"name": "resnet8", "stages": (1,), "width": 0.5}
TRAINING = {"learning_rates": (0.03,), "steps": 40, "batch_size": 8}
NAMES = ("ground", "dark", "light")


def squares(count, seed, channels=1, dtype=np.uint8):
    """Images of noise with a dark and a light square each, and their masks. The border of each image is not counted."""
    rng = np.random.default_rng(seed)
    images = rng.normal(128, 12, (count, *SIZE, channels))
    masks = np.zeros((count, *SIZE), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        for kind, value in ((1, 30), (2, 225)):
            top, left = rng.integers(0, 8), rng.integers(0, 15)
            window = (slice(top + 8 * (kind - 1), top + 8 * kind), slice(left, left + 9))
            image[window], mask[window] = value + rng.normal(0, 12, image[window].shape), kind
    masks[:, 0] = IGNORE
    scale = 1 if dtype == np.uint8 else 200
    return (scale * np.clip(images, 0, 255)).astype(dtype), masks


def backbone_for(options, size, channels=1, **values):
    module = models.create(**options)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *size, channels)))
    facts = {"model": options, "method": "none"}
    return weights.Backbone(module, variables, (0.5,) * channels, (0.25,) * channels, size, facts, **values)


@pytest.fixture(scope="module")
def small():
    return backbone_for(OPTIONS, SIZE)


@pytest.fixture(scope="module")
def found(small):
    pairs = (data.masked(*squares(40, 0)), data.masked(*squares(20, 1)))
    return ssl_jax.segment(small, *pairs, class_names=NAMES, **TRAINING)


def test_squares_are_told_from_the_ground(found):
    scores = found.scores
    assert scores["mean_iou"] > scores["majority"]["mean_iou"] + 25
    assert scores["majority"]["class"] == "ground" and scores["pixel_accuracy"] > scores["majority"]["percent"]
    assert set(scores["classes"]) == set(NAMES)
    assert scores["train_images"] == 40 and scores["test_images"] == 20 and scores["image_size"] == list(SIZE)
    assert sum(one["percent"] for one in scores["classes"].values()) == pytest.approx(100)
    assert found.segmenter.facts["train"]["masks_digest"] != found.segmenter.facts["test"]["masks_digest"]
    assert len(found.samples.names) == 8 and found.samples.images.shape == (8, *SIZE, 1)


def test_masks_are_those_that_were_scored(found):
    images, truth = squares(20, 1)
    masks = found.segmenter.masks(images)
    assert masks.shape == truth.shape and masks.dtype == np.uint8
    counted = truth != IGNORE
    assert 100 * np.mean(masks[counted] == truth[counted]) == pytest.approx(found.scores["pixel_accuracy"], abs=0.2)
    assert np.mean(masks[[0, 19]] == found.samples.predicted[[0, 7]]) > 0.99
    larger = found.segmenter.masks(images, size=(48, 72))
    assert larger.shape == (20, 48, 72)
    assert np.mean(larger[:, ::2, ::3] == masks) > 0.9


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_it_comes_back_from_its_files(small, tmp_path, head):
    made = ssl_jax.segment(small, data.masked(*squares(10, 0)), head=head, **{**TRAINING, "steps": 3})
    assert "mean_iou" not in made.scores and made.samples is None
    made.save(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("backbone.safetensors", "backbone.json", "segmenter.safetensors", "segmenter.json", "scores.json")
    }
    loaded = ssl_jax.load_segmenter(tmp_path / "out")
    assert loaded.class_names == ("0", "1", "2") and loaded.head == head and loaded.facts["seed"] == 0
    images, _ = squares(5, 2)
    np.testing.assert_array_equal(loaded.masks(images), made.segmenter.masks(images))
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["steps"] == 3


def test_a_vit_at_another_size_than_its_own(tmp_path):
    options = {"name": "vit_tiny_patch16_224", "patch_size": 4, "dim": 24, "depth": 1, "heads": 2, "image_size": 16}
    vit = backbone_for(options, (16, 16))
    pairs = (data.masked(*squares(24, 0)), data.masked(*squares(12, 1)))
    made = ssl_jax.segment(vit, *pairs, image_size=SIZE, **TRAINING)
    assert made.scores["mean_iou"] > made.scores["majority"]["mean_iou"] + 10
    made.save(tmp_path)
    loaded = ssl_jax.load_segmenter(tmp_path)
    assert loaded.backbone.image_size == SIZE
    images, _ = squares(5, 2)
    assert np.mean(loaded.masks(images) == made.segmenter.masks(images)) > 0.99


def test_images_of_five_bands_and_sixteen_bits():
    values = {"value_range": (0.0, 51000.0), "dtype": "uint16"}
    backbone = backbone_for(OPTIONS, SIZE, 5, **values)
    train, test = (data.masked(*squares(count, count, 5, np.uint16)) for count in (24, 12))
    made = ssl_jax.segment(backbone, train, test, **TRAINING)
    assert made.scores["mean_iou"] > made.scores["majority"]["mean_iou"] + 25
    assert made.samples.images.shape == (8, *SIZE, 3) and made.samples.images.max() > 200


def test_whole_groups_are_held_out(small, monkeypatch):
    images, masks = squares(12, 0)
    groups, drawn, draw = np.arange(12) // 3, [], segmentation.draw_labels

    def spy(labels, num_classes, per_class, seed, groups):
        drawn.append((groups, *draw(labels, num_classes, per_class, seed, groups)))
        return drawn[-1][1:]

    monkeypatch.setattr(segmentation, "draw_labels", spy)
    train = data.masked(data.arrays(images, groups=groups), masks)
    ssl_jax.segment(small, train, **{**TRAINING, "steps": 1})
    ((given, index, held_out),) = drawn
    held, kept = (set(given[index[rows]].tolist()) for rows in (held_out, ~held_out))
    assert held and kept and held.isdisjoint(kept)


def test_values_of_masks_are_turned_into_classes(small):
    images, masks = squares(10, 0)
    values = np.where(masks == IGNORE, 0, 255 * (masks > 0)).astype(np.uint8)
    made = ssl_jax.segment(
        small, data.masked(images, values), data.masked(images, values), mask_values=(0, 255), **TRAINING
    )
    assert made.scores["classes"]["1"]["percent"] == pytest.approx(100 * np.mean(values == 255))
    with pytest.raises(ValueError, match="give mask_values=0,255"):
        ssl_jax.segment(small, data.masked(images, values), **TRAINING)


def test_what_cannot_be_trained_is_refused(small):
    pairs = data.masked(*squares(4, 0))
    with pytest.raises(ValueError, match="there is no head 'unet'; choose from linear, conv"):
        ssl_jax.segment(small, pairs, head="unet")
    with pytest.raises(ValueError, match=r"give image_size=\(height, width\)"):
        ssl_jax.segment(dataclasses.replace(small, image_size=None), pairs)
    with pytest.raises(ValueError, match="do not say how their images were normalized"):
        ssl_jax.segment(dataclasses.replace(small, mean=(), std=()), pairs)
    with pytest.raises(ValueError, match="one training image leaves none"):
        ssl_jax.segment(small, data.masked(*squares(1, 0)))
    images, masks = squares(4, 0)
    with pytest.raises(ValueError, match="0 is 24 x 24 pixels, but mask 0 is 24 x 23"):
        ssl_jax.segment(small, data.masked(images, masks[:, :, 1:]))
    vit = backbone_for(
        {"name": "vit_tiny_patch16_224", "patch_size": 8, "dim": 16, "depth": 1, "heads": 1, "pool": "mean"}, SIZE
    )
    with pytest.raises(ValueError, match="has no LayerNorm for single tokens"):
        ssl_jax.segment(vit, pairs)


def test_files_that_are_no_segmenter_are_refused(found, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*segmenter\.safetensors; ssl_jax segment --out"):
        segmenter.load_segmenter(tmp_path)
    found.save(tmp_path)
    (tmp_path / "segmenter.json").write_text('{"head": "linear", "classes": ["a", "b"], "facts": {}}')
    with pytest.raises(ValueError, match=r"a linear head on features of \d+ dimensions, for the 2 classes of"):
        segmenter.load_segmenter(tmp_path)
    for damaged in ("{", '{"head": "unet", "classes": ["a", "b"], "facts": {}}'):
        (tmp_path / "segmenter.json").write_text(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            segmenter.load_segmenter(tmp_path)


def test_a_smaller_last_batch_is_compiled_with_the_others(small):
    images, _ = squares(3, 0)
    alone = segmenter.patch_maps(small, images, 3)
    np.testing.assert_allclose(segmenter.patch_maps(small, images, segmenter.BATCH + 3), alone, atol=1e-5)


def test_masks_are_written_at_the_size_of_each_image(found, tmp_path, caplog):
    images, _ = squares(2, 3)
    for name, image in (("a/one", np.tile(images[0], (2, 1, 1))), ("two", images[1])):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "new" / f"{name}.png"), image)
    (tmp_path / "new" / "broken.png").write_bytes(b"x")
    count = segmenter.write_masks(found.segmenter, data.folder(tmp_path / "new", channels=1), tmp_path / "out")
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert count == 2 and written == {"a/one.png", "two.png"} and "skipped broken.png" in caplog.text
    assert cv2.imread(str(tmp_path / "out" / "a" / "one.png"), cv2.IMREAD_UNCHANGED).shape == (48, 24)
    mask = cv2.imread(str(tmp_path / "out" / "two.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask, found.segmenter.masks(images[1:])[0])
    cv2.imwrite(str(tmp_path / "new" / "two.bmp"), images[1])
    with pytest.raises(ValueError, match=r"two\.bmp and two\.png would have one mask, two\.png"):
        segmenter.write_masks(found.segmenter, data.folder(tmp_path / "new", channels=1), tmp_path / "out")
