import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
X = np.random.default_rng(0).uniform(-1, 1, (4, 4, 4, 1)).astype(np.float32)
UNET = dict(base_width=4, multipliers=(1,), blocks=1, attention_at=(), norm_groups=2, noise_steps=5, feature_step=2)


def make(dropout=0.0, **options):
    return METHODS["ddae"](models.create("ddpm_unet", **UNET, feature_block=1, dropout=dropout), RUN, **options)


@functools.cache
def step():
    method = make()
    params, state = drawn.draw(method, X[:1])
    params, state = drawn.with_other_teacher(params, state)
    batch = {"views": (X,), "index": np.arange(4)}

    @jax.jit
    def run(params, batch):
        output, rng = method.loss(params, state, batch, jax.random.key(3)), jax.random.key(4)
        noisy, noise, steps = method.perturb(jax.random.split(jax.random.key(3))[0], batch["index"], *batch["views"])
        (x,) = batch["views"]
        predict = functools.partial(method.backbone.apply, method="predict_noise")
        predicted, features = predict({"params": params["backbone"]}, noisy, steps)
        features_of = lambda params: method.backbone.apply({"params": params["backbone"]}, x)  # noqa: E731
        return {
            "output": output,
            "drawn": (noisy, noise, steps, predicted, features),
            "features": (method.features(params, state, x), features_of(state["teacher"]["params"])),
            "pictures": method.pictures(params, state, batch, rng),
        }

    return jax.device_get(run(params, batch))


def test_the_loss_is_the_squared_error_of_the_noise_of_each_image_at_its_step():
    found = step()
    noisy, noise, steps, predicted, features = found["drawn"]
    np.testing.assert_allclose(found["output"].loss, np.mean((predicted - noise) ** 2), rtol=1e-4)
    np.testing.assert_allclose(found["output"].embeddings[0], features.mean((1, 2)), rtol=1e-4, atol=1e-5)
    signal = make().backbone.signals[steps][:, None, None, None]
    np.testing.assert_allclose(noisy, signal * X + np.sqrt(1 - signal**2) * noise, rtol=1e-4, atol=1e-5)


def test_steps_and_noise_are_uniform_and_normal_and_each_images_own():
    method, index = make(), np.arange(2000)
    x = np.zeros((2000, 4, 4, 1), np.float32)
    perturb = jax.jit(method.perturb)
    _, noise, steps = map(np.asarray, perturb(jax.random.key(0), index, x))
    np.testing.assert_allclose(np.bincount(steps), [0, *[400] * 5], atol=80)
    np.testing.assert_allclose([noise.mean(), noise.std()], [0.0, 1.0], atol=0.02)
    _, reversed_noise, reversed_steps = perturb(jax.random.key(0), index[::-1].copy(), x)
    np.testing.assert_array_equal(reversed_noise[::-1], noise)
    np.testing.assert_array_equal(reversed_steps[::-1], steps)


def test_the_average_of_the_weights_is_evaluated():
    h, of_teacher = step()["features"]
    np.testing.assert_allclose(h, of_teacher, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step, decay", [(1, 0.0), (8, 0.75), (10_000, 0.9)])
def test_the_decay_grows_to_its_limit(step, decay):
    params = {"backbone": {"w": jnp.ones(2)}}
    state = {"teacher": {"params": {"backbone": {"w": jnp.zeros(2)}}, "batch_stats": {"backbone": {}}}}
    moved = make(decay=0.9).update(params, state, jnp.array(step))
    np.testing.assert_allclose(moved["teacher"]["params"]["backbone"]["w"], 1.0 - decay, rtol=1e-5)


def test_pictures_are_of_the_images_range():
    pictures = step()["pictures"]
    assert set(pictures) == {"image", "noisy", "denoised"}
    assert np.abs(pictures["denoised"]).max() <= 1.0 and pictures["denoised"].shape == X.shape


def test_dropout_changes_the_loss_with_the_key_alone():
    method = make(dropout=0.5)
    params, state = drawn.draw(method, X[:1])
    batch = {"views": (X,), "index": np.arange(4)}
    loss = jax.jit(lambda batch, rng: method.loss(params, state, batch, rng).loss)
    first, again = (loss(batch, jax.random.key(3)) for _ in range(2))
    assert first == again
    assert abs(first - step()["output"].loss) > 1e-4  # the same weights and noise without dropout


def test_another_backbone_is_refused():
    with pytest.raises(ValueError, match=r"predicts the noise .* a ResNet does not; use model\.name=ddpm_unet"):
        METHODS["ddae"](models.create("resnet8"), RUN)
