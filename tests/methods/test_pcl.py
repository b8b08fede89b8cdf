import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Run, _kmeans
from ssl_jax.methods.pcl import concentration, draw_negatives

BATCH, IMAGES = 8, 24


def make(**options):
    run = Run(batch_size=BATCH, steps=100, steps_per_epoch=3, num_images=IMAGES)
    defaults = dict(projector=(16, 8), clusters=(4, 3), negatives=8, temperature=0.3, queue_size=16, decay=0.75)
    options = {**defaults, "warmup_epochs": 1.0, "restarts": 2, **options}
    return METHODS["pcl"](models.create("resnet8", stages=(1,)), run, **options)


def draw(step):
    """The batch of step 0, 1, ... of an epoch of three."""
    views = tuple(jax.random.normal(jax.random.key(step), (2, BATCH, 16, 16, 1)))
    return {"views": views, "index": jnp.arange(BATCH) + BATCH * (step % 3)}


@functools.cache
def start():
    return make().init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))


@functools.cache
def course(steps, **options):
    """[(state before, loss, metrics, state after loss, state after update)] of steps without an optimizer."""
    method = make(**options)
    params, state = start()
    loss, update = jax.jit(method.loss), jax.jit(method.update)
    history = []
    for step in range(steps):
        value, (middle, metrics) = loss(params, state, draw(step), jax.random.key(1))
        after = update(params, middle, step + 1)
        history.append((state, value, metrics, middle, after))
        state = after
    return history


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_memory_and_queue_keep_the_keys():
    for step, (before, _, metrics, middle, _) in enumerate(course(3)):
        keys, here = unit(metrics["embeddings"][1]), np.arange(BATCH) + BATCH * step
        np.testing.assert_allclose(middle["memory"]["rows"][here], keys, atol=1e-5)
        others = np.setdiff1d(np.arange(IMAGES), here)
        np.testing.assert_array_equal(middle["memory"]["rows"][others], before["memory"]["rows"][others])
        np.testing.assert_array_equal(middle["memory"]["seen"], np.arange(IMAGES) < BATCH * (step + 1))
        first = BATCH * (step % 2)
        np.testing.assert_allclose(middle["queue"]["rows"][first : first + BATCH], keys, atol=1e-5)


def test_before_the_first_clustering_the_loss_is_info_nce_alone():
    for before, value, metrics, *_ in course(3):
        q, k = metrics["embeddings"]
        expected = losses.info_nce(q, k, queue=before["queue"]["rows"], temperature=0.3)
        np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize("warmup_epochs, first", [(0.0, 3), (1.0, 3), (1.5, 6)])
def test_the_first_clustering_is_at_the_end_of_an_epoch_after_the_warm_up(warmup_epochs, first):
    clustered = [bool(after["clustered"]) for *_, after in course(6, warmup_epochs=warmup_epochs)]
    assert clustered == [step >= first for step in range(1, 7)]


def test_prototypes_are_centroids_of_the_memory_as_unit_vectors():
    *_, (_, _, _, middle, after) = course(3)
    rows = np.asarray(middle["memory"]["rows"], np.float64)
    for number, count in enumerate((4, 3)):
        labels = np.asarray(after["assignments"][number])
        means = np.stack([rows[labels == c].mean(axis=0) for c in range(count)])  # twenty moves settle so few points
        np.testing.assert_allclose(after["prototypes"][number], unit(means), atol=1e-4)
        distances = np.linalg.norm(rows[:, None] - means, axis=-1)
        np.testing.assert_array_equal(labels, np.argmin(distances, axis=1))
        expected = concentration(jnp.array(distances[np.arange(IMAGES), labels]), jnp.array(labels), count, 0.3)
        np.testing.assert_allclose(after["concentrations"][number], expected, rtol=1e-3)


def test_the_best_of_the_restarts_is_kept():
    memory = course(3)[2][3]["memory"]
    rows = np.asarray(memory["rows"])

    def misfit(labels):
        labels = np.asarray(labels)
        return sum(np.sum((rows[labels == c] - rows[labels == c].mean(axis=0)) ** 2) for c in set(labels))

    kept = misfit(make(restarts=6)._one_clustering(jax.random.key(5), memory, 4)[2])
    keys = jax.random.split(jax.random.key(5), 6)
    tries = [misfit(_kmeans.kmeans(key, rows, 4, iterations=20, spherical=False)[1]) for key in keys]
    np.testing.assert_allclose(kept, min(tries), rtol=1e-5)
    assert max(tries) > min(tries) * 1.001


def test_loss_adds_the_mean_of_the_clusterings_to_info_nce():
    state, value, metrics, *_ = course(4)[3]
    q, k = (unit(z) for z in metrics["embeddings"])
    logits = (
        np.concatenate([np.sum(q * k, axis=1, keepdims=True), q @ np.asarray(state["queue"]["rows"]).T], axis=1) / 0.3
    )
    expected = np.mean(np.log(np.sum(np.exp(logits), axis=1)) - logits[:, 0])
    terms = []
    for number, count in enumerate((4, 3)):
        own = np.asarray(state["assignments"][number, :BATCH])
        candidates = np.concatenate([own, np.setdiff1d(np.arange(count), own)])  # all others are negatives here
        rows, phi = np.asarray(state["prototypes"][number]), np.asarray(state["concentrations"][number])
        logits = q @ rows[candidates].T / phi[candidates]
        terms.append(np.mean(np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(BATCH), np.arange(BATCH)]))
    np.testing.assert_allclose(value, expected + np.mean(terms), rtol=1e-4)


def test_an_image_not_seen_before_the_clustering_takes_the_prototype_nearest_to_its_key():
    state, value, metrics, *_ = course(2, cluster_every=0.34, warmup_epochs=0.0)[1]
    assert np.all(state["assignments"][:, :BATCH] >= 0) and np.all(state["assignments"][:, BATCH:] == -1)
    assigned = state["assignments"]
    for number in range(2):
        nearest = np.argmax(metrics["embeddings"][1] @ state["prototypes"][number].T, axis=1)
        assigned = assigned.at[number, BATCH : 2 * BATCH].set(nearest)
    expected, _ = make().loss(start()[0], {**state, "assignments": assigned}, draw(1), jax.random.key(1))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert metrics["prototypes"] > 0.1


def test_concentration_by_hand():
    distances = jnp.array([0.5, 0.7, 0.2, 0.2, 0.2, 0.9, 5.0])
    phi = concentration(distances, jnp.array([0, 0, 1, 1, 1, 2, -1]), 4, 0.2)
    a, b = 0.6 / math.log(12), 0.2 / math.log(13)  # clusters 2 and 3, of one point and none, take the larger
    raw = np.clip([a, b, a, a], np.percentile([a, b, a, a], 10), a)
    np.testing.assert_allclose(phi, 0.2 * raw / raw.mean(), rtol=1e-5)


def test_concentration_of_equal_points_is_the_temperature():
    np.testing.assert_allclose(concentration(jnp.zeros(6), jnp.zeros(6, jnp.int32), 3, 0.2), [0.2] * 3)


def test_negatives_are_different_clusters_and_not_the_batches():
    own = jnp.array([1, 1, 5])
    for seed in range(5):
        drawn = np.asarray(draw_negatives(jax.random.key(seed), own, 10, 6))
        assert len(set(drawn)) == 6 and not {1, 5} & set(drawn)
    assert len({tuple(np.asarray(draw_negatives(jax.random.key(s), own, 10, 6))) for s in range(5)}) > 1
    assert len(draw_negatives(jax.random.key(0), own, 10, 99)) == 10


def test_the_teacher_follows_at_a_constant_decay():
    _, state = start()
    other, _ = make().init(jax.random.key(9), jnp.zeros((1, 16, 16, 1)))
    moved = make().update(other, state, 1)["teacher"]["params"]
    expected = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, state["teacher"]["params"], other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clusters": ()}, r"clusters=\(\) must be one or more"),
        ({"clusters": (4, 25)}, "from 2 to the number of images, 24"),
        ({"queue_size": 20}, "no multiple of batch_size=8; use 16"),
        ({"warmup_epochs": -1.0}, "warmup_epochs must be at least 0"),
        ({"restarts": 0}, "restarts must be above 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
