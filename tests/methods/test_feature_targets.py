import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule, Teacher
from ssl_jax.methods.feature_targets import PromptingDecoder, draw_hidden
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
VIT = dict(dim=16, depth=1, heads=2, patch_size=4, image_size=16, positions="sincos")
X = np.random.default_rng(0).normal(size=(4, 16, 16, 1)).astype(np.float32)
MASK = np.array([[1, 1, 0, 1] * 4, [0, 1, 1, 1] * 4, [1, 1, 1, 0] * 4, [1, 0, 1, 1] * 4], bool)  # 12 of 16 each
BATCH = {"views": (X,), "masks": (MASK,), "index": np.arange(4)}
MILAN = dict(decoder_depth=1, decoder_dim=8, decoder_heads=2, by_attention=True, of_all=True)


def teacher(**options):
    """Of random weights: a ViT of 2x2 patches, whose features are resized to the student's 4x4."""
    model = models.create("vit_tiny_patch16_224", **{**VIT, "dim": 8, "patch_size": 8, **options})
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    rng = np.random.default_rng(5)
    return Teacher(model, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes), (2.0,), (0.5,))


def make(loaded=None, vit=None, **options):
    backbone = models.create("vit_tiny_patch16_224", **{**VIT, "pool": "norm_mean", **(vit or {})})
    return METHODS["feature_targets"](backbone, RUN, loaded=loaded or teacher(), **{"mask_ratio": 0.75, **options})


@functools.cache
def step(milan):
    """(method, params, state, what a step makes of BATCH and of its hidden pixels changed)"""
    method = make(**(MILAN if milan else {}))
    params, state = drawn.draw(method, X[:1])
    state |= method.constants

    @jax.jit
    def run(params, state, batch, rng):
        (x,) = batch["views"]

        def loss(params, teacher):
            output = method.loss(params, {**state, "teacher": teacher}, batch, rng)
            return output.loss, output

        rng_mask, rng_drop = jax.random.split(rng)
        mask = method.mask(rng_mask, state, batch)
        hidden = jnp.repeat(jnp.repeat(mask.reshape(4, 4, 4), 4, axis=1), 4, axis=2)[..., None]
        predict = lambda x: method.predict(params, x, mask, rng_drop, None)[0]  # noqa: E731
        return {
            "loss": jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, state["teacher"]),
            "mask": mask,
            "prediction": predict(x),
            "unseen changed": predict(jnp.where(hidden, 9.0, x)),
            "seen changed": predict(jnp.where(hidden, x, 9.0)),
            "teacher": method.frozen.model.apply(state["teacher"], 2.0 * x + 0.5, tokens=True)[:, 1:],
        }

    return params, jax.device_get(run(params, state, BATCH, jax.random.key(3)))


@pytest.mark.parametrize("milan", [False, True])
def test_loss_is_one_less_the_cosine_with_the_teachers_features_of_hidden_patches_or_of_all(milan):
    _, made = step(milan)
    (loss, output), (gradient, of_teacher) = made["loss"]
    target = jax.image.resize(made["teacher"].reshape(4, 2, 2, 8), (4, 4, 4, 8), "bilinear").reshape(4, 16, 8)

    def one_less_cosine(p, t):
        return 1.0 - np.sum(p * t, axis=-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(t, axis=-1)

    where = np.ones((4, 16), bool) if milan else MASK
    of_patches = one_less_cosine(made["prediction"], target)
    np.testing.assert_allclose(loss, np.mean(of_patches[where]), rtol=1e-4)
    unit = target / np.linalg.norm(target, axis=-1, keepdims=True)
    mean_loss = np.mean(one_less_cosine(unit.mean((0, 1)), target)[where])
    np.testing.assert_allclose(output.metrics["mean_loss"], mean_loss, rtol=1e-4)
    assert all(np.all(g == 0) for g in jax.tree.leaves(of_teacher))
    norms = {jax.tree_util.keystr(path): np.abs(g).max() for path, g in jax.tree_util.tree_leaves_with_path(gradient)}
    assert min(norms.values()) > 0, min(norms, key=norms.get)


@pytest.mark.parametrize("milan", [False, True])
def test_hidden_pixels_are_not_seen(milan):
    _, made = step(milan)
    np.testing.assert_array_equal(made["mask"].sum(axis=1), 12)
    np.testing.assert_allclose(made["unseen changed"], made["prediction"], atol=1e-5)
    assert np.abs(made["seen changed"] - made["prediction"]).max() > 1e-2


def test_patches_are_drawn_to_be_seen_in_proportion_to_their_weights():
    weights = jnp.tile(jnp.array([0.0, 1.0, 2.0, 5.0]), (4000, 1))
    draw = jax.jit(draw_hidden, static_argnums=3)
    one = ~np.asarray(draw(jax.random.key(0), jnp.arange(4000), weights, 0.75))
    assert np.all(one.sum(axis=1) == 1)
    np.testing.assert_allclose(one.mean(axis=0), [0, 1 / 8, 2 / 8, 5 / 8], atol=0.03)
    two = ~np.asarray(draw(jax.random.key(1), jnp.arange(4000), weights, 0.5))
    # The first drawn has 1/8, 2/8, 5/8. Then 2 after 5: 5/8 * 2/3; 5 after 2: 2/8 * 5/6; and so on.
    both = [5 / 8 * 2 / 3 + 2 / 8 * 5 / 6, 5 / 8 * 1 / 3 + 1 / 8 * 5 / 7, 2 / 8 * 1 / 6 + 1 / 8 * 2 / 7]
    pairs = [two[:, 2] & two[:, 3], two[:, 1] & two[:, 3], two[:, 1] & two[:, 2]]
    np.testing.assert_allclose([pair.mean() for pair in pairs], both, atol=0.03)


def test_the_decoder_puts_each_patch_in_its_place_and_does_not_change_seen_ones():
    decoder = PromptingDecoder(dim=8, depth=2, heads=2, outputs=3, grid=(2, 2), prefix=1)
    seen, hidden = jnp.array([[1, 2]]), jnp.array([[0, 3]])
    tokens = np.random.default_rng(0).normal(size=(2, 1, 3, 4)).astype(np.float32)
    tokens[1, :, :2] = tokens[0, :, :2]  # the second seen patch, at place 2, differs
    variables = drawn_variables(decoder, tokens[0], seen, hidden)
    one, other = (np.asarray(decoder.apply(variables, x, seen, hidden))[0] for x in tokens)
    changed = np.abs(one - other).max(axis=-1) > 1e-6
    np.testing.assert_array_equal(changed, [True, False, True, True])  # place 1 is seen, and attends to nothing


def drawn_variables(module, *inputs):
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(vit=dict(pool="cls")), r"use model\.pool=\"norm_mean\""),
        (
            dict(loaded=teacher(class_token=False, pool="norm_mean"), by_attention=True),
            "by_attention=True needs a teacher with a class token",
        ),
        (dict(loaded=teacher(pool="mean")), "has no features of places"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_missing_teacher_is_refused():
    with pytest.raises(ValueError, match=r"needs a teacher; say --config\.method\.teacher=PATH"):
        METHODS["feature_targets"](make().backbone, RUN)
