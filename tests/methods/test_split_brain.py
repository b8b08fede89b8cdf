import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run
from ssl_jax.methods.split_brain import lightness_bin
from ssl_jax.models.lab import lab_of_rgb

RUN = Run(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def setup():
    backbone = models.create("split_resnet8", width=1.0, mean=MEAN, std=STD)
    method = METHODS["split_brain"](backbone, RUN, decoder_width=4)
    rgb = jax.random.uniform(jax.random.key(0), (4, 16, 16, 3))
    x = (rgb - np.array(MEAN)) / np.array(STD)
    return method, rgb, x, *method.init(jax.random.key(1), x[:1])


@pytest.mark.slow
def test_loss_is_the_cross_entropy_of_lightness_plus_that_of_color():
    method, rgb, x, params, state = setup()
    loss, (_, metrics) = method.loss(params, state, {"views": (x,)}, jax.random.key(2))
    logits, h, _ = method.predict(params, state, x, jax.random.key(2), None)
    assert logits["color"].shape == (4, 4, 4, 313) and logits["lightness"].shape == (4, 4, 4, 100)
    assert h.shape == (4, method.backbone.dim)
    lightness = np.asarray(lab_of_rgb(rgb))[:, ::4, ::4, 0]
    log_p = np.asarray(jax.nn.log_softmax(logits["lightness"]))
    of_truth = np.take_along_axis(log_p, np.floor(lightness)[..., None].astype(int), axis=-1)
    np.testing.assert_allclose(metrics["loss_lightness"], -np.mean(of_truth), rtol=1e-4)
    # All images have colors, and all of these weigh the same.
    np.testing.assert_allclose(metrics["uniform_loss"], np.log(313) + np.log(100), rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["loss_color"] + metrics["loss_lightness"], rtol=1e-6)


@pytest.mark.slow
def test_each_half_learns_from_its_own_task():
    method, _, x, params, state = setup()

    def part(params, name):
        return method.loss(params, state, {"views": (x,)}, jax.random.key(2))[1][1][name]

    def moved(gradient):
        return {half: any(np.any(leaf) for leaf in jax.tree.leaves(gradient[half])) for half in ("first", "second")}

    for name, first in (("loss_color", True), ("loss_lightness", False)):
        gradient = jax.grad(part)(params, name)
        assert moved(gradient["backbone"]) == {"first": first, "second": not first}


def test_the_halves_see_lightness_and_color_alone():
    method, _, x, params, state = setup()
    half = method.backbone.dim // 2
    features = method.features(params, state, x)
    gray = jnp.broadcast_to(jnp.mean(x * np.array(STD) + np.array(MEAN), axis=-1, keepdims=True), x.shape)
    gray = (gray - np.array(MEAN)) / np.array(STD)
    darker = (0.5 * (gray * np.array(STD) + np.array(MEAN)) - np.array(MEAN)) / np.array(STD)
    of_gray, of_darker = (method.features(params, state, images) for images in (gray, darker))
    np.testing.assert_allclose(of_gray[:, half:], of_darker[:, half:], atol=1e-4)  # neither has a color
    assert np.max(np.abs(of_gray[:, :half] - of_darker[:, :half])) > 1e-3
    assert np.max(np.abs(of_gray[:, half:] - features[:, half:])) > 1e-3


def test_pictures_color_what_is_gray():
    method, _, x, params, state = setup()
    made = method.pictures(params, state, {"views": (x,)}, jax.random.key(0))
    assert list(made) == ["image", "gray", "colorized"] and made["colorized"].shape == x.shape


def test_lightness_bins():
    np.testing.assert_array_equal(lightness_bin(jnp.array([0.0, 0.99, 1.0, 50.5, 99.9, 100.0])), [0, 0, 0, 25, 49, 49])


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"name": "resnet8"},
            "a ResNet has no halves for lightness and colors; use a model.name such",
        ),
        ({"name": "split_resnet8", "parts": "bands"}, "a SplitResNet of parts='bands' has no halves"),
    ],
)
def test_other_backbones_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        METHODS["split_brain"](models.create(**options), RUN)
