import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.pcl import concentration, draw_negatives
from ssl_jax.methods.toolkit import kmeans

BATCH, IMAGES = 8, 24


def make(**options):
    schedule = Schedule(batch_size=BATCH, steps=100, steps_per_epoch=3, num_images=IMAGES)
    defaults = dict(projector=(16, 8), clusters=(4, 3), negatives=8, temperature=0.3, queue_size=16, decay=0.75)
    options = {**defaults, "warmup_epochs": 1.0, "restarts": 2, **options}
    return METHODS["pcl"](models.create("resnet8", stages=(1,)), schedule, **options)


def draw(step):
    """The batch of step 0, 1, ... of an epoch of three."""
    views = np.random.default_rng(step).normal(size=(2, BATCH, 8, 8, 1)).astype(np.float32)
    return {"views": tuple(views), "index": np.arange(BATCH) + BATCH * (step % 3)}


@functools.cache
def start():
    return jax.device_get(make().init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32)))


loss, update = jax.jit(make().loss), jax.jit(make().update)


@functools.cache
def course():
    """[(state before, output of the loss, state after update)] of four steps without an optimizer."""
    params, state = start()
    history = []
    for step in range(4):
        output = jax.device_get(loss(params, state, draw(step), jax.random.key(1)))
        after = jax.device_get(update(params, output.state, step + 1))
        history.append((state, output, after))
        state = after
    return history


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def info_nce(embeddings, state):
    """Of the queries and the keys, which come first, with the queue."""
    q, k = (unit(z) for z in embeddings)
    negatives = q @ np.asarray(state["queue"]["rows"], np.float64).T
    logits = np.concatenate([np.sum(q * k, axis=1, keepdims=True), negatives], axis=1) / 0.3
    return np.mean(np.log(np.sum(np.exp(logits), axis=1)) - logits[:, 0])


def scaled(raw, temperature):
    """Concentrations that are clipped, and of this mean."""
    raw = np.clip(raw, *np.percentile(raw, (10, 90)))
    return temperature * raw / raw.mean()


def test_memory_and_queue_keep_the_keys():
    for step, (before, output, _) in enumerate(course()[:3]):
        keys, here, middle = unit(output.embeddings[1]), np.arange(BATCH) + BATCH * step, output.state
        np.testing.assert_allclose(middle["memory"]["rows"][here], keys, atol=1e-5)
        others = np.setdiff1d(np.arange(IMAGES), here)
        np.testing.assert_array_equal(middle["memory"]["rows"][others], before["memory"]["rows"][others])
        np.testing.assert_array_equal(middle["memory"]["seen"], np.arange(IMAGES) < BATCH * (step + 1))
        first = BATCH * (step % 2)
        np.testing.assert_allclose(middle["queue"]["rows"][first : first + BATCH], keys, atol=1e-5)


def test_before_the_first_clustering_the_loss_is_info_nce_alone():
    for before, output, _ in course()[:3]:
        np.testing.assert_allclose(output.loss, info_nce(output.embeddings, before), rtol=1e-4)


def test_the_first_clustering_is_at_the_end_of_an_epoch_after_the_warm_up():
    cases = {(0.0, 1.0): 3, (1.0, 1.0): 3, (1.5, 1.0): 6, (0.0, 0.34): 1}  # (warmup_epochs, cluster_every): first step

    @jax.jit
    def run(params, state, steps):
        def clustered(warmup_epochs, cluster_every):
            # What is clustered, and how well, is nothing here.
            options = dict(clusters=(2,), restarts=1, iterations=1)
            method = make(warmup_epochs=warmup_epochs, cluster_every=cluster_every, **options)

            def step(state, number):
                state = method.update(params, state, number)
                return state, state["clustered"]

            short = {name: state[name][:1] for name in ("prototypes", "concentrations", "assignments")}
            short = {**short, "prototypes": [state["prototypes"][0][:2]], "concentrations": [jnp.ones(2)]}
            return jax.lax.scan(step, {**state, **short}, steps)[1]

        return [clustered(*case) for case in cases]

    for first, clustered in zip(cases.values(), run(*start(), np.arange(1, 7)), strict=True):
        np.testing.assert_array_equal(clustered, np.arange(1, 7) >= first)


def test_prototypes_are_centroids_of_the_memory_as_unit_vectors():
    _, output, after = course()[2]
    rows = np.asarray(output.state["memory"]["rows"], np.float64)
    for number, count in enumerate((4, 3)):
        labels = np.asarray(after["assignments"][number])
        means = np.stack([rows[labels == c].mean(axis=0) for c in range(count)])  # twenty moves settle so few points
        np.testing.assert_allclose(after["prototypes"][number], unit(means), atol=1e-4)
        distances = np.linalg.norm(rows[:, None] - means, axis=-1)
        np.testing.assert_array_equal(labels, np.argmin(distances, axis=1))
        own, sizes = distances[np.arange(IMAGES), labels], np.bincount(labels, minlength=count)
        assert sizes.min() > 1
        raw = np.array([own[labels == c].mean() / np.log(sizes[c] + 10) for c in range(count)])
        np.testing.assert_allclose(after["concentrations"][number], scaled(raw, 0.3), rtol=1e-3)


def test_the_best_of_the_restarts_is_kept():
    memory = course()[2][1].state["memory"]
    rows = np.asarray(memory["rows"])

    def misfit(labels):
        labels = np.asarray(labels)
        return sum(np.sum((rows[labels == c] - rows[labels == c].mean(axis=0)) ** 2) for c in set(labels))

    @jax.jit
    def run(key, memory):
        def cluster(key):
            return kmeans.kmeans(key, memory["rows"], 4, iterations=20, spherical=False)[1]

        tries = jax.lax.map(cluster, jax.random.split(key, 6))
        return make(restarts=6)._one_clustering(key, memory, 4)[2], tries

    kept, tries = run(jax.random.key(5), memory)
    kept, tries = misfit(kept), [misfit(labels) for labels in np.asarray(tries)]
    np.testing.assert_allclose(kept, min(tries), rtol=1e-5)
    assert max(tries) > min(tries) * 1.001


def test_loss_adds_the_mean_of_the_clusterings_to_info_nce():
    state, output, _ = course()[3]
    q = unit(output.embeddings[0])
    terms = []
    for number, count in enumerate((4, 3)):
        own = np.asarray(state["assignments"][number, :BATCH])
        candidates = np.concatenate([own, np.setdiff1d(np.arange(count), own)])  # all others are negatives here
        rows, phi = np.asarray(state["prototypes"][number]), np.asarray(state["concentrations"][number])
        logits = q @ rows[candidates].T / phi[candidates]
        terms.append(np.mean(np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(BATCH), np.arange(BATCH)]))
    np.testing.assert_allclose(output.loss, info_nce(output.embeddings, state) + np.mean(terms), rtol=1e-4)


def test_an_image_not_seen_before_the_clustering_takes_the_prototype_nearest_to_its_key():
    params, _ = start()
    state = jax.device_get(update(params, course()[0][1].state, 3))  # clustered when one batch of three was seen
    output = jax.device_get(loss(params, state, draw(1), jax.random.key(1)))
    assigned = np.array(state["assignments"])
    assert np.all(assigned[:, :BATCH] >= 0) and np.all(assigned[:, BATCH:] == -1)
    for number in range(2):
        likeness = np.asarray(output.embeddings[1]) @ np.asarray(state["prototypes"][number]).T
        assigned[number, BATCH : 2 * BATCH] = np.argmax(likeness, axis=1)
    expected = loss(params, {**state, "assignments": assigned}, draw(1), jax.random.key(1))
    np.testing.assert_allclose(output.loss, expected.loss, rtol=1e-5)
    assert output.metrics["prototypes"] > 0.1


def test_concentration_by_hand():
    of = jax.jit(concentration, static_argnums=(2, 3))
    distances = np.array([0.5, 0.7, 0.2, 0.2, 0.2, 0.9, 5.0], np.float32)
    phi = of(distances, np.array([0, 0, 1, 1, 1, 2, -1]), 4, 0.2)
    a, b = 0.6 / math.log(12), 0.2 / math.log(13)  # clusters 2 and 3, of one point and none, take the larger
    np.testing.assert_allclose(phi, scaled(np.array([a, b, a, a]), 0.2), rtol=1e-5)
    # Of equal points it is the temperature.
    np.testing.assert_allclose(of(0 * distances, np.zeros(7, int), 4, 0.2), [0.2] * 4)


def test_negatives_are_different_clusters_and_not_the_batches():
    @jax.jit
    def run(key, own):
        keys = jax.random.split(key, 5)
        return jax.vmap(lambda key: draw_negatives(key, own, 10, 6))(keys), draw_negatives(key, own, 10, 99)

    few, all_of_them = run(jax.random.key(0), np.array([1, 1, 5]))
    for drawn in np.asarray(few):
        assert len(set(drawn)) == 6 and not {1, 5} & set(drawn)
    assert len({tuple(drawn) for drawn in np.asarray(few)}) > 1
    assert sorted(np.asarray(all_of_them)) == list(range(10))


def test_the_teacher_follows_at_a_constant_decay():
    params, state = start()
    other = jax.tree.map(lambda p: np.asarray(p) + 1.0, params)
    for step in (1, 100):
        moved = update(other, state, step)["teacher"]["params"]
        expected = jax.tree.map(lambda t, p: 0.75 * np.asarray(t) + 0.25 * p, state["teacher"]["params"], other)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clusters": ()}, r"clusters=\(\) must be one or more"),
        ({"clusters": (4, 25)}, "from 2 to the number of images, 24"),
        ({"queue_size": 20}, "not a multiple of batch_size=8; use 16"),
        ({"warmup_epochs": -1.0}, "warmup_epochs must be at least 0"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
