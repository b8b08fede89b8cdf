import functools
import math

import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

BATCH, IMAGES, CLUSTERS = 8, 24, 4


def make(num_images=IMAGES, **options):
    schedule = Schedule(batch_size=BATCH, steps=100, steps_per_epoch=3, num_images=num_images)
    options = {"clusters": CLUSTERS, "pca": 3, **options}
    return METHODS["deepcluster"](models.create("resnet8", stages=(1,), base_width=8), schedule, **options)


def draw(number):
    """The batch of step 0, 1, ... of an epoch of three."""
    views = (np.random.default_rng(number % 3).normal(size=(BATCH, 8, 8, 1)).astype(np.float32),)
    return {"views": views, "index": np.arange(BATCH) + BATCH * (number % 3)}


@functools.cache
def course():
    """(features of the pass over all images, state after it, [(params, state before, output, state after)] of 4 steps).

    No optimizer: params["classifier"] moves by 0.1 a step, and all else stays.
    """
    method = make()
    loss, prepare, update = (jax.jit(function) for function in (method.loss, method.prepare, method.update))
    params, state = method.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    passed = []
    for number in range(3):
        state, z = prepare(params, state, draw(number), jax.random.key(1))
        passed.append(z[0])
    first = state = jax.device_get(jax.jit(method.prepared)(params, state))
    history = []
    for number in range(4):
        output = jax.device_get(loss(params, state, draw(number), jax.random.key(1)))
        params = {**params, "classifier": jax.tree.map(lambda p: p + 0.1, params["classifier"])}
        after = jax.device_get(update(params, output.state, number + 1))
        history.append((params, state, output, after))
        state = after
    return np.concatenate(passed), first, history


def classifier(params, state):
    return jax.tree.map(np.subtract, jax.device_get(params["classifier"]), state["origin"])["Dense_0"]


def test_a_pass_over_all_images_gives_each_a_row_and_a_label():
    passed, first, _ = course()
    assert np.all(first["memory"]["seen"]) and set(first["labels"]) == set(range(CLUSTERS))
    np.testing.assert_array_equal(first["memory"]["rows"], passed)


def test_labels_are_the_nearest_means_of_whitened_features():
    _, first, _ = course()
    rows, labels = first["memory"]["rows"].astype(np.float64), first["labels"]
    centered = rows - rows.mean(axis=0)
    _, singular, directions = np.linalg.svd(centered, full_matrices=False)
    points = centered @ directions[:3].T / singular[:3]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    means = np.stack([points[labels == k].mean(axis=0) for k in range(CLUSTERS)])
    nearest = np.argmin(np.sum((points[:, None] - means) ** 2, axis=-1), axis=1)
    np.testing.assert_array_equal(nearest, labels)  # twenty moves settle so few points


@pytest.mark.parametrize("balance", [1.0, 0.0])
def test_every_cluster_counts_the_same_in_the_loss(balance):
    method, (*_, history) = make(balance=balance), course()
    params, state, *_ = history[0]
    state = {**state, "labels": np.array([0] * 6 + [1, -1] + [0] * 15 + [2], np.int32)}  # 21, 1, 1 and no members
    output = jax.jit(method.loss)(params, state, draw(0), jax.random.key(1))
    layer = classifier(params, state)
    logits = np.asarray(output.embeddings[0], np.float64) @ layer["kernel"] + layer["bias"]
    labels = state["labels"][:7]
    ce = np.log(np.sum(np.exp(logits[:7]), axis=1)) - logits[np.arange(7), labels]
    weights = np.array([1 / 21] * 6 + [1.0]) if balance else np.ones(7)
    np.testing.assert_allclose(output.loss, np.sum(weights * ce) / np.sum(weights), rtol=1e-4)
    np.testing.assert_allclose(output.metrics["accuracy"], np.mean(np.argmax(logits[:7], axis=1) == labels), rtol=1e-6)


def test_after_an_epoch_there_are_new_clusters_and_a_new_classifier():
    _, first, history = course()
    start = classifier(history[0][0], history[0][1])
    assert np.std(start["kernel"] - 0.1) < 0.02  # N(0, 0.01), moved by 0.1
    for _, before, _, after in history[:2]:
        np.testing.assert_array_equal(after["labels"], first["labels"])
        jax.tree.map(np.testing.assert_array_equal, after["origin"], before["origin"])
    params, before, _, after = history[2]
    new = classifier(params, after)
    np.testing.assert_allclose(new["bias"], 0.0, atol=1e-6)
    assert 0.005 < np.std(new["kernel"]) < 0.015 and np.abs(np.mean(new["kernel"])) < 0.005
    assert not np.allclose(new["kernel"], classifier(params, before)["kernel"] - 0.3, atol=1e-3)
    assert not np.array_equal(after["labels"], first["labels"])  # numbers of clusters are random
    params, before, *_ = history[3]
    np.testing.assert_allclose(classifier(params, before)["bias"], 0.1, rtol=1e-5)  # it goes on from there


def test_images_the_memory_has_not_seen_have_no_label():
    method = make()
    params, state = method.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    assert np.all(state["labels"] == -1) and not np.any(state["memory"]["seen"])
    output = jax.jit(method.loss)(params, state, draw(1), jax.random.key(1))
    assert output.loss == 0.0
    labels = np.asarray(jax.jit(method.prepared)(params, output.state)["labels"])
    np.testing.assert_array_equal(labels >= 0, np.arange(IMAGES) // BATCH == 1)


def test_chance_level_is_that_of_equal_logits():
    np.testing.assert_allclose(make().chance_level, math.log(CLUSTERS))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clusters": 25}, "clusters=25 must be from 2 to the number of images, 24"),
        ({"clusters": 1}, "clusters must be at least 2, got 1"),
        ({"balance": -1.0}, "balance must be at least 0"),
        ({"cluster_every": 0.0}, "cluster_every must be above 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
