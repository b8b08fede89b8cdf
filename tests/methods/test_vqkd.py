import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule, Teacher
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
X = np.random.default_rng(0).normal(size=(4, 12, 12, 1)).astype(np.float32)  # 3 x 3 patches


@functools.cache
def teacher():
    model = models.create("vit_tiny_patch16_224", dim=8, depth=1, heads=2, patch_size=4, image_size=12)
    return Teacher(model, jax.device_get(model.init(jax.random.key(3), X[:1])), (2.0,), (0.5,))


def make(**options):
    vit = dict(dim=16, depth=1, heads=2, patch_size=4, image_size=12, pool="norm_mean")
    small = dict(codes=6, code_dim=4, decoder_dim=8, decoder_depth=1, decoder_heads=2, loaded=teacher())
    return METHODS["vqkd"](models.create("vit_tiny_patch16_224", **vit), RUN, **{**small, **options})


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def step():
    """(codes, output, gradient, what is quantized, a decoding of the codes, the teacher's tokens, prepared state)"""
    method = make(commitment=0.5, decay=0.75)
    params, state = drawn.draw(method, X[:1])
    codes = unit(np.random.default_rng(1).normal(size=(6, 4))).astype(np.float32)
    state = {**state, "teacher": teacher().variables, "codebook": codes}

    @jax.jit
    def run(params, state, batch, rng):
        def loss(params):
            output = method.loss(params, state, batch, rng)
            return output.loss, output

        (_, output), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        z, _ = method.encode(params, batch["views"][0], rng, None)
        nearest = jnp.array(codes)[jnp.argmax(z @ codes.T, axis=-1)]
        decoded = method.decoder.apply({"params": params["decoder"]}, nearest)
        seen = teacher().model.apply(state["teacher"], 2.0 * batch["views"][0] + 0.5, method="tokens")
        prepared, _ = method.prepare(params, state, batch, rng)
        return output, gradient, z, decoded, seen[:, 1:], prepared

    return codes, *jax.device_get(run(params, state, {"views": (X,)}, jax.random.key(2)))


def test_loss_is_the_cosine_of_decoded_codes_and_how_far_they_are():
    codes, output, _, z, decoded, seen, _ = step()
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1.0, rtol=1e-5)
    rows = codes[np.argmax(z @ codes.T, axis=-1)]
    cosine = np.mean(np.sum(unit(decoded) * unit(seen), axis=-1))
    error = np.mean((z - rows) ** 2)
    np.testing.assert_allclose(output.metrics["teacher_cosine"], cosine, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.metrics["code_error"], error, rtol=1e-4)
    np.testing.assert_allclose(output.loss, 1 - cosine + 0.5 * error, rtol=1e-4)


def test_codes_follow_what_they_stand_for_and_the_encoder_learns_through_them():
    codes, output, gradient, z, *_ = step()
    tokens = np.argmax(z @ codes.T, axis=-1)
    for code in range(6):
        own = z[tokens == code]
        expected = unit(0.75 * codes[code] + 0.25 * unit(own.mean(0))) if len(own) else codes[code]
        np.testing.assert_allclose(output.state["codebook"][code], expected, atol=1e-5)
    assert np.abs(gradient["backbone"]["blocks_0"]["attn"]["qkv"]["kernel"]).max() > 1e-6
    assert np.abs(gradient["head"]["hidden"]["kernel"]).max() > 1e-6


def test_codes_begin_as_clusters_of_the_first_batch():
    *_, z, _, _, prepared = step()
    first = prepared["codebook"]
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, rtol=1e-5)
    rows = z.reshape(-1, 4)
    tokens = np.argmax(rows @ first.T, axis=1)
    for code in np.unique(tokens):  # k-means has converged: a code is the mean of its vectors
        np.testing.assert_allclose(first[code], unit(rows[tokens == code].mean(0)), atol=1e-2)


def test_the_teacher_is_a_constant_and_is_resized():
    method = make(loaded=dataclasses.replace(teacher(), model=models.create("resnet8", stages=(1,), base_width=8)))
    model = method.frozen.model
    variables = model.init(jax.random.key(3), X[:1])
    found = method.targets(variables, jnp.array(X))
    assert found.shape == (4, 9, model.dim)
    assert set(make().constants) == {"teacher"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loaded": None}, "say --config.method.teacher=PATH"),
        ({"codes": 1}, "codes must be at least 2"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_more_codes_than_patches_are_refused():
    with pytest.raises(ValueError, match=r"codes=37 .* has 36 patches; use codes=36 or less"):
        jax.eval_shape(make(codes=37).init, jax.random.key(0), X[:1])


def test_a_teacher_without_places_is_refused():
    model = models.create("vit_tiny_patch16_224", dim=8, depth=1, heads=2, patch_size=4, image_size=12, pool="mean")
    with pytest.raises(ValueError, match="has no features of places"):
        make(loaded=dataclasses.replace(teacher(), model=model))
