import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models, optim, parallel, recipes, run, step, train
from ssl_jax.methods import METHODS, Run

BATCH, IMAGES = 8, 24


def make(num_images=IMAGES, **options):
    facts = Run(batch_size=BATCH, steps=100, steps_per_epoch=3, num_images=num_images)
    options = {"projector": (16, 8), "prototypes": (4, 3, 2), "local_views": 1, **options}
    return METHODS["deepcluster_v2"](models.create("resnet8", stages=(1,)), facts, **options)


def draw(number):
    """The batch of step 0, 1, ... of an epoch of three."""
    rngs = jax.random.split(jax.random.key(number), 3)
    views = tuple(jax.random.normal(r, (BATCH, s, s, 1)) for r, s in zip(rngs, (16, 16, 8), strict=True))
    return {"views": views, "index": jnp.arange(BATCH) + BATCH * (number % 3)}


@functools.cache
def course(steps, **options):
    """[(state before, loss, metrics, state after loss, state after update)] of steps without an optimizer."""
    method = make(**options)
    params, state = method.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    loss, update = jax.jit(method.loss), jax.jit(method.update)
    history = []
    for number in range(steps):
        value, (middle, metrics) = loss(params, state, draw(number), jax.random.key(1))
        after = update(params, middle, number + 1)
        history.append((state, value, metrics, middle, after))
        state = after
    return history


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cross_entropy(scores, labels):
    scores = np.asarray(scores, np.float64) / 0.1
    return np.mean(np.log(np.sum(np.exp(scores), axis=-1)) - scores[np.arange(len(scores)), labels])


def test_memory_keeps_the_large_crops_of_the_images_seen():
    for number, (before, _, metrics, middle, _) in enumerate(course(3)):
        here = np.arange(BATCH) + BATCH * number
        np.testing.assert_allclose(middle["memory"]["rows"][:, here], metrics["embeddings"], atol=1e-5)
        others = np.setdiff1d(np.arange(IMAGES), here)
        old = before["memory"]["rows"]
        np.testing.assert_array_equal(middle["memory"]["rows"][:, others], old[:, others])
        np.testing.assert_array_equal(middle["memory"]["seen"], np.arange(IMAGES) < BATCH * (number + 1))


def test_no_label_and_no_gradient_before_the_first_clustering():
    assert [float(value) for _, value, *_ in course(3)] == [0.0, 0.0, 0.0]
    assert np.all(course(3)[1][-1]["assignments"] == -1)


def test_each_epoch_centroids_of_the_memory_become_the_prototypes_and_assign_all_images():
    *_, (before, _, _, middle, after) = course(3)
    for head, count in enumerate((4, 3, 2)):
        rows = np.asarray(middle["memory"]["rows"][head % 2])  # heads take the crops in turn
        centroids, labels = np.asarray(after["prototypes"][head]), np.asarray(after["assignments"][head])
        np.testing.assert_array_equal(labels, np.argmax(rows @ centroids.T, axis=1))
        assert centroids.shape == (count, 8) and not np.allclose(centroids, before["prototypes"][head])
        # Ten moves settle so few points: each centroid is the direction of its points' mean.
        for k in set(labels):
            np.testing.assert_allclose(centroids[k], unit(rows[labels == k].mean(axis=0)), atol=1e-4)


def test_loss_classifies_every_crop_as_its_images_cluster():
    state, value, metrics, _, after = course(4)[3]
    jax.tree.map(np.testing.assert_array_equal, after["prototypes"], state["prototypes"])  # until the next epoch
    method = make()
    params, _ = method.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    batch = draw(3)

    def apply(name, x):
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        return method.networks[name].apply(variables, x, train=True, mutable=["batch_stats"])[0]

    large = apply("backbone", jnp.concatenate(batch["views"][:2]))
    h = jnp.concatenate([large, apply("backbone", batch["views"][2])])
    z = unit(np.asarray(apply("projector", h))).reshape(3, BATCH, 8)
    np.testing.assert_allclose(metrics["embeddings"], z[:2], atol=1e-5)
    labels = np.asarray(state["assignments"][:, :BATCH])
    expected = [cross_entropy(z[v] @ state["prototypes"][h].T, labels[h]) for h in range(3) for v in range(3)]
    np.testing.assert_allclose(value, np.mean(expected), rtol=1e-4)


def test_a_pass_over_all_images_comes_first_and_the_first_epoch_has_labels():
    """By the program's own function, on one device, at the optimizer of the scale for ImageNet in batches of 256."""
    method, config = make(), recipes.imagenet("resnet50", batch_size=256, epochs=800)
    config.optimizer = recipes.larc(config, 0.3, warmup_steps=recipes.imagenet_steps(10, 256))
    tx, _ = optim.create(**config.optimizer.to_dict(), steps=recipes.imagenet_steps(800, 256))
    one_step = step.TrainStep(method=method, tx=tx, augment=lambda _, x: x, axis_name=parallel.AXIS, log_every=100)
    preparing = dataclasses.replace(one_step, method=step.Preparing(method, 3), tx=step.standing_still(tx))
    mesh = parallel.make_mesh(jax.devices()[:1])
    first = parallel.create_state(lambda: step.create_state(method, tx, jnp.zeros((1, 16, 16, 1)), 0), mesh)
    params, key = jax.device_get(first.params), jax.random.key_data(first.rng)
    state = train.prepare(preparing, 3, first, map(draw, range(3)), mesh, run.Termination(), shard_state=False)
    assert state.step == 0 and np.array_equal(jax.random.key_data(state.rng), key)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), params)
    assert np.all(state.model_state["memory"]["seen"]) and np.all(state.model_state["assignments"] >= 0)
    mapped, losses = parallel.map_step(one_step, mesh), []
    for number in range(3):
        state, metrics = mapped(state, draw(number))
        losses.append(float(metrics["loss"]))
    assert min(losses) > 0.5  # of log(3) where nothing is learnt
    kernels = [(p, q) for p, q in zip(*map(jax.tree.leaves, (params, state.params)), strict=True) if p.ndim > 1]
    for before, after in kernels:
        assert not np.array_equal(before, after)
        np.testing.assert_allclose(np.linalg.norm(after), np.linalg.norm(before), rtol=0.01)


def test_prototypes_are_no_parameters():
    params, state = make().init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    assert set(params) == {"backbone", "projector"}
    assert [rows.shape for rows in state["prototypes"]] == [(4, 8), (3, 8), (2, 8)]


def test_chance_level_is_the_mean_over_heads():
    np.testing.assert_allclose(make().chance_level, np.mean([math.log(4), math.log(3), math.log(2)]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prototypes": ()}, "a number for each head"),
        ({"prototypes": (4, 25)}, r"prototypes=\(4, 25\) must be from 2 to the number of images, 24"),
        ({"prototypes": (1,)}, "from 2 to"),
        ({"cluster_every": 0.0}, "cluster_every must be above 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
