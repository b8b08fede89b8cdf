import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run, _tiles
from ssl_jax.methods.relative_patch import CENTER, NEIGHBORS

RUN = Run(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
INDEX = jnp.arange(200)


def make(name="jigsaw", **options):
    return METHODS[name](models.create("resnet8", stages=(1,), width=2.0), RUN, tile=6, width=8, **options)


def test_tiles_are_in_the_order_of_the_labels_permutation():
    method = make(permutations=20, channel_shift=0)
    x = jax.random.normal(jax.random.key(0), (200, 24, 24, 1))
    _, state = method.init(jax.random.key(1), x[:1])
    tiles, labels = method.shuffled(jax.random.key(2), INDEX, x, state["permutations"])
    assert set(np.asarray(labels)) == set(range(20))
    rng_cut, _, _ = jax.random.split(jax.random.key(2), 3)
    ordered = _tiles.normalize(_tiles.cut(rng_cut, INDEX, x, grid=3, side=6))
    for i in range(0, 200, 20):
        np.testing.assert_allclose(tiles[i], ordered[i][state["permutations"][labels[i]]], atol=1e-5)
    plain, _ = make(permutations=20, channel_shift=0, normalize_tiles=False).shuffled(
        jax.random.key(2), INDEX[:1], x[:1], state["permutations"]
    )
    np.testing.assert_allclose(_tiles.normalize(plain)[0], tiles[0], atol=1e-5)
    assert np.all(np.isin(np.asarray(plain), np.asarray(x[0])))


def test_brightness_contrast_and_plain_borders_tell_nothing():
    # Each cell of another brightness and contrast, with the same content: alike once normalized.
    content = np.tile(np.random.default_rng(0).normal(size=(8, 8, 1)), (3, 3, 1))
    factor, offset = (
        np.kron(np.random.default_rng(i).uniform(0.5, 2, (3, 3)), np.ones((8, 8)))[..., None] for i in (1, 2)
    )
    x = jnp.asarray(content * factor + offset, jnp.float32)[None]
    tiles = _tiles.normalize(_tiles.overlapping(x, grid=3, side=8))
    np.testing.assert_allclose(tiles, jnp.broadcast_to(tiles[:, :1], tiles.shape), atol=1e-3)
    assert not np.any(_tiles.normalize(jnp.full((1, 9, 6, 6, 3), 7.0)))


def test_channels_are_shifted_by_numbers_of_their_own():
    # A single bright pixel in each channel, in the middle.
    x = jnp.zeros((200, 9, 9, 3)).at[:, 4, 4].set(1.0)
    shifted = np.asarray(_tiles.shift_channels(jax.random.key(0), INDEX, x, 2))
    places = np.array([[np.argwhere(image[..., c])[0] - 4 for c in range(3)] for image in shifted])
    for axis in range(2):
        assert set(places[..., axis].ravel()) == {-2, -1, 0, 1, 2}
    relative = places[:, 0] - places[:, 1]  # what chromatic aberration would be: of no place's own
    assert np.abs(relative.mean(0)).max() < 0.5 and relative.std() > 1


def test_a_kept_channel_is_one_of_three_and_the_others_are_noise():
    x = jax.random.normal(jax.random.key(0), (200, 2, 8, 8, 3)) + 3.0
    found = np.asarray(_tiles.keep_one_channel(jax.random.key(1), INDEX, x, 1.0))
    spread = found.std(axis=(2, 3))
    kept = spread.argmax(axis=-1)
    np.testing.assert_allclose(np.bincount(kept.ravel()) / kept.size, 1 / 3, atol=0.08)
    rest = np.sort(spread, axis=-1)[..., :2] / spread.max(axis=-1, keepdims=True)
    assert 0.005 < rest.mean() < 0.015
    untouched = _tiles.keep_one_channel(jax.random.key(1), INDEX, x, 0.0)
    np.testing.assert_array_equal(untouched, x)


def test_pixelated_tiles_have_fewer_pixels():
    x = jax.random.normal(jax.random.key(0), (200, 1, 20, 20, 1))
    found = np.asarray(_tiles.pixelate(jax.random.key(1), INDEX, x, 1.0))
    different = np.array([len(np.unique(tile)) for tile in found.reshape(200, -1)])
    assert different.min() <= 25 and different.max() > 300 and np.all(different >= 4)
    np.testing.assert_array_equal(_tiles.pixelate(jax.random.key(1), INDEX, x, 0.0), x)


def test_seen_from_a_neighbor_the_center_is_on_the_opposite_side():
    for place, tile in enumerate(NEIGHBORS):
        row, column = np.array(divmod(tile, 3)) - np.array(divmod(CENTER, 3))
        opposite = NEIGHBORS[::-1][place]
        np.testing.assert_array_equal(np.array(divmod(opposite, 3)) - 1, [-row, -column])


@pytest.mark.parametrize("name", ["jigsaw", "relative_patch"])
def test_cells_that_are_too_small_are_refused(name):
    options = {"gap": 3} if name == "relative_patch" else {"permutations": 5}
    with pytest.raises(ValueError, match="no room for tiles of 6 pixels"):
        make(name, **options).init(jax.random.key(0), jnp.zeros((1, 17, 17, 1)))
