import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
DRAWN = np.random.default_rng(0)
VIEWS = tuple(DRAWN.normal(size=(8, side, side, 1)).astype(np.float32) for side in (8, 8, 4))


def make(**options):
    options = {"local_views": 1, "hidden": (12,), "bottleneck": 6, "eps": 0.3, "invariance": 2.0, **options}
    return METHODS["simdino"](models.create("resnet8", stages=(1,)), RUN, **options)


@functools.cache
def first():
    """Params, and a state whose teacher is unlike them."""
    return drawn.with_other_teacher(*jax.device_get(make().init(jax.random.key(1), VIEWS[0])))


def apply(networks, params, batch_stats, views):
    """Views of one size as one batch -> [views, batch, dim]."""
    x = drawn.through(networks, params, batch_stats, jnp.concatenate(views))
    return x.reshape(len(views), -1, x.shape[-1])


@functools.cache
def step(smooth):
    """The output, and the embeddings of the student's three crops and of the teacher's two."""
    method = make(smooth=smooth)

    @jax.jit
    def run(params, state, views):
        teacher, stats = state["teacher"], state["batch_stats"]
        output = method.loss(params, state, {"views": views}, jax.random.key(2))
        parts = [apply(method.networks, params, stats, part) for part in (views[:2], views[2:])]
        targets = apply(method.networks, teacher["params"], teacher["batch_stats"], views[:2])
        return output, jnp.concatenate(parts), targets

    return jax.device_get(run(*first(), VIEWS))


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("smooth", [True, False])
def test_crops_agree_with_the_teachers_others_and_take_many_bits(smooth):
    output, student, teacher = step(smooth)
    s, t = unit(student), unit(teacher)
    cosines = [np.mean(np.sum(t[i] * s[j], axis=1)) for i in range(2) for j in range(3) if i != j]
    z = (s[:2] + t) / 2 if smooth else s[:2]
    rates = [np.linalg.slogdet(np.eye(6) + 6 / (8 * 0.3) * rows.T @ rows)[1] / 2 for rows in z]
    expected = -2.0 * np.mean(cosines) - (6 + 8) / (6 * 8) * np.mean(rates)
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
    np.testing.assert_allclose(output.embeddings, student[:2], rtol=1e-4, atol=1e-6)


def test_the_chance_level_is_the_loss_of_equal_embeddings():
    # With biases alone, and none of the images, all crops have one embedding.
    params, state = first()
    head = jax.tree_util.tree_map_with_path(lambda path, p: p + 1.0 if "bias" in str(path) else 0.0 * p, params["head"])
    params = {**params, "head": head}
    state = {**state, "teacher": {**state["teacher"], "params": params}}
    method = make()
    loss = method.loss(params, state, {"views": VIEWS}, jax.random.key(2)).loss
    np.testing.assert_allclose(loss, method.chance_level, rtol=1e-4)


@pytest.mark.parametrize("decay, step, expected", [(0.9, 0, 0.9), (0.9, 50, 0.95), (0.9, 100, 1.0)])
def test_the_teachers_decay_goes_to_one_and_its_backbone_is_kept(decay, step, expected):
    params, state = first()
    method = make(decay=decay)
    moved = method.update(params, state, jnp.array(step))
    jax.tree.map(
        lambda m, t, p: np.testing.assert_allclose(m, expected * t + (1 - expected) * p, rtol=1e-4, atol=1e-6),
        moved["teacher"]["params"],
        state["teacher"]["params"],
        params,
    )
    assert method.backbone_variables(params, moved)["params"] is moved["teacher"]["params"]["backbone"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"eps": 0.0}, "eps must be above 0, got 0.0"),
        ({"invariance": 0.0}, "invariance must be above 0, got 0.0"),
        ({"local_views": -1}, "local_views must be at least 0, got -1"),
        ({"decay": 1.1}, "decay must be in 0..1, got 1.1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
