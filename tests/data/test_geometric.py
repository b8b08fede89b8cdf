import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from ssl_jax.data.augment import Augmentation, make_augment
from ssl_jax.data.geometric import quarter_turned
from tests.data.drawn_views import PLAIN, random_images, unit, views_and_boxes
from tests.references import make_views

N = 4000
BEFORE = np.load(make_views.__file__.replace("make_views.py", "views.npz"))


@pytest.mark.parametrize("name", make_views.CASES)
def test_views_are_what_they_were_before_there_were_more_operations(name):
    # To the bit where they were made; elsewhere a sum may be rounded otherwise.
    np.testing.assert_allclose(make_views.views(make_views.CASES[name]), BEFORE[name], atol=1e-5)


def orientation(views, image):
    """For each view: (mirrored, quarters), so that it is np.rot90(the image or its mirror image, quarters) exactly."""
    found = np.full((len(views), 2), -1)
    for mirrored in (0, 1):
        for quarters in range(4):
            expected = np.rot90(image[:, ::-1] if mirrored else image, quarters)
            found[(np.abs(views - expected) < 1e-6).all(axis=(1, 2, 3))] = mirrored, quarters
    assert (found >= 0).all()
    return found


@pytest.mark.parametrize("channels", [1, 5])
def test_orientations_are_as_frequent_as_asked_and_the_box_tells_them(channels):
    image = random_images(1, 6, 6, channels)[0]
    options = PLAIN | dict(flip=0.5, flip_vertical=0.5, quarter_turns=0.75)
    views, boxes = views_and_boxes(image, Augmentation((6, 6), **options), N)
    found = orientation(views, image / np.float32(255))
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == 8 and stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(boxes[:, :4], [[0.0, 0.0, 1.0, 1.0]] * N)
    np.testing.assert_array_equal(boxes[:, 4], found[:, 0])
    np.testing.assert_array_equal(boxes[:, 5] % 360, 90 * found[:, 1])


@pytest.mark.parametrize(
    "options, expected",
    [  # (mirrored, quarters) -> share. Upside down is mirrored and turned by two quarters.
        (dict(flip_vertical=0.3), {(0, 0): 0.7, (1, 2): 0.3}),
        (dict(quarter_turns=0.3), {(0, 0): 0.7, (0, 1): 0.1, (0, 2): 0.1, (0, 3): 0.1}),
        (dict(flip=0.5, flip_vertical=0.4), {(0, 0): 0.3, (1, 0): 0.3, (1, 2): 0.2, (0, 2): 0.2}),
    ],
)
def test_flips_and_turns_have_their_probabilities(options, expected):
    image = random_images(1, 4, 4, 2)[0]
    views, _ = views_and_boxes(image, Augmentation((4, 4), **PLAIN | options), N)
    kinds, counts = np.unique(orientation(views, image / np.float32(255)), axis=0, return_counts=True)
    assert {tuple(kind) for kind in kinds} == set(expected)
    assert stats.chisquare(counts, [N * expected[tuple(kind)] for kind in kinds]).pvalue > 1e-3


def test_a_quarter_turn_is_numpys():
    image = random_images(1, 5, 5, 3)[0].astype(np.float32)
    turn = jax.jit(quarter_turned)
    for quarters in range(4):
        turned = turn(image.transpose(2, 0, 1), np.int32(quarters))
        np.testing.assert_array_equal(np.asarray(turned).transpose(1, 2, 0), np.rot90(image, quarters))


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("window", [{}, {"shorter_side": 14, "padding": 2}])
def test_a_flip_and_a_turn_change_nothing_else(window, host):
    """Whatever else is drawn for a view, it is drawn the same with and without them."""
    colors = dict(brightness=0.4, contrast=0.4, hue=0.1, grayscale=0.2, solarize=0.3)
    without = Augmentation((12, 12), flip=0.5, **colors, **window)
    options = [without, *(dataclasses.replace(without, **{name: 1.0}) for name in ("flip_vertical", "quarter_turns"))]
    crops = random_images(16, 12, 12, 3)
    given = {"crops": (crops,), "boxes": (np.zeros((16, 4), np.float32),)} if host else {"image": crops}
    batch = given | {"index": np.arange(16)}

    def view(augmentation):
        return np.asarray(jax.jit(make_augment([augmentation], unit(3)))(jax.random.key(2), batch)["views"][0])

    plain, upside_down, turned = map(view, options)
    np.testing.assert_allclose(upside_down, plain[:, ::-1], atol=1e-5)
    for ours, theirs in zip(turned, plain, strict=True):
        # The contrast's mean is summed in another order.
        assert min(np.abs(ours - np.rot90(theirs, quarters)).max() for quarters in (1, 2, 3)) < 1e-5
