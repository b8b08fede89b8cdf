import functools
import math

import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

BATCH, IMAGES = 8, 24


def make(**options):
    schedule = Schedule(batch_size=BATCH, steps=100, steps_per_epoch=3, num_images=IMAGES)
    options = {"projector": (16, 16, 6), "predictor": (12, 6), "clusters": (4, 3), "dual_rate": 0.5, **options}
    return METHODS["coke"](models.create("resnet8", stages=(1,), base_width=8), schedule, **options)


def draw(number):
    """The batch of step 0, 1, ... of an epoch of three."""
    views = tuple(np.random.default_rng(number).normal(size=(2, BATCH, 8, 8, 1)).astype(np.float32))
    return {"views": views, "index": np.arange(BATCH) + BATCH * (number % 3)}


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def course():
    """(params, [(state before, output, state after, projections, predictions)] of four steps without an optimizer)."""
    method = make()

    @jax.jit
    def step(params, state, batch, number):
        def apply(x, names):
            for name in names:
                variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
                x, _ = method.networks[name].apply(variables, x, train=True, mutable=["batch_stats"])
            return x

        p = [apply(x, ("backbone", "projector")) for x in batch["views"]]
        q = [apply(x, ("predictor",)) for x in p]
        output = method.loss(params, state, batch, jax.random.key(1))
        return output, method.update(params, output.state, number), p, q

    params, state = jax.device_get(method.init(jax.random.key(0), np.zeros((2, 8, 8, 1), np.float32)))
    history = []
    for number in range(4):
        output, after, p, q = jax.device_get(step(params, state, draw(number), number + 1))
        history.append((state, output, after, unit(p), unit(q)))
        state = after
    return params, history


def log_softmax(scores):
    scores = scores / 0.05
    return (
        scores
        - np.log(np.sum(np.exp(scores - scores.max(-1, keepdims=True)), -1, keepdims=True))
        - scores.max(-1, keepdims=True)
    )


@pytest.mark.parametrize("number", [0, 3])
def test_loss_is_of_the_label_and_of_the_other_views_soft_label(number):
    _, history = course()
    state, output, _, p, q = history[number]
    terms = []
    for head, clusters in enumerate(state["heads"]):
        centers = clusters["centers"].astype(np.float64)
        # In the first epoch the label is new, later that of the last epoch.
        labels = (output.state if number == 0 else state)["labels"][head, :BATCH]
        for s in (p, q):
            for view in range(2):
                log_p = log_softmax(s[view] @ centers.T)
                hard = -np.mean(log_p[np.arange(BATCH), labels])
                soft = -np.mean(np.sum(np.exp(log_softmax(p[1 - view] @ centers.T)) * log_p, axis=-1))
                terms.append(0.2 * hard + 0.8 * soft)
    np.testing.assert_allclose(output.loss, np.mean(terms), rtol=1e-4)
    np.testing.assert_allclose(output.embeddings, p, rtol=1e-3, atol=1e-4)


def test_labels_follow_the_moving_centers_and_scores_those_of_the_last_epoch():
    _, history = course()
    for number, (before, output, after, p, _) in enumerate(history):
        here = np.arange(BATCH) + BATCH * (number % 3)
        for head, clusters in enumerate(before["heads"]):
            likeness = p.mean(axis=0) @ clusters["moving"].T + clusters["duals"]
            np.testing.assert_array_equal(output.state["labels"][head, here], np.argmax(likeness, axis=1))
            np.testing.assert_array_equal(output.state["heads"][head]["centers"], clusters["centers"])
            kept = "moving" if number == 2 else "centers"  # the third step ends the epoch
            np.testing.assert_array_equal(after["heads"][head]["centers"], output.state["heads"][head][kept])
            assert after["heads"][head]["counts"].sum() == [8, 16, 0, 8][number]
    seen = history[0][1].state["labels"] >= 0
    np.testing.assert_array_equal(seen, np.broadcast_to(np.arange(IMAGES) < BATCH, (2, IMAGES)))


def test_one_view_has_the_label_alone():
    method, (params, history) = make(num_views=1, prediction_share=1.0), course()
    state, _, _, _, q = history[3]
    batch = {**draw(3), "views": draw(3)["views"][:1]}
    output = jax.jit(method.loss)(params, state, batch, jax.random.key(1))
    expected = [
        -np.mean(log_softmax(q[0] @ clusters["centers"].T)[np.arange(BATCH), state["labels"][head, :BATCH]])
        for head, clusters in enumerate(state["heads"])
    ]
    np.testing.assert_allclose(output.loss, np.mean(expected), rtol=1e-4)
    assert method.views == ("view1",) and output.embeddings.shape == (1, BATCH, 6)


def test_chance_level_and_steps_without_learning():
    np.testing.assert_allclose(make().chance_level, (math.log(4) + math.log(3)) / 2)
    assert make(still_epochs=2.0).still_steps == {"": 6}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clusters": ()}, "clusters must have a number for each head, got none"),
        ({"clusters": (3, 25)}, "clusters=25 must be from 2 to the number of images, 24"),
        ({"num_views": 3}, r"num_views must be in 1\.\.2"),
        ({"bound": 1.5}, r"bound must be in 0\.\.1"),
        ({"predictor": (12, 5)}, "ends in 5 dimensions, not in the projector's 6"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
