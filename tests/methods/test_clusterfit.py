import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import config as configs
from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule, Teacher
from ssl_jax.training import augmenting, build
from tests.methods.teachers import saved

BATCH, IMAGES, CLUSTERS = 8, 24, 3
MODEL = models.create("resnet8", stages=(1,), base_width=8)


@functools.cache
def teacher():
    return Teacher(MODEL, jax.device_get(MODEL.init(jax.random.key(5), jnp.zeros((1, 8, 8, 1)))), (0.5,), (0.25,))


def make(**options):
    schedule = Schedule(batch_size=BATCH, steps=100, steps_per_epoch=3, num_images=IMAGES)
    options = {"clusters": CLUSTERS, "loaded": teacher(), **options}
    return METHODS["clusterfit"](models.create("resnet8", stages=(1,), base_width=4), schedule, **options)


def draw(number):
    """The batch of step 0, 1, ... of an epoch of three."""
    views = tuple(np.random.default_rng(number).normal(size=(2, BATCH, 8, 8, 1)).astype(np.float32))
    return {"views": views, "index": np.arange(BATCH) + BATCH * number}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def prepared():
    """(params, state) after the pass over two of three batches and the clustering."""
    method = make()
    params, state = method.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    prepare = jax.jit(method.prepare)
    for number in range(2):
        state, _ = prepare(params, state, draw(number), jax.random.key(1))
    return params, jax.device_get(jax.jit(method.prepared)(params, state))


def test_labels_are_the_clusters_of_the_teachers_features_of_the_second_view():
    _, state = prepared()
    rows, labels = state["features"]["rows"], state["labels"]
    for number in range(2):
        h = MODEL.apply(teacher().variables, 0.5 * draw(number)["views"][1] + 0.25)
        np.testing.assert_allclose(rows[BATCH * number :][:BATCH], unit(h), rtol=1e-4, atol=1e-5)
    assert np.all(labels[2 * BATCH :] == -1)  # images that were not seen
    rows, labels = rows[: 2 * BATCH], labels[: 2 * BATCH]
    assert set(labels) == set(range(CLUSTERS))
    means = np.stack([rows[labels == k].mean(axis=0) for k in range(CLUSTERS)])
    np.testing.assert_array_equal(np.argmin(np.sum((rows[:, None] - means) ** 2, axis=-1), axis=1), labels)


def test_a_network_of_its_own_learns_the_labels_and_they_stay():
    method, (params, state) = make(), prepared()

    @jax.jit
    def step(params, state, batch):
        x = batch["views"][0]
        for name, module in method.networks.items():
            variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
            x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
        output = method.loss(params, state, batch, jax.random.key(1))
        return output, x, method.update(params, output.state, jnp.array(3))

    output, logits, after = jax.device_get(step(params, state, draw(1)))
    labels = state["labels"][BATCH : 2 * BATCH]
    logits = logits.astype(np.float64)
    ce = np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(BATCH), labels]
    np.testing.assert_allclose(output.loss, np.mean(ce), rtol=1e-4)
    np.testing.assert_allclose(output.metrics["accuracy"], np.mean(np.argmax(logits, axis=1) == labels), rtol=1e-6)
    for name in ("labels", "features"):
        jax.tree.map(np.testing.assert_array_equal, after[name], state[name])
    assert float(step(params, state, draw(2))[0].loss) == 0.0  # images without a label
    assert set(method.constants) == {"teacher"} and "teacher" not in params


def test_chance_level_is_that_of_equal_logits():
    np.testing.assert_allclose(make().chance_level, math.log(CLUSTERS))


def test_a_config_names_the_teachers_file():
    settings = configs.get_config("clusterfit:tiny").unlock()
    settings.method.teacher = str(saved(1))
    settings.method.clusters = 4
    settings = configs.parse(settings)
    method = build.method(settings, Schedule(batch_size=8, steps=10, steps_per_epoch=3, num_images=24))
    views = augmenting.augmentations(settings, method.views)
    assert method.frozen.model.dim == 8 and [view.size for view in views] == [(28, 28)] * 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loaded": None}, r"ClusterFit needs a teacher; say --config\.method\.teacher=PATH"),
        ({"clusters": 25}, "clusters=25 must be from 2 to the number of images, 24"),
        ({"clusters": 1}, "clusters must be at least 2, got 1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
