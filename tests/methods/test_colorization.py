import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.toolkit import colors
from ssl_jax.models.lab import lab_of_rgb, normalized_of_lab
from tests.methods.drawn import draw

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


BACKBONE = models.create("lightness_resnet8", stages=(1, 1), width=0.5, mean=MEAN, std=STD)
RGB = np.random.default_rng(0).uniform(size=(4, 16, 16, 3)).astype(np.float32)
RGB[3] = RGB[3, ..., :1]  # the last has no color
X = ((RGB - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)


def make(**options):
    return METHODS["colorization"](BACKBONE, RUN, decoder_width=4, **options)


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


@pytest.mark.slow
def test_loss_weighs_rare_colors_and_leaves_out_gray_images():
    method = make(uniform_share=0.3)

    @jax.jit
    def run(x, rgb):
        params, state = method.init(jax.random.key(1), x[:1])
        output = method.loss(params, state, {"views": (x,)}, jax.random.key(2))
        logits = method.predict(params, state, x, jax.random.key(2), None)[0]
        truth = lab_of_rgb(rgb)[:, ::4, ::4, 1:]
        return output, logits, truth, colors.encode(truth)

    output, logits, truth, targets = jax.device_get(run(X, RGB))
    logits, targets = np.float64(logits), np.float64(targets)
    assert logits.shape == (4, 4, 4, 313)
    p = targets[:3].mean(axis=(0, 1, 2))
    occurs = p > 0
    w = np.zeros(313)
    w[occurs] = 1 / (0.7 * p[occurs] + 0.3 / occurs.sum())
    w /= np.sum(p * w)
    of_position = w[targets.argmax(axis=-1)]
    of_position[3] = 0
    cross_entropy = -np.sum(targets * log_softmax(logits), axis=-1)
    np.testing.assert_allclose(output.loss, np.mean(of_position * cross_entropy), rtol=1e-3)
    np.testing.assert_allclose(output.state["prior"]["mass"], 0.75 * p, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(output.metrics["uniform_loss"], np.log(313) * np.mean(of_position), rtol=1e-3)
    assert output.metrics["colored_share"] == 0.75
    np.testing.assert_allclose(output.metrics["gray_distance"], np.mean(np.linalg.norm(truth[:3], axis=-1)), rtol=1e-3)


@pytest.mark.slow
def test_images_without_color_teach_nothing():
    method = make()

    @jax.jit
    def run(gray):
        params, state = method.init(jax.random.key(1), gray[:1])

        def loss(params):
            output = method.loss(params, state, {"views": (gray,)}, jax.random.key(2))
            return output.loss, output

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, output), gradient = jax.device_get(run(np.broadcast_to(X[3:], X.shape)))
    assert loss == 0.0 and output.metrics["colored_share"] == 0.0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert not np.any(output.state["prior"]["mass"]) and output.state["prior"]["batches"] == 1


def test_pictures_show_the_image_gray_and_colored_anew(monkeypatch):
    method = make()

    @jax.jit
    def run(lab):
        # Colors that are alike everywhere, predicted with certainty, are those of the image.
        certain = 1e3 * colors.encode(colors.subsample(lab)[..., 1:])
        monkeypatch.setattr(colors, "predict", lambda *arguments: certain)
        made = method.pictures({}, {}, {"views": (normalized_of_lab(lab, MEAN, STD),)}, jax.random.key(0))
        assert list(made) == ["image", "gray", "colorized"]
        return made, lab_of_rgb(made["gray"] * jnp.array(STD) + jnp.array(MEAN))

    made, lab_of_gray = jax.device_get(run(np.broadcast_to(np.float32([60, 20, 30]), (4, 16, 16, 3))))
    np.testing.assert_allclose(made["colorized"], made["image"], atol=2e-3)
    shown = made["gray"] * STD + MEAN
    np.testing.assert_allclose(shown, shown[..., :1].repeat(3, axis=-1), atol=1e-3)
    np.testing.assert_allclose(lab_of_gray[..., 0], 60.0, atol=1e-2)


def test_evaluated_logits_do_not_depend_on_the_batch():
    method = make()

    @jax.jit
    def run(params, state, x):
        return method.color_logits(params, state, x), method.color_logits(params, state, x[:1])

    logits, alone = jax.device_get(run(*draw(method, X), X))
    np.testing.assert_allclose(alone, logits[:1], atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"uniform_share": 1.5}, "uniform_share must be in 0..1, got 1.5"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_backbone_that_sees_colors_is_refused():
    with pytest.raises(ValueError, match=r"a ResNet sees the colors; use a model\.name such as lightness_resnet50"):
        METHODS["colorization"](models.create("resnet8"), RUN)
