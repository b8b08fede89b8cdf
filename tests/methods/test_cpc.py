import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.cpc import Context, Predictor
from ssl_jax.methods.toolkit import tiling
from tests.methods import drawn

INDEX = np.array([5, 1, 20])
X = np.random.default_rng(0).normal(size=(3, 16, 16, 1)).astype(np.float32)
# Patches of 4 pixels in 16: every 4. [batch, rows, columns, 4, 4, 1]
PATCHES = X.reshape(3, 4, 4, 4, 4, 1).swapaxes(2, 3)


def make(batch_norm="layer", **options):
    run = Schedule(batch_size=3, steps=20, steps_per_epoch=6, num_images=30)
    options = {"grid": 4, "patch": 4, "offsets": (1, 2), "target_dim": 5, "width": 6, "depth": 2, "flip": 0.0} | options
    return METHODS["cpc"](models.create("resnet8", stages=(1,), batch_norm=batch_norm), run, **options)


@functools.cache
def setup():
    """(method, params, run: params -> (the output, embeddings of the patches, contexts in both directions))"""
    method = make(directions=2, scale=0.5)
    params, state = drawn.draw(method, X[:1])
    assert not jax.tree.leaves(state)  # no running statistics

    @jax.jit
    def run(params, batch, rng, patches):
        output = method.loss(params, state, batch, rng)
        z = method.backbone.apply({"params": params["backbone"]}, patches).reshape(3, 4, 4, 16)
        contexts = [
            Context(6, 2).apply({"params": params["predictor"][f"context_{turns}"]}, jnp.rot90(z, turns, axes=(1, 2)))
            for turns in range(2)
        ]
        return output, z, contexts

    args = {"views": (X,), "index": INDEX}, jax.random.key(2), PATCHES.reshape(48, 4, 4, 1)
    return method, params, lambda params: jax.device_get(run(params, *args))


def test_loss_finds_each_patch_below_among_all_patches_of_the_batch():
    _, params, run = setup()
    output, z, contexts = run(params)
    wide = lambda tree: jax.tree.map(np.float64, tree)  # noqa: E731
    z, contexts, layers = wide(z), wide(contexts), wide(params["predictor"])
    terms = []
    for turns in range(2):
        targets = np.rot90(z @ layers["target"]["kernel"] + layers["target"]["bias"], turns, axes=(1, 2))
        for k in (1, 2):
            layer = layers[f"predict_{turns}_{k}"]
            scores = 0.5 * (contexts[turns] @ layer["kernel"] + layer["bias"]) @ targets.reshape(-1, 5).T
            log_p = scores - np.log(np.sum(np.exp(scores), axis=-1, keepdims=True))
            log_p = log_p.reshape(3, 4, 4, 3, 4, 4)
            right = [log_p[b, i, j, b, i + k, j] for b in range(3) for i in range(4 - k) for j in range(4)]
            terms.append(-np.mean(right))
    np.testing.assert_allclose(output.loss, np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(output.embeddings, [z[:, :2].mean((1, 2)), z[:, 2:].mean((1, 2))], atol=1e-6)


def test_chance_level_is_the_loss_of_equal_embeddings():
    method, params, run = setup()
    zeros = jax.tree.map(np.zeros_like, params["predictor"])
    np.testing.assert_allclose(run({**params, "predictor": zeros})[0].loss, method.chance_level, rtol=1e-6)


@functools.cache
def predictions():
    """Of a grid in four directions: ([turns] targets, what the third row's prediction of the next depends on)"""
    module = Predictor(offsets=(1,), directions=4, target_dim=5, width=6, depth=3, scale=1.0)
    z = np.random.default_rng(0).normal(size=(1, 5, 5, 7)).astype(np.float32)

    def third_rows(z, variables):
        found = module.apply(variables, z)
        return jnp.stack([predicted[1][0, 2] for _, predicted in found]), [targets for targets, _ in found]

    jacobian, targets = jax.device_get(jax.jit(jax.jacrev(third_rows, has_aux=True))(z, drawn.draw(module, z)))
    return targets, np.abs(jacobian).sum(axis=(1, 2, 3, 6))


@pytest.mark.parametrize("turns, seen", [(0, np.s_[:3]), (1, np.s_[:, 2:]), (2, np.s_[2:]), (3, np.s_[:, :3])])
def test_contexts_see_their_own_row_and_those_behind_it_alone(turns, seen):
    """The third row's, in each direction: of the turned grid's rows 0..2."""
    influence = predictions()[1][turns]
    allowed = np.zeros((5, 5), bool)
    allowed[seen] = True
    assert np.all(influence[~allowed] == 0)
    assert np.all(influence[allowed] > 0)  # three blocks reach three columns, and rows, far


def test_targets_are_turned_as_the_contexts_are():
    found, _ = predictions()
    for turns, targets in enumerate(found):
        np.testing.assert_array_equal(targets, np.rot90(found[0], turns, axes=(1, 2)))


def test_no_patch_tells_the_backbone_about_another():
    method, params, _ = setup()
    patches = PATCHES.reshape(48, 4, 4, 1)
    other = patches.copy()
    other[7] = 9.0
    embed = jax.jit(lambda params, x: method.backbone.apply({"params": params}, x, train=True))
    changed = np.asarray(embed(params["backbone"], other)) - np.asarray(embed(params["backbone"], patches))
    assert np.any(changed[7]) and not np.any(np.delete(changed, 7, axis=0))


@pytest.mark.parametrize("kind", ["sync", "local", "grouped"])
def test_batch_norm_is_refused(kind):
    with pytest.raises(ValueError, match=f"batch_norm='{kind}' lets the patches .*; use model.batch_norm=\"layer\""):
        make(batch_norm=kind)


def test_patches_are_cropped_mirrored_and_stripped_of_channels_each_by_itself():
    view = np.random.default_rng(1).normal(size=(3, 16, 16, 3)).astype(np.float32)
    order = np.array([2, 0])

    @jax.jit
    def run(rng, index, view):
        both = make(crop=3, flip=0.5)
        return (
            tiling.overlapping(view, grid=4, side=4),
            *(make(**options).patches(rng, index, view) for options in ({}, {"crop": 3}, {"flip": 0.5})),
            make(drop_channels=1.0).patches(rng, index, view),
            both.patches(rng, index, view),
            both.patches(rng, index[order], view[order]),
        )

    tiles, whole, cropped, flipped, left, both, again = jax.device_get(run(jax.random.key(3), INDEX, view))
    np.testing.assert_array_equal(whole, tiles)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (3, 3), axis=(2, 3)).transpose(0, 1, 2, 3, 5, 6, 4)
    same = np.all(windows == cropped[:, :, None, None], axis=(4, 5, 6))  # [batch, patches, top, left]
    assert np.all(same.sum(axis=(2, 3)) == 1)
    assert np.all(same.sum(axis=(0, 1)) > 0)  # every place occurs

    mirrored = np.all(flipped == whole[:, :, :, ::-1], axis=(2, 3, 4))
    assert np.all(mirrored | np.all(flipped == whole, axis=(2, 3, 4))) and 12 < mirrored.sum() < 36  # of 48

    kept = np.all(left == whole, axis=(2, 3))
    assert np.all(kept.sum(axis=-1) == 1) and np.all(kept.any(axis=(0, 1)))
    assert np.all(left[~np.broadcast_to(kept[:, :, None, None], left.shape)] == 0)
    np.testing.assert_array_equal(again, both[order])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"offsets": (1, 4)}, r"offsets must be in 1..3, for a grid of 4 rows, got \(1, 4\)"),
        ({"offsets": ()}, r"offsets must be in 1..3, for a grid of 4 rows, got \(\)"),
        ({"directions": 5}, "directions must be in 1..4, got 5"),
        ({"crop": 5}, "crop must be in 0..patch=4, got 5"),
        ({"scale": 0.0}, "scale must be above 0, got 0.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
