import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.methods.toolkit.segments import at_places, segment

run = jax.jit(segment, static_argnames=("side", "place_weight", "rounds"))


def two_halves():
    """Two images of 8 x 8: dark at the left up to column 3, and dark at the top up to row 5."""
    images = np.zeros((2, 8, 8, 1), np.float32)
    images[0, :, 3:], images[1, 5:] = 2.0, 2.0
    return images + 0.01 * np.random.default_rng(0).normal(size=images.shape).astype(np.float32)


def test_a_large_weight_of_places_leaves_the_grid():
    found = np.asarray(run(two_halves(), side=2, place_weight=1000.0))
    expected = np.arange(4).reshape(2, 2).repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(found, [expected, expected])
    np.testing.assert_array_equal(run(two_halves(), side=2, place_weight=0.0, rounds=0), [expected, expected])


def test_segments_keep_to_colors():
    images = two_halves()
    found = np.asarray(run(images, side=2, place_weight=0.3))
    for image, segments in zip(images[..., 0], found, strict=True):
        assert len(np.unique(segments)) > 1
        for number in np.unique(segments):
            assert np.ptp(image[segments == number]) < 1.0, "a segment has one color"


def test_images_do_not_depend_on_each_other():
    images = two_halves()
    both = run(images, side=2, place_weight=0.3)
    np.testing.assert_array_equal(both[::-1], run(images[::-1], side=2, place_weight=0.3))


def test_a_place_has_the_segment_of_the_nearest_pixel():
    pixels = jnp.array([[[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]])
    places = jnp.array([[[0.1, 0.9], [0.6, 0.4], [0.9, 0.9], [-0.5, 0.2], [0.2, 0.1]]])
    np.testing.assert_array_equal(at_places(jnp.array([[7, 5, 6, 4]]), pixels, places), [[5, 6, 4, 7, 7]])
