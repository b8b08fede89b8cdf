import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from ssl_jax.report import charts
from ssl_jax.report.confusion import MOST_CLASSES, confusion


def predicted(labels, predictions, names=("Coat", "Bag", "Sandal")):
    arrays = {"labels": np.array(labels, np.int32), "predictions": np.array(predictions, np.int32)}
    return arrays | {"class_names": np.array(names)}


def test_matrix_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, (2, 50))
    found = confusion(predicted(labels, predictions))
    np.testing.assert_allclose(found.percents, 100 * confusion_matrix(labels, predictions, normalize="true"))
    assert (found.names, found.total) == (["Coat", "Bag", "Sandal"], 3)


def test_mistakes_are_named_the_most_frequent_first():
    # Of four coats three are taken for bags, of two bags one for a sandal.
    found = confusion(predicted([0, 0, 0, 0, 1, 1, 2], [1, 1, 1, 0, 2, 1, 2]))
    assert [(m.label, m.taken_for, m.percent) for m in found.mistakes] == [
        ("Coat", "Bag", 75.0),
        ("Bag", "Sandal", 50.0),
    ]


def test_class_that_is_only_predicted_has_a_row_of_zeros():
    found = confusion(predicted([0, 0], [0, 2]))
    assert found.names == ["Coat", "Sandal"]
    np.testing.assert_array_equal(found.percents, [[50, 50], [0, 0]])


def test_of_many_classes_the_most_confused_are_shown():
    labels = np.repeat(np.arange(40), 10)
    predictions = labels.copy()
    for i in range(5, 5 + MOST_CLASSES // 2):  # pairs of 2i and 2i + 1
        predictions[20 * i : 20 * i + 3] = 2 * i + 1
    found = confusion(predicted(labels, predictions, [f"class number {i:02}, named at length" for i in range(40)]))
    assert found.total == 40
    assert [name[:15] for name in found.names] == [f"class number {i}"[:15] for i in range(10, 10 + MOST_CLASSES)]
    assert max(map(len, found.names)) == 16
    assert found.percents[0, 1] == 30.0


@pytest.mark.parametrize("label", [7, 2**31 - 1])
def test_class_without_a_name_is_shown_by_its_number(label):
    assert confusion(predicted([0, label], [0, 0])).names == ["Coat", f"class {label}"]


def test_nothing_predicted_has_no_matrix():
    assert confusion({}) is None


def test_chart_says_each_percentage_once_and_leaves_zeros_out():
    svg = charts.matrix(np.array([[73.0, 27.0], [0.0, 100.0]]), ["a < b", "$c"])
    texts = [text.split(">")[1].split("<")[0] for text in svg.split("<text")[1:]]
    assert sorted(texts) == sorted(["73", "27", "100", "1", "2", "a &lt; b  1", "$c  2", "taken for"])
