import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run, _color
from ssl_jax.models.lab import lab_of_rgb, normalized_of_lab

RUN = Run(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def setup(**options):
    backbone = models.create("lightness_resnet8", width=0.5, mean=MEAN, std=STD)
    method = METHODS["colorization"](backbone, RUN, decoder_width=4, **options)
    rgb = jax.random.uniform(jax.random.key(0), (4, 16, 16, 3))
    rgb = rgb.at[3].set(rgb[3, ..., :1])  # the last has no color
    x = (rgb - np.array(MEAN)) / np.array(STD)
    return method, rgb, x, *method.init(jax.random.key(1), x[:1])


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


@pytest.mark.slow
def test_loss_weighs_rare_colors_and_leaves_out_gray_images():
    method, rgb, x, params, state = setup(uniform_share=0.3)
    loss, (new_state, metrics) = method.loss(params, state, {"views": (x,)}, jax.random.key(2))
    logits = np.asarray(method.predict(params, state, x, jax.random.key(2), None)[0], np.float64)
    assert logits.shape == (4, 4, 4, 313)
    colors = np.asarray(lab_of_rgb(rgb))[:, ::4, ::4, 1:]
    targets = np.asarray(_color.encode(jnp.asarray(colors)), np.float64)
    p = targets[:3].mean(axis=(0, 1, 2))
    occurs = p > 0
    w = np.zeros(313)
    w[occurs] = 1 / (0.7 * p[occurs] + 0.3 / occurs.sum())
    w /= np.sum(p * w)
    of_position = w[targets.argmax(axis=-1)]
    of_position[3] = 0
    cross_entropy = -np.sum(targets * log_softmax(logits), axis=-1)
    np.testing.assert_allclose(loss, np.mean(of_position * cross_entropy), rtol=1e-3)
    np.testing.assert_allclose(new_state["prior"]["mass"], 0.75 * p, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(metrics["uniform_loss"], np.log(313) * np.mean(of_position), rtol=1e-3)
    assert metrics["colored_share"] == 0.75
    np.testing.assert_allclose(metrics["gray_distance"], np.mean(np.linalg.norm(colors[:3], axis=-1)), rtol=1e-3)


@pytest.mark.slow
def test_images_without_color_teach_nothing():
    method, _, x, params, state = setup()
    gray = jnp.broadcast_to(x[3:], x.shape)
    (loss, (new_state, metrics)), gradient = jax.value_and_grad(method.loss, has_aux=True)(
        params, state, {"views": (gray,)}, jax.random.key(2)
    )
    assert loss == 0.0 and metrics["colored_share"] == 0.0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert not np.any(new_state["prior"]["mass"]) and new_state["prior"]["batches"] == 1


def test_pictures_show_the_image_gray_and_colored_anew(monkeypatch):
    method, _, _, params, state = setup()
    # Colors that are alike everywhere, predicted with certainty, are those of the image.
    lab = jnp.broadcast_to(jnp.array([60.0, 20.0, 30.0]), (4, 16, 16, 3))
    x = normalized_of_lab(lab, MEAN, STD)
    certain = 1e3 * _color.encode(_color.subsample(lab)[..., 1:])
    monkeypatch.setattr(_color, "predict", lambda *arguments: certain)
    made = method.pictures(params, state, {"views": (x,)}, jax.random.key(0))
    assert list(made) == ["image", "gray", "colorized"]
    np.testing.assert_allclose(made["colorized"], x, atol=2e-3)
    shown = np.asarray(made["gray"]) * STD + MEAN
    np.testing.assert_allclose(shown, shown[..., :1].repeat(3, axis=-1), atol=1e-3)
    np.testing.assert_allclose(lab_of_rgb(jnp.asarray(shown, jnp.float32))[..., 0], 60.0, atol=1e-2)


def test_evaluated_logits_do_not_depend_on_the_batch():
    method, _, x, params, state = setup()
    logits = method.color_logits(params, state, x)
    np.testing.assert_allclose(method.color_logits(params, state, x[:1]), logits[:1], atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"uniform_share": 1.5}, "uniform_share must be in 0..1, got 1.5"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        setup(**options)


def test_a_backbone_that_sees_colors_is_refused():
    with pytest.raises(ValueError, match=r"a ResNet sees the colors; use a model\.name such as lightness_resnet50"):
        METHODS["colorization"](models.create("resnet8"), RUN)
