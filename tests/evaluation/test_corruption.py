import itertools

import numpy as np
import pytest

from ssl_jax.data import opening
from ssl_jax.evaluation import corruption
from ssl_jax.evaluation.corruption import CORRUPTIONS, corrupt, robustness
from tests.debian import needs_fashion_mnist

RNG = np.random.default_rng(0)
# Waves with some texture, which noise, blur and blocks all take away from.
WAVES = np.sin(np.arange(28)[:, None, None] / 4) * np.cos(np.arange(40)[None, :, None] / 3 + np.arange(3))
WIDE = np.rint(127.5 + 80 * WAVES + RNG.uniform(-25, 25, WAVES.shape)).astype(np.uint8)
COLOR, GRAY = WIDE[:, :28], WIDE[:, :28, :1]


def distance(image, other):
    return np.abs(image.astype(float) - other).mean()


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("image", [GRAY, COLOR, WIDE], ids=["gray", "color", "wide"])
def test_each_severity_takes_away_more(name, image):
    kept = image.copy()
    made = [corrupt(image, name, severity, 5) for severity in (1, 2, 3, 4, 5)]
    assert all(one.shape == image.shape and one.dtype == np.uint8 for one in made)
    distances = [distance(one, image) for one in made]
    assert distances[0] > 0
    assert all(low < high for low, high in itertools.pairwise(distances))
    np.testing.assert_array_equal(image, kept)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_by_its_index_alone(name):
    first, again, other = (corrupt(COLOR, name, 4, index) for index in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    random = name not in ("gaussian_blur", "brightness", "contrast", "pixelate", "jpeg")
    # Of rotation there are two sides only.
    assert np.array_equal(first, other) != random or name == "rotation"


def flat(value, channels=1):
    return np.full((64, 64, channels), value, np.uint8)


def test_strengths_are_what_they_say():
    gray = flat(128, 3)
    std = [corrupt(gray, "gaussian_noise", severity, 0).std() / 255 for severity in (1, 2)]
    np.testing.assert_allclose(std, [0.08, 0.12], rtol=0.03)
    # Poisson's variance is its mean: 128 / 255 * 60 photons.
    np.testing.assert_allclose(corrupt(gray, "shot_noise", 1, 0).std() / 128, (128 / 255 * 60) ** -0.5, rtol=0.03)
    extreme = corrupt(gray, "impulse_noise", 5, 0)
    np.testing.assert_allclose([np.mean(extreme == 0), np.mean(extreme == 255)], 0.27 / 2, atol=0.01)
    np.testing.assert_array_equal(corrupt(flat(100), "brightness", 2, 0), 151)
    two = np.concatenate([flat(50), flat(150)])
    np.testing.assert_array_equal(np.unique(corrupt(two, "contrast", 3, 0)), [90, 110])
    assert np.mean(corrupt(flat(0), "occlusion", 3, 0) == 128) == (round(0.35 * 64) / 64) ** 2
    blocks = corrupt(RNG.integers(0, 256, (64, 64, 3), np.uint8), "pixelate", 2, 0)
    np.testing.assert_array_equal(blocks, np.repeat(np.repeat(blocks[::2, ::2], 2, axis=0), 2, axis=1))


@pytest.mark.parametrize("name", ["gaussian_blur", "motion_blur"])
def test_blurs_average(name):
    np.testing.assert_array_equal(corrupt(flat(77, 3), name, 5, 0), 77)
    point = np.zeros((64, 64, 1), np.uint8)
    point[30:34, 30:34] = 255
    blurred = corrupt(point, name, 3, 0).astype(float)
    np.testing.assert_allclose(blurred.sum(), point.sum(), rtol=0.05)
    assert blurred.max() < 255


def test_a_gaussian_blur_grows_with_the_image():
    def width(side):
        """Standard deviation of a blurred edge's derivative, in pixels."""
        edge = np.zeros((side, side, 1), np.uint8)
        edge[:, side // 2 :] = 255
        rise = np.diff(corrupt(edge, "gaussian_blur", 5, 0)[side // 2, :, 0].astype(float)) / 255
        return np.sqrt(np.sum(rise * (np.arange(side - 1) - (side // 2 - 1)) ** 2))

    np.testing.assert_allclose([width(64), width(128)], [0.05 * 64, 0.05 * 128], rtol=0.05)


def test_rotation_goes_to_both_sides_about_the_middle():
    image = np.zeros((65, 65, 1), np.uint8)
    image[32, 32], image[32, 45:60] = 255, 255
    seen = set()
    for index in range(20):
        turned = corrupt(image, "rotation", 5, index)
        assert turned[32, 32] > 200
        rows, columns = np.nonzero(turned[:, 40:62, 0] > 60)
        seen.add(round(np.degrees(np.arctan2(np.mean(rows) - 32, np.mean(columns) + 8)) / 30))
    assert seen == {-1, 1}


def test_robustness_counts_hits():
    images = np.stack([flat(value)[:8, :8] for value in (10, 20, 200, 210)])
    seen = []

    def predict(batch):
        seen.append(len(batch))
        return (batch.mean(axis=(1, 2, 3)) > 100).astype(int)

    options = {"corruptions": ("brightness", "gaussian_blur"), "severities": (1, 5), "batch_size": 3}
    found = robustness(predict, images, np.array([0, 1, 1, 1]), **options)
    assert found.clean == 75.0
    # Half of white takes the two dark ones over 100 as well.
    assert found.accuracies == {"brightness": (75.0, 75.0), "gaussian_blur": (75.0, 75.0)}
    # The one dark image is missed, its class with it.
    assert found.clean_class_mean == pytest.approx(250 / 3)
    assert found.class_means["brightness"] == pytest.approx((250 / 3, 50.0))
    found = robustness(predict, images, np.array([0, 0, 1, 1]), **options)
    assert (found.clean, found.accuracies["brightness"], found.mean) == (100.0, (100.0, 50.0), 87.5)
    assert set(seen) == {3, 1}


@needs_fashion_mnist
def test_a_nearest_mean_classifier_loses_by_severity():
    source = opening.load("fashion_mnist", channels=1)
    images = np.stack([source[i] for i in range(600)])
    labels = source.labels[:600]
    means = np.stack([images[labels == k].reshape(-1, 784).mean(axis=0) for k in range(10)])

    def predict(batch):
        flat = batch.reshape(len(batch), -1).astype(float)
        return np.argmin(-2 * flat @ means.T + np.sum(means**2, axis=1), axis=1)

    names = ("rotation", "gaussian_noise", "occlusion")
    found = robustness(predict, images[:200], labels[:200], corruptions=names, severities=(1, 5))
    assert 60 < found.clean < 90
    assert found.accuracies["rotation"][1] < found.accuracies["rotation"][0] - 5
    assert found.mean < found.clean


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "change, message",
    [
        ({"corruptions": ("fog",)}, "no corruption 'fog'; there are gaussian_noise"),
        ({"severities": (0,)}, "severity must be 1 to 5, got 0"),
        ({"severities": ()}, r"at least one corruption and one severity, got .* and \(\)"),
        ({"labels": np.zeros(3, int)}, "2 images and 3 labels"),
        ({"images": np.zeros((0, 8, 8, 1), np.uint8), "labels": np.zeros(0, int)}, "0 images and 0 labels"),
        ({"predict": lambda batch: np.zeros((len(batch), 10))}, r"predict gave \(2, 10\) for 2 images"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"predict": lambda batch: np.zeros(len(batch)), "images": np.stack([GRAY] * 2), "labels": np.zeros(2, int)}
    with pytest.raises(ValueError, match=message):
        robustness(**{**given, **change})


def test_every_corruption_has_a_strength_for_each_severity():
    assert all(len(strengths) == len(corruption.SEVERITIES) for _, strengths in CORRUPTIONS.values())
