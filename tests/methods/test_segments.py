import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.methods.toolkit.segments import at_places, background, in_view, segment

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


def find_background(images, side=4):
    return np.asarray(jax.jit(lambda x: background(x, segment(x, side, 0.3), side * side))(images))


def test_background_is_what_is_long_on_the_border_for_its_area():
    images = 0.01 * np.random.default_rng(0).normal(size=(3, 16, 16, 1)).astype(np.float32)
    expected = np.ones((3, 16, 16), bool)
    images[0, 4:12, 5:11], expected[0, 4:12, 5:11] = 2.0, False  # inside
    images[1, 8:, 6:10], expected[1, 8:, 6:10] = -2.0, False  # stands on the border
    expected[2] = False  # of one color: no object is found, and nothing is removed
    np.testing.assert_array_equal(find_background(images), expected)


def test_places_in_a_view_have_the_values_of_their_pixels():
    whole = jnp.arange(6).reshape(1, 2, 3)
    places = jnp.array([[[0.1, 0.1], [0.6, 0.4], [0.99, 0.99], [1.0, -0.1], [0.4, 0.7]]])
    np.testing.assert_array_equal(in_view(whole, places), [[0, 4, 5, 3, 2]])
