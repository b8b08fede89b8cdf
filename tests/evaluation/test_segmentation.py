import cv2
import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.data import opening
from ssl_jax.evaluation import segmentation
from ssl_jax.evaluation.segmentation import IGNORE, confusion, linear_segmentation
from ssl_jax.weights import Backbone
from tests.debian import needs_fashion_mnist

CLASSES, DIM = 3, 5


def blocks(images, seed, cell=4):
    """Maps of 4 x 6 patches whose first columns are nearly the class, and masks of `cell` x `cell` pixels a patch."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, (images, 4, 6))
    maps = rng.normal(size=(images, 4, 6, DIM))
    maps[..., :CLASSES] = 10 * np.eye(CLASSES)[classes] + 0.1 * maps[..., :CLASSES]
    masks = classes.repeat(cell, axis=1).repeat(cell, axis=2).astype(np.uint8)
    return maps.astype(np.float16), masks


TRAIN, TEST = blocks(20, 0), blocks(10, 1)
# Of two more classes than there are.
OPTIONS = {"num_classes": CLASSES + 2, "learning_rates": (0.03,), "steps": 60, "batch_size": 8}


def test_counts_by_hand():
    truth = np.array([[[0, 0, 1], [2, IGNORE, 1]]], np.uint8)
    predicted = np.array([[[0, 1, 1], [0, 2, 1]]], np.uint8)
    np.testing.assert_array_equal(confusion(truth, predicted, 3), [[1, 1, 0], [0, 2, 0], [1, 0, 0]])


def test_scores_are_those_of_the_counts():
    """With an unreachable class 3 in the truth of one pixel, and a class 4 that nothing has."""
    masks = TEST[1].copy()
    masks[0, 0, 0] = 3
    found = linear_segmentation(*TRAIN, TEST[0], masks, **OPTIONS)
    truth, predicted = masks.ravel(), found.predictions.ravel()
    expected = [
        100 * np.sum((truth == k) & (predicted == k)) / np.sum((truth == k) | (predicted == k)) for k in range(4)
    ]
    np.testing.assert_allclose(found.iou[:4], expected)
    assert np.isnan(found.iou[4])
    assert found.iou[3] == 0
    np.testing.assert_allclose(found.mean_iou, np.mean(expected))
    np.testing.assert_allclose(found.pixel_accuracy, 100 * np.mean(truth == predicted))


def test_patches_that_tell_their_class_are_told_apart():
    found = linear_segmentation(*TRAIN, *TEST, **OPTIONS)
    # Bilinear logits leave the last pixels of a corner between three classes open.
    assert found.mean_iou > 90
    inner = (slice(None), slice(1, None, 4), slice(1, None, 4))
    assert np.mean(found.predictions[inner] == TEST[1][inner]) > 0.99
    assert found.predictions.shape == TEST[1].shape


def test_pixels_that_do_not_count_change_nothing():
    """They say another class in training, and anything in the test."""
    rng = np.random.default_rng(0)
    hidden = [masks.copy() for masks in (TRAIN[1], TEST[1])]
    for masks in hidden:
        masks[rng.random(masks.shape) < 0.5] = IGNORE
    found = linear_segmentation(TRAIN[0], hidden[0], TEST[0], hidden[1], **OPTIONS)
    assert found.predictions.max() < CLASSES
    counted = hidden[1] != IGNORE
    expected = 100 * np.mean(found.predictions[counted] == TEST[1][counted])
    np.testing.assert_allclose(found.pixel_accuracy, expected)
    assert found.pixel_accuracy > 90


def test_pixels_are_named_as_their_logits_were_trained():
    """Trained by interpolation on the device, named by OpenCV's on the host."""
    params = {"kernel": np.eye(DIM, CLASSES, dtype=np.float32), "bias": np.arange(3, dtype=np.float32)}
    fixed = {"mean": np.zeros(DIM, np.float32), "scale": np.ones(DIM, np.float32)}
    maps = TRAIN[0][:2]
    found = jax.jit(segmentation._LOGITS["linear"], static_argnums=3)(params, fixed, maps, (2, 16, 18))
    logits = maps[..., :CLASSES].astype(np.float32) + np.arange(3, dtype=np.float32)
    np.testing.assert_allclose(segmentation.patch_logits("linear", {**params, **fixed}, maps), logits, atol=1e-5)
    expected = np.stack([cv2.resize(one, (18, 16), interpolation=cv2.INTER_LINEAR) for one in logits])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    named = segmentation.predict_masks("linear", {**params, **fixed}, maps, (16, 18), batch_size=1)
    np.testing.assert_array_equal(named, expected.argmax(axis=-1))


def test_the_convolution_is_that_of_its_kernel():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 6, DIM)).astype(np.float32)
    head = segmentation.HEADS["conv"]
    params = head.first(jax.random.key(0), DIM, segmentation.HIDDEN)
    params |= {"kernel": np.eye(segmentation.HIDDEN), "bias": np.zeros(segmentation.HIDDEN)}
    params["conv_bias"] = rng.normal(size=segmentation.HIDDEN).astype(np.float32)
    convolved = jax.lax.conv_general_dilated(
        x, params["conv_kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    found = jax.jit(head.patches)(params, x)
    np.testing.assert_allclose(found, jax.nn.gelu(convolved + params["conv_bias"]), atol=1e-5)


def test_a_head_that_sees_neighbors_learns_what_a_patch_alone_does_not_tell():
    """The class of a patch is whether its feature is that of the patch to its left."""
    rng = np.random.default_rng(0)
    signs = rng.integers(0, 2, (60, 6, 6))
    classes = (signs == np.roll(signs, 1, axis=2)).astype(np.uint8)
    classes[:, :, 0] = IGNORE  # has no patch to its left
    maps, masks = (2.0 * signs[..., None] - 1).astype(np.float16), classes.repeat(2, axis=1).repeat(2, axis=2)
    found = {}
    for head in ("linear", "conv"):
        options = dict(num_classes=2, learning_rates=(0.01,), steps=100, batch_size=16)
        fitted = segmentation.fit_head(head, maps[:40], masks[:40], **options)
        predictions = segmentation.predict_masks(head, fitted.parameters, maps[40:], (12, 12))
        found[head] = segmentation.measure(masks[40:], predictions, 2, fitted.learning_rate)
    assert found["linear"].mean_iou < 40 < 85 < found["conv"].mean_iou


def test_the_largest_class_is_the_baseline():
    truth = np.array([[[0, 0, 0], [0, 1, IGNORE]]], np.uint8)
    found = segmentation.measure(truth, np.zeros_like(truth), 3, 0.1)
    np.testing.assert_allclose(found.shares, [80, 20, 0])
    assert found.largest == 0 and found.pixel_accuracy == 80
    assert found.largest_mean_iou == pytest.approx(40) == found.mean_iou


def test_masks_of_the_test_may_be_of_another_size():
    masks = blocks(10, 1, cell=3)[1]
    found = linear_segmentation(*TRAIN, TEST[0], masks, **OPTIONS)
    assert found.predictions.shape == (10, 12, 18)
    assert found.mean_iou > 85


@needs_fashion_mnist
def test_clothes_on_a_canvas():
    """Real images: trousers, bags and boots, each somewhere in a larger image; an untrained ResNet's map tells them
    from the background and, better than chance, from each other."""
    source = opening.load("fashion_mnist", channels=1)
    kinds = {1: 1, 8: 2, 9: 3}  # label -> class; 0 is the background
    rng = np.random.default_rng(0)
    images, masks = np.zeros((96, 48, 48, 1), np.uint8), np.zeros((96, 48, 48), np.uint8)
    chosen = [i for i in range(2000) if int(source.labels[i]) in kinds][:192]
    for number, index in enumerate(chosen):
        item, (top, left) = source[index], rng.integers(0, 21, 2)
        left = left // 2 + 10 * (number % 2)  # two an image, which may overlap
        window = (number // 2, slice(top, top + 28), slice(left, left + 28))
        shown = item[..., 0] > 0
        images[window] = np.where(shown[..., None], item, images[window])
        masks[window] = np.where(shown, kinds[int(source.labels[index])], masks[window])
    module = models.create("resnet8", stages=(1, 1))
    variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 48, 48, 1), np.float32))
    maps = Backbone(module, variables, (0.3,), (0.35,)).patch_features(images)
    found = linear_segmentation(
        maps[:64], masks[:64], maps[64:], masks[64:], num_classes=4, learning_rates=(0.02,), steps=50
    )
    background = 100 * np.mean(masks[64:] == 0)  # the accuracy of calling everything so, and four times its mean IoU
    assert found.pixel_accuracy > background + 1
    assert found.mean_iou > background / 4 + 15
    assert np.min(found.iou) > 10


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_classes": 1}, r"num_classes must be in 2\.\.255, got 1"),
        ({"num_classes": 256}, r"num_classes must be in 2\.\.255, got 256"),
        ({"num_classes": 2}, "train: a mask has class 2, too large for num_classes=2; classes count from 0, and 255"),
        ({"train_masks": TRAIN[1][:-1]}, "train: feature maps of 20 images but 19 masks"),
        ({"test_masks": np.full_like(TEST[1], IGNORE)}, "test: no pixel of the masks has a class"),
        ({"train_maps": TRAIN[0][:1], "train_masks": TRAIN[1][:1]}, "one training image leaves none"),
        ({"test_maps": TEST[0][..., :4]}, "5 and 4 dimensions"),
        ({"test_maps": np.full_like(TEST[0], np.nan)}, "test: 10 of 10 rows of features are not finite"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"train_maps": TRAIN[0], "train_masks": TRAIN[1], "test_maps": TEST[0], "test_masks": TEST[1]}
    with pytest.raises(ValueError, match=message):
        linear_segmentation(**{**given, **OPTIONS, **change})
