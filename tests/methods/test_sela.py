import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule

BATCH, IMAGES, CLUSTERS = 8, 24, (4, 2, 3)


def make(**options):
    schedule = Schedule(batch_size=BATCH, steps=100, steps_per_epoch=3, num_images=IMAGES)
    options = {"clusters": CLUSTERS, "strength": 5.0, "relabelings": 6, **options}
    return METHODS["sela"](models.create("resnet8", stages=(1,), base_width=8), schedule, **options)


def draw(number):
    """The batch of step 0, 1, ... of an epoch of three."""
    views = (np.random.default_rng(number).normal(size=(BATCH, 8, 8, 1)).astype(np.float32),)
    return {"views": views, "index": np.arange(BATCH) + BATCH * (number % 3)}


@functools.cache
def prepared():
    """(params, state) after the pass over two of three batches, and the first labels."""
    method = make()
    params, state = method.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    layer = params["classifier"]["Dense_0"]
    rng = np.random.default_rng(0)
    params["classifier"]["Dense_0"] = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in layer.items()}
    prepare = jax.jit(method.prepare)
    for number in range(2):
        state, _ = prepare(params, state, draw(number), jax.random.key(1))
    return jax.device_get((params, jax.jit(method.prepared)(params, state)))


def logits_of_heads(params, h):
    layer = params["classifier"]["Dense_0"]
    return np.split(h.astype(np.float64) @ layer["kernel"] + layer["bias"], [4, 6], axis=-1)


def test_labels_are_shared_out_by_each_heads_probabilities_of_all_images():
    params, state = prepared()
    rows = state["memory"]["rows"][: 2 * BATCH]
    for head, logits in enumerate(logits_of_heads(params, rows)):
        # Of the whole set at once: `losses.sinkhorn` is tested against SeLa's loop.
        log_p = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
        codes = losses.sinkhorn(log_p, epsilon=1 / 5.0, iterations=50, tolerance=0.1)
        expected = [*np.argmax(codes, axis=1).tolist(), *[-1] * BATCH]  # images that were not seen have no label
        np.testing.assert_array_equal(state["labels"][head], expected)
        assert len(set(expected[: 2 * BATCH])) == CLUSTERS[head]


def test_loss_is_the_mean_of_the_heads_cross_entropies():
    method, (params, state) = make(), prepared()
    loss = jax.jit(method.loss)
    output = jax.device_get(loss(params, state, draw(1), jax.random.key(1)))
    terms = []
    for head, logits in enumerate(logits_of_heads(params, output.embeddings[0])):
        labels = state["labels"][head, BATCH : 2 * BATCH]
        terms.append(np.mean(np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(BATCH), labels]))
    np.testing.assert_allclose(output.loss, np.mean(terms), rtol=1e-4)
    output = loss(params, state, draw(2), jax.random.key(1))
    assert output.loss == 0.0  # no labels
    seen = output.state["memory"]
    assert np.all(seen["seen"])
    np.testing.assert_array_equal(seen["rows"][2 * BATCH :], output.embeddings[0])


@pytest.mark.parametrize("spacing, expected", [(1, [20, 40, 60, 80, 100]), (2, [4, 16, 36, 64, 100])])
def test_labels_are_made_at_their_times_only(spacing, expected):
    method = make(spacing=spacing)
    steps = jnp.arange(1, 101)
    assert list(np.asarray(steps)[np.asarray(method.relabels(steps))]) == expected
    params, state = prepared()
    moved = {**state, "memory": {**state["memory"], "rows": state["memory"]["rows"][::-1]}}
    update = jax.jit(method.update)
    np.testing.assert_array_equal(update(params, moved, 5)["labels"], state["labels"])
    assert not np.array_equal(update(params, moved, expected[0])["labels"], state["labels"])


def test_chance_level_is_the_mean_over_heads():
    np.testing.assert_allclose(make().chance_level, np.mean([math.log(count) for count in CLUSTERS]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clusters": ()}, "clusters must have a number for each head, got none"),
        ({"clusters": (3, 25)}, "clusters=25 must be from 2 to the number of images, 24"),
        ({"relabelings": 1}, "relabelings must be at least 2, got 1"),
        ({"spacing": 0}, "spacing must be at least 1, got 0"),
        ({"strength": 0.0}, "strength must be above 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
