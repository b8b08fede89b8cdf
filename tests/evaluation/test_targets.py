"""Several labels for each image, and measurements: how frozen features predict them."""

import numpy as np
import pytest

import ssl_jax
from ssl_jax import data
from ssl_jax.data import targets as of_images
from ssl_jax.evaluation import targets
from ssl_jax.evaluation.features import Extracted
from tests.evaluation.test_embedding import SIZE, network

RNG = np.random.default_rng(0)
DIM, TRAIN, TEST = 6, 300, 120
X = RNG.normal(size=(TRAIN + TEST, DIM)).astype(np.float32)
WEIGHTS = RNG.normal(size=(DIM, 2)).astype(np.float32)


def pair(values, kind, names, groups=None):
    """(features, sources) of training and test images whose targets are `values`."""
    made, found = [], []
    for part in (slice(TRAIN), slice(TRAIN, None)):
        target = of_images.make(values[part], names, kind, "targets")
        of_part = None if groups is None else groups[part]
        images = np.zeros((len(target.values), 2, 2, 1), np.uint8)
        made.append(data.ArraySource(images, groups=of_part, targets=target))
        index = np.arange(len(images))
        found.append(Extracted(X[part], np.full(len(images), -1), index))
    return (*found, *made)


def test_measurements_by_ridge_regression():
    noise = RNG.normal(size=(TRAIN + TEST, 2)) * 0.5
    values = 10 + 3 * (X @ WEIGHTS + noise).astype(np.float32)
    scores = targets.measure("features", *pair(values, "regression", ("age", "weight")))
    (found,) = scores.values()
    assert [*scores] == ["regression/ridge/r2"]
    # Ridge regression in closed form, with the penalties that were chosen.
    mean, std = X[:TRAIN].mean(0), X[:TRAIN].std(0)
    x, test_x = (X[:TRAIN] - mean) / std, (X[TRAIN:] - mean) / std
    for k, name in enumerate(("age", "weight")):
        y, offset, unit = values[:TRAIN, k], values[:TRAIN, k].mean(), values[:TRAIN, k].std()
        kernel = np.linalg.solve(x.T @ x + found["strengths"][name] * np.eye(DIM), x.T @ ((y - offset) / unit))
        predicted, truth = test_x @ kernel * unit + offset, values[TRAIN:, k]
        r2 = 1 - np.sum((truth - predicted) ** 2) / np.sum((truth - truth.mean()) ** 2)
        assert found["outputs"][name] == pytest.approx(100 * r2, abs=0.01)
        assert found["mean_absolute_error"][name] == pytest.approx(np.mean(np.abs(truth - predicted)), rel=1e-3)
        assert r2 > 0.8
    assert found["mean"] == pytest.approx(np.mean([*found["outputs"].values()]))


def test_labels_by_logistic_regression():
    values = (X @ WEIGHTS > [0.0, 2.0]).astype(np.float32)
    scores = targets.measure("features", *pair(values, "multilabel", ("a", "b")))
    assert [*scores] == ["multilabel/linear/map", "multilabel/linear/auroc"]
    assert all(score["mean"] > 97 for score in scores.values())
    random = (RNG.random((TRAIN + TEST, 2)) < [0.5, 0.2]).astype(np.float32)
    scores = targets.measure("features", *pair(random, "multilabel", ("a", "b")))
    # By chance: one half of the curve's area; the label's own frequency.
    assert abs(scores["multilabel/linear/auroc"]["mean"] - 50) < 12
    frequency = 100 * random[TRAIN:].mean(0)
    for k, name in enumerate("ab"):
        assert abs(scores["multilabel/linear/map"]["outputs"][name] - frequency[k]) < 15


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_what_is_not_known_does_not_count(kind):
    values = (X @ WEIGHTS).astype(np.float32)
    values = (values > 0).astype(np.float32) if kind == "multilabel" else values
    known = targets.measure("features", *pair(values, kind, ("a", "b")))
    holes = values.copy()
    holes[RNG.random(TRAIN + TEST) < 0.2, 0] = np.nan
    some = targets.measure("features", *pair(holes, kind, ("a", "b")))
    for name, score in some.items():
        assert score["outputs"]["b"] == known[name]["outputs"]["b"]
        assert score["outputs"]["a"] > 90


def test_outputs_that_cannot_be_measured_are_left_out(capsys):
    values = (X[:, :3] > 0).astype(np.float32)
    values[:, 1] = 0
    values[:TRAIN, 2] = np.nan
    scores = targets.measure("features", *pair(values, "multilabel", ("a", "never", "unknown")))
    assert [*scores["multilabel/linear/map"]["outputs"]] == ["a"]
    said = capsys.readouterr().out
    assert "never left out: it is the same in all 300 training images" in said
    assert "unknown left out: it is the same in all 0 training images, or not known" in said
    assert targets.measure("features", *pair(values[:, 1:], "multilabel", ("never", "unknown"))) == {}


@pytest.mark.parametrize("both", [True, False])
def test_a_group_is_never_on_both_sides_of_the_choice(both):
    groups = RNG.integers(0, 12, TRAIN)
    y = (groups % 3 == 0).astype(float)
    fitted, held = targets._divide(targets._Data(X[:TRAIN], y, groups), both=both)
    assert not {*groups[fitted]} & {*groups[held]} and {*fitted} | {*held} == {*range(TRAIN)}
    assert 1 <= len({*groups[held]}) <= 4 and (not both or len({*y[fitted]}) == 2)
    # A single group has to be divided.
    fitted, held = targets._divide(targets._Data(X[:TRAIN], y, np.zeros(TRAIN)), both=both)
    assert len(held) == TRAIN // 5 and len({*y[fitted]}) == len({*y[held]}) == 2


def test_images_with_a_rare_label_are_fitted():
    """All are of one group, which the first draw holds out; or no groups are known."""
    groups = np.arange(TRAIN) // 30
    first = targets._divide(targets._Data(X[:TRAIN], np.zeros(TRAIN), groups), both=False)[1]
    y = (groups == groups[first[0]]) & (np.arange(TRAIN) % 30 < 10)
    for given in (groups, None):
        fitted, held = targets._divide(targets._Data(X[:TRAIN], y.astype(float), given), both=True)
        assert {*fitted} | {*held} == {*range(TRAIN)} and len(fitted) == 0.8 * TRAIN
        assert sum(y[fitted]) == (8 if given is None else 10)


def test_evaluation_measures_them(tmp_path):
    rng = np.random.default_rng(0)
    brightness = rng.uniform(20, 200, 90)
    images = rng.normal(brightness[:, None, None, None], 8, (90, *SIZE, 3)).clip(0, 255).astype(np.uint8)
    source = data.arrays(images, targets=brightness, target_names=["brightness"])
    train, test = data.split(source, test_share=0.3)
    found = ssl_jax.evaluate(network(), train, test, image_size=SIZE)
    assert {*found["pretrained"]} == {*found["random"]} == {*found["pixels"]} == {"regression/ridge/r2"}
    assert found["pixels"]["regression/ridge/r2"]["mean"] > 95
    assert "regression/ridge/r2" in str(found) and "majority" not in found["data"]
    several = data.arrays(
        images, np.stack([brightness > 100, brightness > 150], 1), class_names=("light", "very light")
    )
    found = ssl_jax.evaluate(network(), *data.split(several, test_share=0.3), image_size=SIZE, baselines=())
    assert found["pretrained"]["multilabel/linear/auroc"]["outputs"].keys() == {"light", "very light"}
    with pytest.raises(ValueError, match="different things to predict; both must have the same outputs: brightness"):
        ssl_jax.evaluate(network(), train, data.split(several, test_share=0.3)[1], image_size=SIZE)


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(labels=[[0, 2]] * 3), "labels must be 1 where an image has the label, .* got 2"),
        (dict(labels=[[0, 1]] * 3, class_names=["a"]), "labels have 2 outputs, which need as many different names"),
        (dict(labels=[[0, 1]] * 3, class_names=["a", "a"]), "as many different names"),
        (dict(labels=[[0, 1]] * 2), "3 images need as many targets, got 2"),
        (dict(targets=[1, 2, np.inf]), "targets must be finite"),
        (dict(targets=["x"] * 3), "targets must be numbers"),
        (dict(targets=[1, 2, 3], labels=[[0, 1]] * 3), "not both"),
    ],
)
def test_targets_that_do_not_fit_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        data.arrays(np.zeros((3, 4, 4, 1), np.uint8), **given)


def test_targets_go_with_the_images():
    values = np.arange(6.0)
    source = data.arrays(np.zeros((6, 8, 8, 1), np.uint8), targets=values, labels=[0, 1] * 3)
    assert source.class_names == ("0", "1") and source.targets.names == ("0",)
    cut = data.windows(data.Subset(source, np.array([4, 1])), 4)
    assert cut.targets.values.ravel().tolist() == [4] * 4 + [1] * 4
    assert (
        source.digest() != data.arrays(np.zeros((6, 8, 8, 1), np.uint8), targets=values + 1, labels=[0, 1] * 3).digest()
    )
