import numpy as np

from ssl_jax.evaluation.accuracy import class_mean, majority, top1

# Eight images of class 0, two of class 2, none of class 1.
LABELS = np.array([0, 0, 0, 0, 0, 0, 0, 0, 2, 2])


def test_who_always_names_the_largest_class_knows_one_class():
    always = np.zeros(10, np.int64)
    assert majority(LABELS, 3) == (0, 80.0)
    np.testing.assert_allclose(top1(always, LABELS), 80.0)
    np.testing.assert_allclose(class_mean(always, LABELS), 50.0)  # of the two classes that there are


def test_each_draw_has_its_own():
    half = np.where(np.arange(10) % 2, LABELS, 1)  # four of eight and one of two
    perfect = LABELS
    found = class_mean(np.stack([half, perfect, np.where(LABELS == 2, 2, 1)]), LABELS)
    np.testing.assert_allclose(found, [50.0, 100.0, 50.0])
    np.testing.assert_allclose(top1(np.stack([half, perfect]), LABELS), [50.0, 100.0])


def test_of_equals_the_first_is_the_majority():
    assert majority(np.array([1, 1, 2, 2]), 4) == (1, 50.0)
