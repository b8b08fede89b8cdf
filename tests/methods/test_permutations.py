import itertools

import numpy as np
import pytest

from ssl_jax.methods.toolkit.permutations import far_permutations


@pytest.mark.parametrize("criterion, reduce", [("mean", np.mean), ("min", np.min)])
def test_each_is_the_farthest_from_those_before(criterion, reduce):
    found = far_permutations(4, 10, criterion=criterion)
    everything = np.array(list(itertools.permutations(range(4))))
    assert len(np.unique(found, axis=0)) == 10
    for i in range(1, 10):
        rest = [p for p in everything if not np.any(np.all(p == found[:i], axis=1))]
        scores = [reduce(np.sum(found[:i] != p, axis=1)) for p in rest]
        assert reduce(np.sum(found[:i] != found[i], axis=1)) == max(scores)


def test_of_nine_tiles_they_differ_in_nearly_all_places():
    found = far_permutations(9, 100)
    distances = np.sum(found[:, None] != found[None], axis=2)[~np.eye(100, dtype=bool)]
    assert distances.mean() > 8.0  # the paper: 8.0 of 1000
    assert np.all(np.sort(found, axis=1) == np.arange(9))


def test_it_is_a_function_of_its_arguments():
    np.testing.assert_array_equal(far_permutations(4, 5), far_permutations.__wrapped__(4, 5))
    assert np.any(far_permutations(4, 5) != far_permutations(4, 5, seed=1))


@pytest.mark.parametrize("arguments", [(4, 25), (10, 5), (0, 1)])
def test_more_than_there_are_is_refused(arguments):
    with pytest.raises(ValueError, match=r"permutations|tiles"):
        far_permutations(*arguments)
