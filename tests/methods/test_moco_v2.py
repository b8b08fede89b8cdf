import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=40)
VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1)).astype(np.float32))


def make(batch_norm="sync", **options):
    backbone = models.create("resnet8", stages=(1,), batch_norm=batch_norm, batch_norm_groups=2)
    return METHODS["moco_v2"](backbone, RUN, **{"projector": (12, 6), "queue_size": 24, "temperature": 0.3, **options})


@functools.cache
def start():
    """With a teacher that is not the online network."""
    init = jax.jit(make().init)
    (params, state), (other, _) = (jax.device_get(init(jax.random.key(seed), VIEWS[0])) for seed in (1, 2))
    return params, {**state, "teacher": {**state["teacher"], "params": other}}


def through(method, variables, x):
    for name, module in method.networks.items():
        given = {"params": variables["params"][name], "batch_stats": variables["batch_stats"][name]}
        x, _ = module.apply(given, x, train=True, mutable=["batch_stats"])
    return x


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def contrast(q, k, queue, temperature=0.3):
    losses = []
    for query, key in zip(q, k, strict=True):
        logits = np.array([query @ key, *(query @ row for row in queue)]) / temperature
        losses.append(np.log(np.sum(np.exp(logits))) - logits[0])
    return np.mean(losses)


def test_each_query_finds_its_key_among_the_queues():
    """The keys come shuffled out of the networks and are put back: with one group of BatchNorm that changes nothing."""
    assert make().shuffle
    plain, symmetric = make(), make(symmetric=True)

    @jax.jit
    def run(params, state, views):
        online = {"params": params, "batch_stats": state["batch_stats"]}
        steps = [method.loss(params, state, {"views": views}, jax.random.key(3)) for method in (plain, symmetric)]
        return steps, [[through(plain, v, x) for x in views] for v in (online, state["teacher"])]

    params, state = start()
    steps, outputs = jax.device_get(run(params, state, VIEWS))
    (q1, q2), (k1, k2) = ([unit(z) for z in two] for two in outputs)
    queue = np.asarray(state["queue"]["rows"], np.float64)
    first, second = contrast(q1, k2, queue), contrast(q2, k1, queue)
    for output, keys, expected in zip(steps, ([k2], [k1, k2]), (first, first + second), strict=True):
        np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
        # The keys have overwritten the oldest, after they were compared with the queue.
        rows = np.concatenate([*keys, queue[8 * len(keys) :]])
        np.testing.assert_allclose(output.state["queue"]["rows"], rows, rtol=1e-3, atol=1e-5)
        assert output.state["queue"]["pointer"] == 8 * len(keys)
    for method, count in ((plain, 1), (symmetric, 2)):
        np.testing.assert_allclose(method.chance_level, np.log(25) * count)


def test_shuffling_changes_the_groups_of_batch_norm():
    @jax.jit
    def run(params, state, views):
        methods = make("grouped"), make("grouped", shuffle=False)
        outputs = [method.loss(params, state, {"views": views}, jax.random.key(3)) for method in methods]
        return [output.state["queue"]["rows"][:8] for output in outputs]

    shuffled, in_order = jax.device_get(run(*start(), VIEWS))
    assert np.abs(shuffled - in_order).max() > 1e-2


def test_the_teacher_follows_at_a_constant_decay():
    params, state = start()
    update = jax.jit(make(decay=0.75).update)
    for step in (7, 100):
        moved = update(params, state, step)["teacher"]["params"]
        expected = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, state["teacher"]["params"], params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, expected)


def test_the_head_has_biases_and_no_batch_norm():
    params, state = start()
    assert jax.tree.map(jnp.shape, params["projector"]) == {
        "Dense_0": {"kernel": (16, 12), "bias": (12,)},
        "Dense_1": {"kernel": (12, 6), "bias": (6,)},
    }
    assert not state["batch_stats"]["projector"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"queue_size": 20}, "not a multiple of batch_size=8; use 16"),
        ({"queue_size": 48}, "longer than the data set of 40 images.*use 40 or less"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"decay": -0.1}, "decay must be in 0..1"),
    ],
)
def test_refuses_what_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
