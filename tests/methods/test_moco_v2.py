import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run

RUN = Run(batch_size=8, steps=100, steps_per_epoch=10, num_images=40)
VIEWS = tuple(jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1)))


def make(batch_norm="sync", **options):
    backbone = models.create("resnet8", width=0.25, batch_norm=batch_norm, batch_norm_groups=2)
    return METHODS["moco_v2"](backbone, RUN, **{"projector": (12, 6), "queue_size": 24, "temperature": 0.3, **options})


def start(method):
    """With a teacher that is not the online network."""
    params, state = method.init(jax.random.key(1), VIEWS[0])
    other, _ = method.init(jax.random.key(2), VIEWS[0])
    state["teacher"]["params"] = {name: other[name] for name in method.networks}
    return params, state


def through(method, variables, x):
    for name, module in method.networks.items():
        given = {"params": variables["params"][name], "batch_stats": variables["batch_stats"][name]}
        x, _ = module.apply(given, x, train=True, mutable=["batch_stats"])
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def contrast(q, k, queue, temperature=0.3):
    losses = []
    for query, key in zip(q, k, strict=True):
        logits = np.array([query @ key, *(query @ row for row in queue)]) / temperature
        losses.append(np.log(np.sum(np.exp(logits))) - logits[0])
    return np.mean(losses)


@pytest.mark.parametrize("symmetric", [False, True])
def test_each_query_finds_its_key_among_the_queues(symmetric):
    method = make(symmetric=symmetric)
    params, state = start(method)
    online = {"params": params, "batch_stats": state["batch_stats"]}
    q1, q2 = (through(method, online, x) for x in VIEWS)
    k1, k2 = (through(method, state["teacher"], x) for x in VIEWS)
    queue = np.asarray(state["queue"]["rows"], np.float64)
    expected = contrast(q1, k2, queue)
    if symmetric:
        expected += contrast(q2, k1, queue)
    loss, (new_state, _) = method.loss(params, state, {"views": VIEWS}, jax.random.key(3))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    # The keys have overwritten the oldest, after they were compared with the queue.
    keys = [k1, k2] if symmetric else [k2]
    rows = np.concatenate([*keys, queue[8 * len(keys) :]])
    np.testing.assert_allclose(new_state["queue"]["rows"], rows, rtol=1e-3, atol=1e-5)
    assert new_state["queue"]["pointer"] == 8 * len(keys)
    np.testing.assert_allclose(method.chance_level, np.log(25) * len(keys))


def test_shuffling_changes_the_groups_of_batch_norm_and_nothing_else():
    def keys(batch_norm, shuffle):
        method = make(batch_norm, shuffle=shuffle)
        params, state = start(method)
        return method.loss(params, state, {"views": VIEWS}, jax.random.key(3))[1][0]["queue"]["rows"][:8]

    np.testing.assert_allclose(keys("sync", True), keys("sync", False), atol=1e-5)
    assert np.abs(keys("grouped", True) - keys("grouped", False)).max() > 1e-2


def test_the_teacher_follows_at_a_constant_decay():
    method = make(decay=0.75)
    params, state = start(method)
    moved = method.update(params, state, 7)["teacher"]["params"]
    expected = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, state["teacher"]["params"], params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, expected)


def test_the_head_has_biases_and_no_batch_norm():
    params, state = make().init(jax.random.key(1), VIEWS[0])
    assert jax.tree.map(jnp.shape, params["projector"]) == {
        "Dense_0": {"kernel": (16, 12), "bias": (12,)},
        "Dense_1": {"kernel": (12, 6), "bias": (6,)},
    }
    assert not state["batch_stats"]["projector"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"queue_size": 20}, "no multiple of batch_size=8; use 16"),
        ({"queue_size": 48}, "longer than the data set of 40 images.*use 40 or less"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"decay": -0.1}, "decay must be in 0..1"),
    ],
)
def test_refuses_what_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
