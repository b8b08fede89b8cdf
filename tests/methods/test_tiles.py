import jax
import numpy as np
import pytest

from ssl_jax.methods.toolkit import tiling


def numbered(height, width, batch=1):
    """Images whose two channels say where a pixel is."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = np.stack([rows, columns], axis=-1).astype(np.float32)
    return np.broadcast_to(image, (batch, *image.shape))


def corners(tiles):
    """(top, left) of each tile, having seen that it is a square of the image."""
    side = tiles.shape[2]
    tiles = np.asarray(tiles)
    corner = tiles[:, :, 0, 0]
    assert np.all(tiles - corner[:, :, None, None] == numbered(side, side)[None])
    return corner.astype(int)


@pytest.mark.parametrize("height, width, grid, side, gap", [(32, 23, 3, 6, 0), (32, 32, 3, 5, 3), (9, 9, 3, 3, 0)])
def test_cut_takes_each_tile_from_anywhere_in_its_cell(height, width, grid, side, gap):
    cut = jax.jit(lambda index, x: tiling.cut(jax.random.key(0), index, x, grid=grid, side=side, gap=gap))
    found = corners(cut(np.arange(500), numbered(height, width, 500)))
    for axis, size in enumerate((height, width)):
        cell = size // grid
        for number in range(grid**2):
            start = (size - cell * grid) // 2 + cell * [number // grid, number % grid][axis]
            places = set(range(start, start + cell - gap - side + 1))
            assert set(found[:, number, axis]) == places


def test_cut_depends_on_the_images_index_alone():
    images = np.random.default_rng(1).normal(size=(4, 32, 32, 1)).astype(np.float32)
    index, order = np.array([7, 3, 9, 4]), np.array([2, 0, 3, 1])
    tiles = jax.jit(lambda rng, index, images: tiling.cut(rng, index, images, grid=3, side=4))
    of_all, reordered, other = (
        np.asarray(tiles(jax.random.key(seed), index[rows], images[rows]))
        for seed, rows in [(0, slice(None)), (0, order), (5, slice(None))]
    )
    np.testing.assert_array_equal(reordered, of_all[order])
    assert np.any(of_all != other)


def test_overlapping_fills_the_image_evenly():
    found = corners(jax.jit(lambda x: tiling.overlapping(x, grid=6, side=80))(numbered(260, 285)))[0].reshape(6, 6, 2)
    # CPC v2's 80 pixels of 260, every 36; across, every 41.
    expected = np.stack(np.meshgrid(36 * np.arange(6), 41 * np.arange(6), indexing="ij"), axis=-1)
    np.testing.assert_array_equal(found, expected)


def test_shuffle_gives_every_image_an_order_of_its_own():
    tiles = np.broadcast_to(np.arange(9, dtype=np.float32)[None, :, None, None, None], (64, 9, 1, 1, 1))
    orders = np.asarray(jax.jit(tiling.shuffle)(jax.random.key(0), np.arange(64), tiles))[..., 0, 0, 0]
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(9), (64, 1)))
    assert len(np.unique(orders, axis=0)) == 64


def test_as_images_has_an_images_tiles_one_after_the_other():
    tiles = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2, 1)
    np.testing.assert_array_equal(np.asarray(jax.jit(tiling.as_images)(tiles))[4], tiles[1, 1])


def test_impossible_grids_are_refused():
    x = numbered(28, 28)
    with pytest.raises(ValueError, match=r"3x3 cells in 28x28 pixels has no room for tiles of 8 pixels 2 apart; .* 30"):
        jax.eval_shape(lambda index, x: tiling.cut(jax.random.key(0), index, x, grid=3, side=8, gap=2), np.arange(1), x)
    with pytest.raises(ValueError, match="6 patches of 8 pixels cannot be equally spaced over 30; use views of 28"):
        jax.eval_shape(lambda x: tiling.overlapping(x, grid=6, side=8), numbered(30, 30))
