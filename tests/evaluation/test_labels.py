import numpy as np
import pytest

from ssl_jax.evaluation.labels import draw_labels

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 200)).astype(np.int32)


@pytest.mark.parametrize("per_class, held", [(2, 1), (3, 1), (10, 2), (100, 20)])
def test_a_draw_is_stratified_and_holds_out_a_fifth(per_class, held):
    index, held_out = draw_labels(LABELS, 4, per_class, seed=5)
    assert len(np.unique(index)) == 4 * per_class
    np.testing.assert_array_equal(np.bincount(LABELS[index]), [per_class] * 4)
    np.testing.assert_array_equal(np.bincount(LABELS[index[held_out]]), [held] * 4)
    again, other = (draw_labels(LABELS, 4, per_class, seed)[0] for seed in (5, 6))
    np.testing.assert_array_equal(index, again)
    assert set(index) != set(other)


def test_all_labels_are_drawn_and_none_of_images_without():
    index, held_out = draw_labels(np.array([0, 1, -1, 1, 0, 1, 1, -1, 2, 1], np.int32), 3, None, seed=0)
    np.testing.assert_array_equal(np.sort(index), [0, 1, 3, 4, 5, 6, 8, 9])
    assert held_out.sum() == 2  # one of the class with two, one of that with five; the single one is fitted


def test_too_few_labels_are_refused():
    with pytest.raises(ValueError, match="class 1 has 3 labels, fewer than per_class 4; lower per_class"):
        draw_labels(np.array([0, 0, 0, 0, 1, 1, 1]), 2, 4, seed=0)
    with pytest.raises(ValueError, match="per_class 1 leaves no label to choose"):
        draw_labels(LABELS, 4, 1, seed=0)
    with pytest.raises(ValueError, match="no class has two labels"):
        draw_labels(np.arange(3), 3, None, seed=0)


def test_whole_groups_are_held_out_of_the_same_draw():
    groups = np.array([f"patient {k}" for k in np.random.default_rng(1).integers(0, 60, len(LABELS))])
    index, held_out = draw_labels(LABELS, 4, 50, seed=3, groups=groups)
    np.testing.assert_array_equal(index, draw_labels(LABELS, 4, 50, seed=3)[0])
    assert not {*groups[index[held_out]]} & {*groups[index[~held_out]]}
    assert 0.1 < held_out.mean() < 0.3 and (np.bincount(LABELS[index[held_out]], minlength=4) > 0).all()
    other = draw_labels(LABELS, 4, 50, seed=4, groups=groups)[1]
    assert (other != held_out).any()


def test_if_no_class_has_two_groups_labels_are_held_out_one_by_one():
    for groups in (np.zeros(len(LABELS), int), LABELS):
        for alone, together in zip(draw_labels(LABELS, 4, 10, 0), draw_labels(LABELS, 4, 10, 0, groups), strict=True):
            np.testing.assert_array_equal(alone, together)
