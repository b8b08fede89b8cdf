import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

BATCH, IMAGES = 8, 24


def make(**options):
    schedule = Schedule(batch_size=BATCH, steps=100, steps_per_epoch=3, num_images=IMAGES)
    defaults = dict(projector=(16, 8), clusters=4, min_size=1, move_every=5, momentum=0.25)
    return METHODS["odc"](models.create("resnet8", stages=(1,)), schedule, **{**defaults, **options})


def draw(step):
    """The batch of step 0, 1, ... of an epoch of three."""
    views = (np.random.default_rng(step).normal(size=(BATCH, 8, 8, 1)).astype(np.float32),)
    return {"views": views, "index": np.arange(BATCH) + BATCH * (step % 3)}


@functools.cache
def start():
    return jax.device_get(make().init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32)))


update = jax.jit(make().update)


@functools.cache
def course():
    """[(state before, output of the loss, state after update, projections)] of five steps without an optimizer."""
    method = make()

    @jax.jit
    def loss(params, state, batch):
        (x,) = batch["views"]
        for name in ("backbone", "projector"):
            given = {"params": params[name], "batch_stats": state["batch_stats"][name]}
            x, _ = method.networks[name].apply(given, x, train=True, mutable=["batch_stats"])
        return method.loss(params, state, batch, jax.random.key(1)), x

    params, state = start()
    history = []
    for step in range(5):
        output, z = jax.device_get(loss(params, state, draw(step)))
        after = jax.device_get(update(params, output.state, step + 1))
        history.append((state, output, after, z))
        state = after
    return history


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_the_first_epoch_fills_the_memory_without_a_loss_and_labels_come_at_its_end():
    history = course()[:3]
    assert [float(output.loss) for _, output, *_ in history] == [0.0, 0.0, 0.0]
    for step, (_, output, *_) in enumerate(history):
        np.testing.assert_allclose(output.state["features"][BATCH * step :][:BATCH], output.embeddings[0], atol=1e-5)
        assert np.all(output.state["labels"] == -1)
    after = history[2][2]
    labels, rows = after["labels"], after["features"]
    assert set(labels) == set(range(4))
    for c in range(4):  # means of unit vectors, not unit vectors themselves
        np.testing.assert_allclose(after["centroids"][c], rows[labels == c].mean(axis=0), atol=1e-5)


def test_features_are_averaged_and_relabeled_and_centroids_move_to_their_means():
    history = course()
    for step in (3, 4):
        before, output, after, _ = history[step]
        middle = output.state
        here = np.arange(BATCH) + BATCH * (step % 3)
        old, z = before["features"][here], output.embeddings[0]
        new = unit(0.25 * z + 0.75 * old)
        np.testing.assert_allclose(middle["features"][here], new, atol=1e-5)
        np.testing.assert_array_equal(middle["labels"][here], np.argmax(new @ before["centroids"].T, axis=1))
    np.testing.assert_array_equal(history[3][1].state["centroids"], history[3][0]["centroids"])
    moved = np.asarray(jax.jit(make()._move)(middle)["centroids"])
    labels, rows = middle["labels"], middle["features"]
    for c in range(4):
        expected = rows[labels == c].mean(axis=0) if np.any(labels == c) else middle["centroids"][c]
        np.testing.assert_allclose(moved[c], expected, atol=1e-5)
    if np.bincount(labels, minlength=4).min() >= 1:
        np.testing.assert_allclose(after["centroids"], moved, atol=1e-6)


def test_loss_is_the_cross_entropy_weighted_by_the_root_of_the_clusters_size():
    params, _ = start()
    state, output, _, z = course()[3]
    kernel, bias = (np.asarray(params["classifier"]["Dense_0"][k], np.float64) for k in ("kernel", "bias"))
    logits = np.maximum(z, 0) @ kernel + bias
    labels = np.asarray(state["labels"])
    w = (1 / np.sqrt(np.maximum(np.bincount(labels, minlength=4), 1)))[labels[:BATCH]]
    ce = np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(BATCH), labels[:BATCH]]
    np.testing.assert_allclose(output.loss, np.sum(w * ce) / np.sum(w), rtol=1e-4)


def clustered(angles, labels):
    """A state of these features and labels, whose centroids are the clusters' means."""
    rows = np.stack([np.cos(angles), np.sin(angles)] + [np.zeros(24)] * 6, axis=1).astype(np.float32)
    centroids = np.stack([rows[labels == c].mean(axis=0) for c in range(4)])
    state = {"features": rows, "labels": labels.astype(np.int32), "centroids": centroids}
    return rows, {**start()[1], **state, "clustered": np.array(True)}


def test_small_clusters_are_merged_and_get_a_part_of_the_largest():
    # Four directions and a pair of bundles in the largest cluster; cluster 2 has one member, near cluster 1.
    bundle = np.linspace(-0.3, 0.3, 6)
    angles = np.concatenate([bundle, 1.0 + bundle, [2.0] * 5, [2.3], [4.0] * 6])
    labels = np.array([0] * 12 + [1] * 5 + [2] + [3] * 6)
    rows, state = clustered(angles, labels)
    params, _ = start()
    share_out = jax.jit(make(min_size=3).update)
    after = jax.device_get(share_out(params, state, 7))
    new = after["labels"]
    assert new[17] == 1
    np.testing.assert_array_equal(new[12:17], 1)
    np.testing.assert_array_equal(new[18:], 3)
    assert {frozenset(new[:6]), frozenset(new[6:12])} == {frozenset({0}), frozenset({2})}
    # Both are means, of a norm below 1 as those of all clusters: unit vectors would draw members of other clusters.
    for c, part in ((new[0], rows[:6]), (new[6], rows[6:12])):
        np.testing.assert_allclose(after["centroids"][c], part.mean(axis=0), atol=1e-5)
    untouched = update(params, state, 7)
    np.testing.assert_array_equal(untouched["labels"], labels)
    # Where k-means finds no two parts, every other member goes.
    equal = np.where(labels == 0, 0.0, angles)
    divided = np.asarray(share_out(params, clustered(equal, labels)[1], 7)["labels"])
    assert sorted(np.bincount(divided[:12], minlength=3)[[0, 2]]) == [6, 6]


def test_heads_and_chance_level():
    params, _ = start()
    assert jax.tree.map(jnp.shape, params["classifier"]) == {"Dense_0": {"kernel": (8, 4), "bias": (4,)}}
    np.testing.assert_allclose(make().chance_level, math.log(4))


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"clusters": 5, "min_size": 5},
            r"clusters=5 must be in 2\.\.4, so that 24 images can give each at least min_size=5",
        ),
        ({"momentum": 1.5}, "momentum must be in 0..1"),
        ({"first_epochs": 0.0}, "first_epochs must be above 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
