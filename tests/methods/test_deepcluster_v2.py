import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import dist, models, optim, recipes
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.training import loop, step, termination, timing
from ssl_jax.training.state import create_state

BATCH, IMAGES = 8, 24


def make(num_images=IMAGES, **options):
    schedule = Schedule(batch_size=BATCH, steps=100, steps_per_epoch=3, num_images=num_images)
    options = {"projector": (16, 8), "prototypes": (4, 3, 2), "local_views": 1, **options}
    return METHODS["deepcluster_v2"](models.create("resnet8", stages=(1,)), schedule, **options)


def draw(number):
    """The batch of step 0, 1, ... of an epoch of three."""
    rng = np.random.default_rng(number)
    views = tuple(rng.normal(size=(BATCH, size, size, 1)).astype(np.float32) for size in (8, 8, 4))
    return {"views": views, "index": np.arange(BATCH) + BATCH * (number % 3)}


@functools.cache
def start():
    """Any params and memory, and no labels; what `init` makes of them, the first step of a run below has."""
    rng = np.random.default_rng(0)

    def fill(x):
        return (rng.normal(size=x.shape) if x.dtype == np.float32 else np.zeros(x.shape)).astype(x.dtype)

    params, state = jax.eval_shape(make().init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    state = {**jax.tree.map(fill, {**state, "rng": np.zeros(0)}), "rng": jax.random.key(0)}
    return jax.tree.map(fill, params), {**state, "assignments": state["assignments"] - 1}


@functools.cache
def course():
    """[(state before, output of the loss, state after update, projections)] of four steps without an
    optimizer. The projections [3 * BATCH, 8] are the networks', crops of one size together."""
    method = make()

    @jax.jit
    def loss(params, state, batch):
        def apply(name, x):
            variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
            return method.networks[name].apply(variables, x, train=True, mutable=["batch_stats"])[0]

        *large, small = batch["views"]
        h = jnp.concatenate([apply("backbone", x) for x in (jnp.concatenate(large), small)])
        return method.loss(params, state, batch, jax.random.key(1)), apply("projector", h)

    update = jax.jit(method.update)
    params, state = start()
    history = []
    for number in range(4):
        output, z = jax.device_get(loss(params, state, draw(number)))
        after = jax.device_get(update(params, output.state, number + 1))
        history.append((state, output, after, z))
        state = after
    return history


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cross_entropy(scores, labels):
    scores = np.asarray(scores, np.float64) / 0.1
    return np.mean(np.log(np.sum(np.exp(scores), axis=-1)) - scores[np.arange(len(scores)), labels])


def test_memory_keeps_the_large_crops_of_the_images_seen():
    for number, (before, output, *_) in enumerate(course()[:3]):
        here = np.arange(BATCH) + BATCH * number
        memory, old = output.state["memory"], before["memory"]["rows"]
        np.testing.assert_allclose(memory["rows"][:, here], output.embeddings, atol=1e-5)
        others = np.setdiff1d(np.arange(IMAGES), here)
        np.testing.assert_array_equal(memory["rows"][:, others], old[:, others])
        np.testing.assert_array_equal(memory["seen"], np.arange(IMAGES) < BATCH * (number + 1))


def test_no_label_and_no_gradient_before_the_first_clustering():
    assert [float(output.loss) for _, output, *_ in course()[:3]] == [0.0, 0.0, 0.0]
    assert np.all(course()[1][2]["assignments"] == -1)


def test_each_epoch_centroids_of_the_memory_become_the_prototypes_and_assign_all_images():
    before, output, after, _ = course()[2]
    for head, count in enumerate((4, 3, 2)):
        rows = np.asarray(output.state["memory"]["rows"][head % 2])  # heads take the crops in turn
        centroids, labels = np.asarray(after["prototypes"][head]), np.asarray(after["assignments"][head])
        np.testing.assert_array_equal(labels, np.argmax(rows @ centroids.T, axis=1))
        assert centroids.shape == (count, 8) and not np.allclose(centroids, before["prototypes"][head])
        # Ten moves settle so few points: each centroid is the direction of its points' mean.
        for k in set(labels):
            np.testing.assert_allclose(centroids[k], unit(rows[labels == k].mean(axis=0)), atol=1e-4)


def test_loss_classifies_every_crop_as_its_images_cluster():
    state, output, after, z = course()[3]
    jax.tree.map(np.testing.assert_array_equal, after["prototypes"], state["prototypes"])  # until the next epoch
    z = unit(z).reshape(3, BATCH, 8)
    np.testing.assert_allclose(output.embeddings, z[:2], atol=1e-5)
    labels = np.asarray(state["assignments"][:, :BATCH])
    expected = [cross_entropy(z[v] @ state["prototypes"][h].T, labels[h]) for h in range(3) for v in range(3)]
    np.testing.assert_allclose(output.loss, np.mean(expected), rtol=1e-4)


def test_a_pass_over_all_images_comes_first_and_the_first_epoch_has_labels():
    """By the program's own function, on one device, of large crops, at ImageNet's optimizer for batches of 256."""
    method, config = make(local_views=0, prototypes=(4, 3)), recipes.imagenet("resnet50", batch_size=256, epochs=800)
    config.optimizer = recipes.larc(config, 0.3, warmup_steps=recipes.imagenet_steps(10, 256))
    tx, _ = optim.create(**config.optimizer.to_dict(), steps=recipes.imagenet_steps(800, 256))

    def draw_large(number):
        return {**draw(number), "views": draw(number)["views"][:2]}

    one_step = step.TrainStep(method=method, tx=tx, augment=lambda _, x: x, axis_name=dist.AXIS, log_every=100)
    preparing = dataclasses.replace(one_step, method=step.Preparing(method), tx=step.standing_still(tx))
    mesh = dist.make_mesh(jax.devices()[:1])
    first = dist.create_state(lambda: create_state(method, tx, jnp.zeros((1, 8, 8, 1)), 0), mesh)
    params, new, key = jax.device_get((first.params, first.model_state, jax.random.key_data(first.rng)))
    assert np.all(new["assignments"] == -1) and not np.any(new["memory"]["seen"])
    for rows in (*new["prototypes"], *new["memory"]["rows"]):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1.0, rtol=1e-5)
    state = loop.prepare(
        preparing,
        3,
        first,
        map(draw_large, range(3)),
        mesh,
        termination.Termination(),
        timing.Activity(),
        shard_state=False,
    )
    assert state.step == 0 and np.array_equal(jax.random.key_data(state.rng), key)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), params)
    assert np.all(state.model_state["memory"]["seen"]) and np.all(state.model_state["assignments"] >= 0)
    mapped, losses = dist.map_step(one_step, mesh), []
    for number in range(3):
        state, metrics = mapped(state, draw_large(number))
        losses.append(float(metrics["loss"]))
    assert min(losses) > 0.5  # of log(4) and log(3) where nothing is learnt
    kernels = [(p, q) for p, q in zip(*map(jax.tree.leaves, (params, state.params)), strict=True) if p.ndim > 1]
    for before, after in kernels:
        assert not np.array_equal(before, after)
        np.testing.assert_allclose(np.linalg.norm(after), np.linalg.norm(before), rtol=0.01)


def test_small_crops_do_not_take_part_in_the_pass():
    _, z = jax.eval_shape(make().prepare, *start(), draw(0), jax.random.key(0))
    assert z.shape == (2, BATCH, 8)


def test_prototypes_are_no_parameters():
    params, state = start()
    assert set(params) == {"backbone", "projector"}
    assert [rows.shape for rows in state["prototypes"]] == [(4, 8), (3, 8), (2, 8)]


def test_chance_level_is_the_mean_over_heads():
    np.testing.assert_allclose(make().chance_level, np.mean([math.log(4), math.log(3), math.log(2)]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prototypes": ()}, "a number for each head"),
        ({"prototypes": (4, 25)}, r"prototypes=\(4, 25\) must be from 2 to the number of images, 24"),
        ({"prototypes": (1,)}, r"prototypes must be at least 2, got \(1,\)"),
        ({"cluster_every": 0.0}, "cluster_every must be above 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
