import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.relative_patch import CENTER, NEIGHBORS
from ssl_jax.methods.toolkit import tiling

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
INDEX = np.arange(200)


def make(name="jigsaw", **options):
    return METHODS[name](models.create("resnet8", stages=(1,)), RUN, tile=6, width=8, **options)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_tiles_are_in_the_order_of_the_labels_permutation():
    method, not_normalized = (make(permutations=20, channel_shift=0, normalize_tiles=n) for n in (True, False))

    @jax.jit
    def run(rng, index, x):
        permutations = method.init(jax.random.key(1), x[:1])[1]["permutations"]
        plain, _ = not_normalized.shuffled(rng, index, x, permutations)
        cut = tiling.cut(jax.random.split(rng, 3)[0], index, x, grid=3, side=6)
        shuffled = method.shuffled(rng, index, x, permutations)
        return permutations, *shuffled, plain, tiling.normalize(plain), tiling.normalize(cut)

    x = normal(200, 24, 24, 1)
    permutations, tiles, labels, plain, normalized, ordered = jax.device_get(run(jax.random.key(2), INDEX, x))
    assert set(labels) == set(range(20))
    for i in range(0, 200, 20):
        np.testing.assert_allclose(tiles[i], ordered[i][permutations[labels[i]]], atol=1e-5)
    np.testing.assert_allclose(normalized, tiles, atol=1e-5)
    assert np.all(np.isin(plain[0], x[0]))


def test_brightness_contrast_and_plain_borders_tell_nothing():
    # Each cell of another brightness and contrast, with the same content: alike once normalized.
    content = np.tile(np.random.default_rng(0).normal(size=(8, 8, 1)), (3, 3, 1))
    factor, offset = (
        np.kron(np.random.default_rng(i).uniform(0.5, 2, (3, 3)), np.ones((8, 8)))[..., None] for i in (1, 2)
    )

    @jax.jit
    def run(x, same):
        return tiling.normalize(tiling.overlapping(x, grid=3, side=8)), tiling.normalize(same)

    x = (content * factor + offset).astype(np.float32)[None]
    tiles, of_same = jax.device_get(run(x, np.full((1, 9, 6, 6, 3), 7, np.float32)))
    np.testing.assert_allclose(tiles, np.broadcast_to(tiles[:, :1], tiles.shape), atol=1e-3)
    assert not np.any(of_same)


def test_channels_are_shifted_by_numbers_of_their_own():
    # A single bright pixel in each channel, in the middle.
    x = np.zeros((200, 9, 9, 3), np.float32)
    x[:, 4, 4] = 1
    shifted = np.asarray(jax.jit(lambda index, x: tiling.shift_channels(jax.random.key(0), index, x, 2))(INDEX, x))
    places = np.array([[np.argwhere(image[..., c])[0] - 4 for c in range(3)] for image in shifted])
    for axis in range(2):
        assert set(places[..., axis].ravel()) == {-2, -1, 0, 1, 2}
    relative = places[:, 0] - places[:, 1]  # what chromatic aberration would be: of no place's own
    assert np.abs(relative.mean(0)).max() < 0.5 and relative.std() > 1


def of_all_and_of_none(change, x):
    """`change` of all tiles of x, and of none."""
    run = jax.jit(lambda index, x: [change(jax.random.key(1), index, x, share) for share in (1.0, 0.0)])
    return jax.device_get(run(INDEX, x))


def test_a_kept_channel_is_one_of_three_and_the_others_are_noise():
    x = normal(200, 2, 8, 8, 3) + 3
    found, untouched = of_all_and_of_none(tiling.keep_one_channel, x)
    spread = found.std(axis=(2, 3))
    kept = spread.argmax(axis=-1)
    np.testing.assert_allclose(np.bincount(kept.ravel()) / kept.size, 1 / 3, atol=0.08)
    rest = np.sort(spread, axis=-1)[..., :2] / spread.max(axis=-1, keepdims=True)
    assert 0.005 < rest.mean() < 0.015
    np.testing.assert_array_equal(untouched, x)


def test_pixelated_tiles_have_fewer_pixels():
    x = normal(200, 1, 20, 20, 1)
    found, untouched = of_all_and_of_none(tiling.pixelate, x)
    different = np.array([len(np.unique(tile)) for tile in found.reshape(200, -1)])
    assert different.min() <= 25 and different.max() > 300 and np.all(different >= 4)
    np.testing.assert_array_equal(untouched, x)


def test_seen_from_a_neighbor_the_center_is_on_the_opposite_side():
    for place, tile in enumerate(NEIGHBORS):
        row, column = np.array(divmod(tile, 3)) - np.array(divmod(CENTER, 3))
        opposite = NEIGHBORS[::-1][place]
        np.testing.assert_array_equal(np.array(divmod(opposite, 3)) - 1, [-row, -column])


@pytest.mark.parametrize("name", ["jigsaw", "relative_patch"])
def test_cells_that_are_too_small_are_refused(name):
    options = {"gap": 3} if name == "relative_patch" else {"permutations": 5}
    with pytest.raises(ValueError, match="no room for tiles of 6 pixels"):
        make(name, **options).init(jax.random.key(0), np.zeros((1, 17, 17, 1), np.float32))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"grid": 2, "permutations": 25}, "permutations=25 are more than 2x2 tiles have; use at most 24"),
        ({"grid": 4}, r"grid must be in 2\.\.3, got 4"),
        ({"criterion": "max"}, "criterion must be one of mean, min, got 'max'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
