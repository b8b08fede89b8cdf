import jax
import numpy as np

from ssl_jax.methods.toolkit.places import near_positions


def box(top, left, height, width, mirrored=0.0):
    return np.array([[top, left, height, width, mirrored, 0.0]], np.float32)


def near(first, second, ratio, grids=((2, 2), (2, 2))):
    function = jax.jit(near_positions, static_argnums=(1, 2, 3))
    return np.asarray(function((first, second), grids, (1.0, 1.0), ratio))[0]


def test_positions_of_the_same_view_are_near_to_themselves():
    whole = box(0, 0, 1, 1)
    # A cell has a diagonal of 0.5 * sqrt(2). Its neighbors are 0.5 away, which is 0.707 diagonals, the last one 1.
    np.testing.assert_array_equal(near(whole, whole, 0.70), np.eye(4, dtype=bool))
    np.testing.assert_array_equal(near(whole, whole, 0.72), ~np.eye(4, dtype=bool)[::-1])
    assert near(whole, whole, 1.01).all()


def test_a_mirrored_view_has_its_columns_exchanged():
    np.testing.assert_array_equal(near(box(0, 0, 1, 1), box(0, 0, 1, 1, 1.0), 0.5), np.eye(4, dtype=bool)[[1, 0, 3, 2]])


def test_the_larger_cell_counts():
    small = box(0.0, 0.0, 0.5, 0.5)  # within the first cell of the whole, its middles 0.125 * sqrt(2) from that one's
    expected = np.zeros((4, 4), bool)
    expected[:, 0] = True
    np.testing.assert_array_equal(near(small, box(0, 0, 1, 1), 0.3), expected)
    np.testing.assert_array_equal(near(box(0, 0, 1, 1), small, 0.3), expected.T)


def test_views_that_do_not_overlap_have_no_pair():
    assert not near(box(0, 0, 0.3, 0.3), box(0.6, 0.6, 0.4, 0.4), 0.7).any()


def test_maps_may_have_other_grids():
    assert near(box(0, 0, 1, 1), box(0, 0, 1, 1), 0.1, ((2, 2), (2, 1))).shape == (4, 2)
