import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run, _tiles
from ssl_jax.methods.cpc import Context, Predictor


def make(batch_norm="layer", **options):
    run = Run(batch_size=3, steps=20, steps_per_epoch=6, num_images=30)
    options = {"grid": 4, "patch": 4, "offsets": (1, 2), "target_dim": 5, "width": 6, "depth": 2, "flip": 0.0} | options
    return METHODS["cpc"](models.create("resnet8", width=0.25, batch_norm=batch_norm), run, **options)


def batch(channels=1):
    view = jax.random.normal(jax.random.key(0), (3, 16, 16, channels))
    return {"views": (view,), "index": jnp.array([5, 1, 20])}


@pytest.mark.slow
def test_loss_finds_each_patch_below_among_all_patches_of_the_batch():
    method = make(directions=1, scale=0.5)
    params, state = method.init(jax.random.key(1), batch()["views"][0][:1])
    loss, (_, metrics) = method.loss(params, state, batch(), jax.random.key(2))
    z = np.zeros((3, 4, 4, 16), np.float32)
    for row in range(4):
        for column in range(4):  # patches of 4 pixels in 16: every 4
            one = batch()["views"][0][:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            z[:, row, column] = method.backbone.apply({"params": params["backbone"]}, one)
    layers = jax.tree.map(np.asarray, params["predictor"])
    targets = z @ layers["target"]["kernel"] + layers["target"]["bias"]
    context = np.asarray(Context(6, 2).apply({"params": params["predictor"]["context_0"]}, jnp.asarray(z)))
    terms = []
    for k in (1, 2):
        layer = layers[f"predict_0_{k}"]
        scores = 0.5 * (context @ layer["kernel"] + layer["bias"]) @ targets.reshape(-1, 5).T  # [3, 4, 4, 3 * 4 * 4]
        log_p = scores - np.log(np.sum(np.exp(scores), axis=-1, keepdims=True))
        log_p = log_p.reshape(3, 4, 4, 3, 4, 4)
        terms.append(-np.mean([log_p[b, i, j, b, i + k, j] for b in range(3) for i in range(4 - k) for j in range(4)]))
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(metrics["embeddings"], [z[:, :2].mean((1, 2)), z[:, 2:].mean((1, 2))], atol=1e-6)


def predictions_and_grid(directions):
    module = Predictor(offsets=(1,), directions=directions, target_dim=5, width=6, depth=3, scale=1.0)
    z = jax.random.normal(jax.random.key(0), (1, 5, 5, 7))
    variables = module.init(jax.random.key(1), z)
    return lambda z: module.apply(variables, z), z


@pytest.mark.parametrize("turns, seen", [(0, np.s_[:3]), (1, np.s_[:, 2:]), (2, np.s_[2:]), (3, np.s_[:, :3])])
def test_contexts_see_their_own_row_and_those_behind_it_alone(turns, seen):
    """The third row's, in each direction: of the turned grid's rows 0..2."""
    predict, z = predictions_and_grid(directions=4)
    jacobian = jax.jacobian(lambda z: predict(z)[turns][1][1][0, 2])(z)  # of the prediction for the row after it
    influence = np.abs(jacobian).sum(axis=(0, 1, 2, 5))
    allowed = np.zeros((5, 5), bool)
    allowed[seen] = True
    assert np.all(influence[~allowed] == 0)
    assert np.all(influence[allowed] > 0)  # three blocks reach three columns, and rows, far


def test_targets_are_turned_as_the_contexts_are():
    predict, z = predictions_and_grid(directions=4)
    plain = predict(z)[0][0]
    for turns, (targets, _) in enumerate(predict(z)):
        np.testing.assert_array_equal(targets, jnp.rot90(plain, turns, axes=(1, 2)))


def test_no_patch_tells_the_backbone_about_another():
    method = make()
    params, state = method.init(jax.random.key(1), batch()["views"][0][:1])
    patches = _tiles.as_images(_tiles.overlapping(batch()["views"][0], grid=4, side=4))

    def embed(x):
        return method.backbone.apply({"params": params["backbone"]}, x, train=True)

    changed = embed(patches.at[7].set(9.0)) - embed(patches)
    assert np.any(changed[7]) and not np.any(np.delete(changed, 7, axis=0))
    assert not jax.tree.leaves(state)  # no running statistics either


@pytest.mark.parametrize("kind", ["sync", "local", "grouped"])
def test_batch_norm_is_refused(kind):
    with pytest.raises(ValueError, match=f"batch_norm='{kind}' tells .*; use model.batch_norm=\"layer\""):
        make(batch_norm=kind)


def test_patches_are_cropped_mirrored_and_stripped_of_channels_each_by_itself():
    view, index = batch(channels=3)["views"][0], batch()["index"]
    rng = jax.random.key(3)
    whole = np.asarray(make().patches(rng, index, view))
    np.testing.assert_array_equal(whole, _tiles.overlapping(view, grid=4, side=4))

    cropped = np.asarray(make(crop=3).patches(rng, index, view))
    windows = np.lib.stride_tricks.sliding_window_view(whole, (3, 3), axis=(2, 3)).transpose(0, 1, 2, 3, 5, 6, 4)
    same = np.all(windows == cropped[:, :, None, None], axis=(4, 5, 6))  # [batch, patches, top, left]
    assert np.all(same.sum(axis=(2, 3)) == 1)
    assert np.all(same.sum(axis=(0, 1)) > 0)  # every place occurs

    flipped = np.asarray(make(flip=0.5).patches(rng, index, view))
    mirrored = np.all(flipped == whole[:, :, :, ::-1], axis=(2, 3, 4))
    assert np.all(mirrored | np.all(flipped == whole, axis=(2, 3, 4))) and 12 < mirrored.sum() < 36  # of 48

    left = np.asarray(make(drop_channels=1.0).patches(rng, index, view))
    kept = np.all(left == whole, axis=(2, 3))
    assert np.all(kept.sum(axis=-1) == 1) and np.all(kept.any(axis=(0, 1)))
    assert np.all(left[~np.broadcast_to(kept[:, :, None, None], left.shape)] == 0)

    order = np.array([2, 0])
    again = make(crop=3, flip=0.5).patches(rng, index[order], view[order])
    np.testing.assert_array_equal(again, make(crop=3, flip=0.5).patches(rng, index, view)[order])


def test_chance_level_is_the_loss_of_equal_embeddings():
    method = make(scale=0.1)
    params, state = method.init(jax.random.key(1), batch()["views"][0][:1])
    params["predictor"] = jax.tree.map(jnp.zeros_like, params["predictor"])
    loss, _ = method.loss(params, state, batch(), jax.random.key(2))
    np.testing.assert_allclose(loss, method.chance_level, rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"offsets": (1, 4)}, r"offsets must be in 1..3, of a grid of 4 rows, got \(1, 4\)"),
        ({"offsets": ()}, r"offsets must be in 1..3, of a grid of 4 rows, got \(\)"),
        ({"directions": 5}, "directions must be in 1..4, got 5"),
        ({"crop": 5}, "crop must be in 0..patch=4, got 5"),
        ({"scale": 0.0}, "scale must be above 0, got 0.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
