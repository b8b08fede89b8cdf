import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import config, models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.training import augmenting, build
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
MASK = np.array([[1, 1, 0, 1] * 4, [0, 1, 1, 1] * 4, [1, 1, 1, 0] * 4, [1, 0, 1, 1] * 4], bool)  # 12 of 16 each
X, WHOLE = (5.0 + 2.0 * np.random.default_rng(0).normal(size=(2, 4, 16, 16, 1))).astype(np.float32)


def make(**options):
    backbone = models.create(
        "vit_tiny_patch16_224", dim=16, depth=1, heads=2, patch_size=4, image_size=16, positions="sincos"
    )
    small = dict(mask_ratio=0.75, decoder_dim=16, decoder_depth=1, decoder_heads=2, feature_depth=1)
    return METHODS["cmae"](backbone, RUN, **{**small, "projector": (12, 6), "predictor": (12, 6), **options})


@functools.cache
def step():
    """(params, state, output, the largest gradient for the teacher, what the decoders give, the teacher's tokens)"""
    method = make(contrastive=0.5, temperature=0.2)
    params, state = drawn.draw(method, X[:1])

    @jax.jit
    def run(params, state, batch, rng):
        def loss(teacher):
            moved = {**state, "teacher": {**state["teacher"], "params": teacher}}
            output = method.loss(params, moved, batch, rng)
            return output.loss, output

        (_, output), gradient = jax.value_and_grad(loss, has_aux=True)(state["teacher"]["params"])
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(gradient)]))
        found = method.predict(params, batch["views"][0], batch["masks"][0], rng, None)
        variables = {"params": state["teacher"]["params"]["backbone"]}
        tokens = method.backbone.apply(variables, batch["views"][1], last_blocks=1)
        pictures = method.pictures(params, state, batch, rng)
        return output, largest, found, tokens, pictures

    return (
        params,
        state,
        *jax.device_get(run(params, state, {"views": (X, WHOLE), "masks": (MASK,)}, jax.random.key(2))),
    )


def head(x, params):
    """Linear, BatchNorm of the batch, ReLU, linear."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * p["BatchNorm_0"]["scale"] + p["BatchNorm_0"]["bias"]
    return np.maximum(x, 0.0) @ p["Dense_1"]["kernel"]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_loss_is_that_of_pixels_and_of_finding_the_teachers_projection():
    params, state, output, gradient, found, tokens, _ = step()
    patches = X.reshape(4, 4, 4, 4, 4).swapaxes(2, 3).reshape(4, 16, 16).astype(np.float64)
    target = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    pixels = np.mean((found["decoder"] - target)[MASK] ** 2)
    np.testing.assert_allclose(output.metrics["pixel_loss"], pixels, rtol=1e-4)

    prediction = head(head(found["feature_decoder"].mean(1), params["projector"]), params["predictor"])
    projection = head(tokens[:, 0, 1:].mean(1), state["teacher"]["params"]["projector"])  # no class token, no LayerNorm
    scores = unit(prediction) @ unit(projection).T / 0.2
    nce = np.mean(np.log(np.exp(scores).sum(1)) - np.diag(scores))
    np.testing.assert_allclose(output.metrics["info_nce"], nce, rtol=1e-3)
    np.testing.assert_allclose(output.loss, pixels + 0.5 * 2 * 0.2 * nce, rtol=1e-3)
    assert gradient == 0.0  # the teacher is constant
    assert output.embeddings.shape == (2, 4, 6)


def test_the_report_has_the_drawn_image_and_what_the_teacher_saw():
    *_, pictures = step()
    assert set(pictures) == {"image", "seen", "reconstruction", "target"}
    np.testing.assert_array_equal(pictures["target"], WHOLE)


def test_the_teacher_begins_as_a_copy_and_moves_at_a_constant_pace():
    params, state, *_ = step()
    for at in (0, 90):
        moved = make(decay=0.9).update(params, state, jnp.array(at))["teacher"]["params"]
        jax.tree.map(
            lambda m, t, p: np.testing.assert_allclose(m, 0.9 * t + 0.1 * p, rtol=1e-4, atol=1e-6),
            moved,
            state["teacher"]["params"],
            {name: params[name] for name in moved},
        )
    _, first = jax.eval_shape(make().init, jax.random.key(0), X[:1])
    assert set(first["teacher"]["params"]) == {"backbone", "projector"}


def test_predictor_of_another_width_is_refused():
    with pytest.raises(ValueError, match="ends in 5 dimensions, not in the projector's 6"):
        make(predictor=(12, 5))


def test_a_mask_of_squares_that_hides_another_number_of_patches_is_refused():
    found = config.get_config("cmae:imagenet_vitb16")
    found.method.mask_ratio, found.mask.ratio = 0.65, (0.65, 0.65)
    found = config.parse(found)
    method = build.method(found, RUN)
    with pytest.raises(config.ConfigError, match=r"masks 127 of 196 .* unit=2 masks 128; use 128 / 196"):
        augmenting.masks(found, method, augmenting.augmentations(found, method.views))
