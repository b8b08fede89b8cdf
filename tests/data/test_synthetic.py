import numpy as np
import pytest

from ssl_jax.data import opening, synthetic
from ssl_jax.data.sources import ArraySource
from tests.data.test_emoji import folder  # noqa: F401  a fixture


def scene(color, side=40):
    return np.full((side, side, 3), color, np.uint8)


def source(images, **options):
    return synthetic.Synthetic(ArraySource(np.stack(images), np.arange(len(images))), **options)


def test_values_have_the_mean_and_variance_of_photons_and_reading():
    """Of gray light g: mean GAIN * e + OFFSET, variance GAIN^2 (e + READ_NOISE^2) and 1/12 of rounding."""
    side = 200
    taken = synthetic.take(scene(188, side), np.random.default_rng(0)).astype(float)
    exposure = synthetic.SHORTEST ** np.random.default_rng(0).random()  # the first that is drawn
    light = ((188 / 255 + 0.055) / 1.055) ** 2.4
    electrons = exposure * synthetic.FULL_WELL * light * synthetic.vignetting(side, side)[..., None]
    scores = (taken - synthetic.GAIN * electrons - synthetic.OFFSET) / np.sqrt(
        synthetic.GAIN**2 * (electrons + synthetic.READ_NOISE**2) + 1 / 12
    )
    count = scores[..., 0].size
    np.testing.assert_allclose(scores.mean(axis=(0, 1)), 0, atol=4 / np.sqrt(count))
    np.testing.assert_allclose(scores.var(axis=(0, 1)), 1, atol=4 * np.sqrt(2 / count))
    # Noise of two bands is independent.
    correlation = np.corrcoef(scores.reshape(-1, synthetic.BANDS).T)
    np.testing.assert_allclose(correlation, np.eye(synthetic.BANDS), atol=4 / np.sqrt(count))


def test_colors_are_mixed_in_linear_light():
    rng = np.random.default_rng(0)
    black = synthetic.OFFSET
    for color, column in (((255, 0, 0), 0), ((0, 255, 0), 1), ((0, 0, 255), 2)):
        middle = synthetic.take(scene(color, 101), rng)[45:56, 45:56].astype(float).mean(axis=(0, 1)) - black
        expected = synthetic.MIXING[:, column] / synthetic.MIXING[:, column].sum()
        np.testing.assert_allclose(middle / middle.sum(), expected, atol=0.01)
    np.testing.assert_allclose(synthetic.MIXING.sum(axis=1), 1)


def test_corners_get_less_light():
    light = synthetic.vignetting(301, 401)
    assert light.max() == light[150, 200] == 1
    corner = (1 + 1 / synthetic.FOCAL_LENGTH**2) ** -2
    np.testing.assert_allclose(light[[0, 0, -1, -1], [0, -1, 0, -1]], corner, rtol=0.01)
    assert corner == pytest.approx(0.48, abs=0.005)


def test_exposures_are_drawn_for_each_image_and_span_their_range():
    taken = source([scene(255, 8)] * 300)
    brightest = [float(taken[index][4, 4, 0]) - synthetic.OFFSET for index in range(300)]
    logs = np.log(np.array(brightest) / (synthetic.GAIN * synthetic.FULL_WELL)) / np.log(synthetic.SHORTEST)
    assert logs.min() < 0.1 and logs.max() > 0.9 and abs(logs.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 300)


def test_an_image_is_the_same_whenever_it_is_read():
    images = [scene(100), scene(200), scene(200)]
    taken = source(images)
    assert taken[1].shape == (40, 40, 5) and taken[1].dtype == np.uint16
    np.testing.assert_array_equal(taken[1], taken[1])
    assert not np.array_equal(taken[1], taken[2])
    assert not np.array_equal(taken[1], source(images, seed=1)[1])
    assert taken.digest() != source(images, seed=1).digest() != ArraySource(np.stack(images)).digest()
    assert taken.labels.tolist() == [0, 1, 2]


def test_emoji_by_name(folder):  # noqa: F811
    whole = opening.load("synthetic_emoji_google", path=str(folder))
    part = opening.load("synthetic_emoji_google", path=str(folder), split="train[2:4]", bands=(4, 0))
    assert whole.name == "synthetic_emoji_google" and whole[0].shape == (64, 64, 5)
    np.testing.assert_array_equal(part[1], whole[3][..., [4, 0]])
    color = opening.load("emoji_google", path=str(folder))
    assert whole.labels.tolist() == color.labels.tolist() and list(whole.groups) == list(color.groups)
    assert opening.load("synthetic_emoji_twitter/subcategories", path=str(folder)).class_names


@pytest.mark.usefixtures("unchecked")
def test_a_scene_that_is_not_in_color_is_refused():
    with pytest.raises(ValueError, match=r"must be uint8 \[height, width, 3\], got uint8 \[4, 4, 1\]"):
        source([np.zeros((4, 4, 1), np.uint8)]).read(0)
