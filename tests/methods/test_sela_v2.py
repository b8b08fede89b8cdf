import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule

BATCH, IMAGES = 8, 16


def make(**options):
    schedule = Schedule(batch_size=BATCH, steps=100, steps_per_epoch=2, num_images=IMAGES)
    options = {"projector": (16, 8), "prototypes": (4, 2, 3), "local_views": 1, "strength": 5.0, **options}
    return METHODS["sela_v2"](models.create("resnet8", stages=(1,)), schedule, **options)


def draw(step):
    rngs = jax.random.split(jax.random.key(step), 3)
    views = tuple(jax.random.normal(r, (BATCH, s, s, 1)) for r, s in zip(rngs, (16, 16, 8), strict=True))
    return {"views": views, "index": jnp.arange(BATCH) + BATCH * (step % 2)}


def codes(z, prototypes):
    """Of the global batch at once: `losses.sinkhorn` is tested against SeLa's loop."""
    log_p = jax.nn.log_softmax(z @ prototypes.T / 0.1)
    return losses.sinkhorn(log_p, epsilon=1 / 5.0, iterations=50, tolerance=0.1)


@pytest.mark.slow
def test_labels_of_the_memory_are_what_all_crops_are_classified_as():
    method = make()
    loss, update = jax.jit(method.loss), jax.jit(method.update)
    params, state = method.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    assert [rows.shape for rows in params["prototypes"]] == [(4, 8), (2, 8), (3, 8)]

    output = loss(params, state, draw(0), jax.random.key(1))
    assert output.loss == 0.0 and np.all(output.state["labels"] == -1)
    state, z = update(params, output.state, 1), output.embeddings
    for head, prototypes in enumerate(params["prototypes"]):  # they take the large crops in turn
        expected = np.argmax(codes(z[head % 2], prototypes), axis=1)
        np.testing.assert_array_equal(state["labels"][head], [*expected, *[-1] * BATCH])

    # Images not seen yet: labeled as they come; the same as if those were their stored labels.
    output = loss(params, state, draw(1), jax.random.key(1))
    z, stored = output.embeddings, state["labels"]
    for head, prototypes in enumerate(params["prototypes"]):
        log_q = 5.0 * jax.nn.log_softmax(z[head % 2] @ prototypes.T / 0.1) + state["log_r"][head]
        stored = stored.at[head, BATCH:].set(jnp.argmax(log_q, axis=1))
    again = loss(params, {**state, "labels": stored}, draw(1), jax.random.key(1))
    np.testing.assert_allclose(again.loss, output.loss, rtol=1e-6)
    after = output.state

    # Without small crops, the classification by hand.
    plain = make(local_views=0)
    batch = {**draw(1), "views": draw(1)["views"][:2]}
    output = plain.loss(params, {**state, "labels": stored}, batch, jax.random.key(1))
    terms = []
    for head, prototypes in enumerate(params["prototypes"]):
        log_p = jax.nn.log_softmax(output.embeddings @ prototypes.T / 0.1)
        terms.append(-jnp.mean(log_p[:, jnp.arange(BATCH), stored[head, BATCH:]]))
    np.testing.assert_allclose(output.loss, np.mean(terms), rtol=1e-5)

    # All images seen, they are shared out together.
    state = update(params, after, 2)
    for head, prototypes in enumerate(params["prototypes"]):
        expected = np.argmax(codes(after["memory"]["rows"][head % 2], prototypes), axis=1)
        np.testing.assert_array_equal(state["labels"][head], expected)


def test_relabels_at_times_that_grow_apart():
    method = make(relabelings=6)  # at (i / 5)^2 of 100 steps
    steps = jnp.arange(1, 101)
    assert list(np.asarray(steps)[np.asarray(method.relabels(steps))]) == [1, 4, 16, 36, 64, 100]


def test_prototypes_are_made_unit_vectors():
    params = {"prototypes": [3.0 * jnp.eye(3), jnp.array([[0.0, 4.0, 3.0]])], "backbone": jnp.array(7.0)}
    constrained = make().constrain(params)
    np.testing.assert_allclose(constrained["prototypes"][0], np.eye(3), atol=1e-6)
    np.testing.assert_allclose(constrained["prototypes"][1], [[0.0, 0.8, 0.6]], atol=1e-6)
    assert constrained["backbone"] == 7.0


def test_chance_level_is_the_mean_over_heads():
    np.testing.assert_allclose(make().chance_level, np.mean([math.log(4), math.log(2), math.log(3)]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"relabelings": 1}, "relabelings must be at least 2.*got 1"),
        ({"strength": 0.0}, "strength must be above 0"),
        ({"prototypes": (1,)}, "prototypes must be at least 2"),
        ({"prototypes": (17,)}, "from 2 to the number of images, 16"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
