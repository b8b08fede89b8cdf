import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

RUN = Schedule(batch_size=6, steps=100, steps_per_epoch=10, num_images=60)
PATCHES, CLUSTERS = 16, 5
VIT = dict(dim=16, depth=1, heads=2, patch_size=4, image_size=16, positions="rope", registers=2)
X = np.random.default_rng(0).normal(size=(6, 16, 16, 1)).astype(np.float32)
MASK = np.random.default_rng(1).permuted(np.tile(np.arange(PATCHES) < 12, (6, 1)), axis=1)  # 12 of 16 each
BATCH = {"views": (X,), "masks": (MASK,), "index": np.arange(6)}


def make(vit=None, **options):
    backbone = models.create(
        "vit_tiny_patch16_224", **{**VIT, "class_token": False, "pool": "norm_mean", **(vit or {})}
    )
    options = {"mask_ratio": 0.75, "predicted": 0.25, "clusters": CLUSTERS, "predictor_depth": 2, **options}
    return METHODS["capi"](backbone, RUN, **options)


@functools.cache
def step():
    """Of BATCH: (params, state, what a step makes of it), by the name of what clusters share out."""
    method = make()
    params, state = drawn.draw(method, X[:1])

    @jax.jit
    def run(params, state, batch, rng):
        def loss(params, teacher, by_place):
            output = make(by_place=by_place).loss(params, {**state, "teacher": teacher}, batch, rng)
            return output.loss, output

        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        rng_places, _ = jax.random.split(rng)
        hidden = method.draw_places(rng_places, batch["index"], batch["masks"][0])
        (x,), (mask,) = batch["views"], batch["masks"]
        teacher = {"params": state["teacher"]["params"]["backbone"]}
        return {
            "places": gradient(params, state["teacher"], True),
            "all": loss(params, state["teacher"], False)[1],
            "hidden": hidden,
            "scores": method.predict(params, x, mask, hidden, rng, None)[0],
            "teacher": method.backbone.apply(teacher, x, tokens=True)[:, method.backbone.num_prefix :],
        }

    return params, state, jax.device_get(run(params, state, BATCH, jax.random.key(3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def assigned(scores):
    """The authors' loop on the matrix [rows, clusters] itself."""
    q = np.exp((scores - scores.max()) / 0.06)
    for _ in range(3):
        q /= q.sum(0, keepdims=True)
        q /= q.sum(1, keepdims=True)
    return q


def cross_entropy(targets, scores):
    return -np.mean(np.sum(targets * np.log(softmax(scores / 0.12)), axis=-1))


def cluster_scores(params, found):
    found = np.asarray(found, np.float64)
    unit = found / np.linalg.norm(found, axis=-1, keepdims=True)
    return unit @ params["clustering"]["kernel"] + params["clustering"]["bias"]


@pytest.mark.parametrize("kind", ["places", "all"])
def test_clusters_share_out_the_patches_of_each_place_or_of_all_and_both_losses_add_up(kind):
    params, _, made = step()
    output = made["places"][0][1] if kind == "places" else made["all"]
    scores = cluster_scores(params, made["teacher"])
    if kind == "places":
        shares = np.stack([assigned(scores[:, place]) for place in range(PATCHES)], axis=1)
    else:
        shares = assigned(scores.reshape(-1, CLUSTERS)).reshape(scores.shape)
    np.testing.assert_allclose(output.metrics["cluster_loss"], cross_entropy(shares, scores), rtol=1e-4)
    targets = np.take_along_axis(shares, made["hidden"][..., None], axis=1)
    np.testing.assert_allclose(output.metrics["patch_loss"], cross_entropy(targets, made["scores"]), rtol=1e-4)
    np.testing.assert_allclose(output.loss, output.metrics["patch_loss"] + output.metrics["cluster_loss"], rtol=1e-5)


def test_predicted_places_are_hidden_ones_of_which_none_is_twice():
    hidden = step()[-1]["hidden"]
    assert hidden.shape == (6, 3)  # a quarter of 12
    assert all(len(set(row)) == 3 for row in hidden) and np.take_along_axis(MASK, hidden, axis=1).all()
    assert len({tuple(sorted(row)) for row in hidden}) > 1
    fewest = make(predicted=0.01).draw_places
    assert jax.eval_shape(fewest, jax.random.key(0), jnp.arange(6), jnp.asarray(MASK)).shape == (6, 1)


def test_the_clusters_are_trained_by_their_own_loss_and_the_teacher_by_none():
    params, _, made = step()
    _, (gradient, of_teacher) = made["places"]
    assert all(np.all(g == 0) for g in jax.tree.leaves(of_teacher["params"]))
    norms = {jax.tree_util.keystr(path): np.abs(g).max() for path, g in jax.tree_util.tree_leaves_with_path(gradient)}
    assert min(norms.values()) > 0, min(norms, key=norms.get)
    # That of the biases is the mean of softmax - share, both over temperature.
    scores = cluster_scores(params, made["teacher"])
    shares = np.stack([assigned(scores[:, place]) for place in range(PATCHES)], axis=1)
    expected = np.mean(softmax(scores / 0.12) - shares, axis=(0, 1)) / 0.12
    np.testing.assert_allclose(gradient["clustering"]["bias"], expected, rtol=1e-3, atol=1e-5)


def test_a_prediction_depends_on_what_is_seen_and_on_its_own_place_alone():
    method, (params, *_) = make(), step()
    hidden = np.argsort(~MASK, axis=1, kind="stable")[:, :3]
    run = jax.jit(lambda params, x, mask, hidden: method.predict(params, x, mask, hidden, jax.random.key(0), None)[0])
    predict = lambda x, hidden: run(params, x, MASK, hidden)  # noqa: E731
    scores = np.asarray(predict(X, hidden))
    assert np.abs(scores[:, 0] - scores[:, 1]).max() > 1e-3  # places differ
    unseen = MASK.reshape(6, 4, 4).repeat(4, axis=1).repeat(4, axis=2)[..., None]
    np.testing.assert_allclose(predict(np.where(unseen, np.float32(9.0), X), hidden), scores, atol=1e-5)
    assert np.abs(predict(np.where(unseen, X, np.float32(9.0)), hidden) - scores).max() > 1e-2
    others = np.concatenate([hidden[:, :1], hidden[:, :1], hidden[:, :1]], axis=1)
    np.testing.assert_allclose(predict(X, others)[:, 2], scores[:, 0], atol=1e-5)


@pytest.mark.parametrize("step_, decay", [(0, 1.0), (10, 0.75), (20, 0.5), (70, 1.0 - 0.25)])
def test_the_teachers_decay_falls_to_its_value_and_rises_by_half_a_cosine_of_a_longer_run(step_, decay):
    method = make(decay=0.5, decay_warmup_steps=20, decay_stretch=1.2)
    params, state, _ = step()
    kernel = lambda tree: tree["backbone"]["patch_embed"]["proj"]["kernel"]  # noqa: E731
    moved = kernel(method.update(params, state, jnp.array(step_))["teacher"]["params"])
    expected = decay * kernel(state["teacher"]["params"]) + (1 - decay) * kernel(params)
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "vit, options, message",
    [
        (dict(pool="cls", class_token=True), {}, r"use model\.pool=\"norm_mean\""),
        ({}, dict(predictor_dim=12), "need a width that is a multiple of 8; got predictor_dim=12"),
        ({}, dict(predicted=0.0), r"predicted must be in \(0, 1\], got 0\.0"),
    ],
)
def test_refusals(vit, options, message):
    with pytest.raises(ValueError, match=message):
        make(vit, **options)
