import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.split_brain import lightness_bin
from ssl_jax.models.lab import lab_of_rgb
from tests.methods.drawn import draw

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


BACKBONE = models.create("split_resnet8", stages=(1, 1), width=1.0, mean=MEAN, std=STD)
METHOD = METHODS["split_brain"](BACKBONE, RUN, decoder_width=4)
RGB = np.random.default_rng(0).uniform(size=(4, 16, 16, 3)).astype(np.float32)


def normalized(rgb):
    return ((rgb - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)


@pytest.mark.slow
def test_loss_is_the_cross_entropy_of_lightness_plus_that_of_color():
    @jax.jit
    def run(x, rgb):
        params, state = METHOD.init(jax.random.key(1), x[:1])
        output = METHOD.loss(params, state, {"views": (x,)}, jax.random.key(2))
        logits, h, _ = METHOD.predict(params, state, x, jax.random.key(2), None)
        return output.loss, output.metrics, logits, h, lab_of_rgb(rgb)

    loss, metrics, logits, h, lab = jax.device_get(run(normalized(RGB), RGB))
    assert logits["color"].shape == (4, 4, 4, 313) and logits["lightness"].shape == (4, 4, 4, 50)
    assert h.shape == (4, METHOD.backbone.dim)
    of_lightness = np.float64(logits["lightness"])
    log_p = of_lightness - np.log(np.sum(np.exp(of_lightness), axis=-1, keepdims=True))
    of_truth = np.take_along_axis(log_p, np.floor(lab[:, ::4, ::4, :1] / 2).astype(int), axis=-1)
    np.testing.assert_allclose(metrics["loss_lightness"], -np.mean(of_truth), rtol=1e-4)
    # All images have colors, and all of these weigh the same.
    np.testing.assert_allclose(metrics["uniform_loss"], np.log(313) + np.log(50), rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["loss_color"] + metrics["loss_lightness"], rtol=1e-6)


@pytest.mark.slow
def test_each_half_learns_from_its_own_task():
    @jax.jit
    def run(x):
        params, state = METHOD.init(jax.random.key(1), x[:1])

        def losses(backbone):
            of_all = {**params, "backbone": backbone}
            metrics = METHOD.loss(of_all, state, {"views": (x,)}, jax.random.key(2)).metrics
            return metrics["loss_color"], metrics["loss_lightness"]

        return jax.jacrev(losses)(params["backbone"])

    for gradient, first in zip(jax.device_get(run(normalized(RGB))), (True, False), strict=True):
        moved = {half: any(np.any(leaf) for leaf in jax.tree.leaves(gradient[half])) for half in ("first", "second")}
        assert moved == {"first": first, "second": not first}


def test_the_halves_see_lightness_and_color_alone():
    @jax.jit
    def features(params, state, x):
        return METHOD.features(params, state, x)

    gray = np.broadcast_to(RGB.mean(axis=-1, keepdims=True), RGB.shape)
    found = np.asarray(features(*draw(METHOD, normalized(RGB)), normalized(np.concatenate([RGB, gray, 0.5 * gray]))))
    of_colored, of_gray, of_darker = np.split(found, 3)
    half = METHOD.backbone.dim // 2
    np.testing.assert_allclose(of_gray[:, half:], of_darker[:, half:], atol=1e-4)  # neither has a color
    assert np.max(np.abs(of_gray[:, :half] - of_darker[:, :half])) > 1e-3
    assert np.max(np.abs(of_gray[:, half:] - of_colored[:, half:])) > 1e-3


def test_pictures_color_what_is_gray():
    def run(x):
        params, state = METHOD.init(jax.random.key(1), x[:1])
        made = METHOD.pictures(params, state, {"views": (x,)}, jax.random.key(0))
        assert list(made) == ["image", "gray", "colorized"]
        return made

    assert jax.eval_shape(run, normalized(RGB))["colorized"].shape == RGB.shape


def test_lightness_bins():
    lightness = np.array([0.0, 0.99, 1.0, 50.5, 99.9, 100.0], np.float32)
    np.testing.assert_array_equal(jax.jit(lightness_bin)(lightness), [0, 0, 0, 25, 49, 49])


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"name": "resnet8"},
            "one for lightness and one for colors, got a ResNet; use a model.name such",
        ),
        (
            {"name": "split_resnet8", "parts": "bands"},
            "one for lightness and one for colors, got a SplitResNet with parts='bands'",
        ),
    ],
)
def test_other_backbones_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        METHODS["split_brain"](models.create(**options), RUN)
