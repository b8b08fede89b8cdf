import functools

import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
SIDE, COLORS = 4, 3
LEVELS = np.array([-1.0, 0.0, 1.0], np.float32)
# Pixels near three levels, for which k-means has one answer.
TRUE = np.random.default_rng(0).integers(0, COLORS, (4, SIDE, SIDE, 1))
X = (LEVELS[TRUE] + np.random.default_rng(1).uniform(-0.01, 0.01, TRUE.shape)).astype(np.float32)
BATCH = {"views": (X,), "index": np.arange(4)}


def make(causal=True, colors=COLORS, **options):
    backbone = models.create("igpt_small", dim=8, heads=2, depth=1, image_size=SIDE, colors=colors, causal=causal)
    return METHODS["igpt"](backbone, RUN, **{"palette_steps": 15, **options})


@functools.cache
def run(causal):
    """What is made of BATCH in a step and beside it, with the levels as the palette."""
    method = make(causal, hidden=0.5)
    params, state = drawn.draw(method, X[:1], deviation=1.0)
    state["batch_stats"]["backbone"]["palette"] = LEVELS[:, None]

    @jax.jit
    def step(params, state, batch):
        output = method.loss(params, state, batch, jax.random.key(3))
        (x,) = batch["views"]
        made = method.predict(params, state, x, batch["index"], jax.random.key(3), None)
        return output, made, method.pictures(params, state, batch, jax.random.key(3))

    return jax.device_get(step(params, state, BATCH))


@pytest.mark.parametrize("causal", [True, False])
def test_the_loss_is_the_cross_entropy_of_the_colors_that_are_predicted(causal):
    output, (logits, tokens, counted, _), _ = run(causal)
    true = TRUE.reshape(4, -1)
    np.testing.assert_array_equal(tokens, true)
    assert np.all(counted) if causal else 0.2 < np.mean(counted) < 0.8
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    of_true = np.take_along_axis(log_p, true[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(output.loss, -of_true[counted].mean(), rtol=1e-4)
    shares = np.bincount(true.ravel()) / true.size
    np.testing.assert_allclose(output.metrics["frequency_loss"], -np.sum(shares * np.log(shares)), rtol=1e-5)
    right = logits.argmax(-1) == true
    np.testing.assert_allclose(output.metrics["accuracy"], right[counted].mean(), rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_pictures_have_the_palettes_colors(causal):
    _, (logits, _, counted, _), pictures = run(causal)
    np.testing.assert_array_equal(pictures["colors"], LEVELS[TRUE])
    predicted = np.where(counted, logits.argmax(-1), TRUE.reshape(4, -1))
    np.testing.assert_array_equal(pictures["predicted"], LEVELS[predicted].reshape(X.shape))
    assert ("seen" in pictures) == (not causal)


def test_the_palette_is_made_of_the_pixels_before_the_first_step_and_stays():
    method = make(colors=8)
    assert method.preparing_steps == 15
    params, state = drawn.draw(method, X[:1])
    state["codebook"] = jax.tree.map(np.zeros_like, state["codebook"])

    @jax.jit
    def prepare(params, state, batch, number):
        state, z = method.prepare(params, state, batch, jax.random.key(number))
        return state, z, method.loss(params, state, batch, jax.random.key(0)).state

    for number in range(15):
        state, z, after = prepare(params, state, BATCH, number)
    palette = np.asarray(state["batch_stats"]["backbone"]["palette"])
    assert np.abs(X[..., None] - palette.ravel()).min(axis=-1).max() < 0.05  # each pixel has a color near it
    assert z.shape == (1, 4, SIDE**2)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    # It is a part of the backbone that is kept.
    np.testing.assert_array_equal(method.backbone_variables(params, state)["batch_stats"]["palette"], palette)


def test_the_first_loss_is_that_of_equal_probabilities():
    method = make()

    @jax.jit
    def first(batch):
        params, state = method.init(jax.random.key(0), batch["views"][0])
        return method.loss(params, state, batch, jax.random.key(1)).loss

    np.testing.assert_allclose(first(BATCH), np.log(COLORS), rtol=1e-5)


def test_another_backbone_is_refused():
    with pytest.raises(ValueError, match=r"predicts pixels, which a ResNet does not; use model\.name=igpt_small"):
        METHODS["igpt"](models.create("resnet8"), RUN)


@pytest.mark.parametrize(
    "options, message", [({"hidden": 1.0}, "hidden must be"), ({"palette_steps": 0}, "at least 1")]
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
