import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1)).astype(np.float32))
POSITIONS = 16  # resnet8's first stage halves 8 pixels once: a map of 4x4


def make(model=(), **options):
    schedule = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=40)
    options = dict(projector=(12, 6), queue_size=24, temperature=0.3, dense_weight=0.3) | options
    return METHODS["densecl"](models.create("resnet8", stages=(1,), **dict(model)), schedule, **options)


@functools.cache
def first():
    """Params, and a state whose teacher is another network."""
    init = jax.jit(make().init)
    (params, state), (other, _) = (jax.device_get(init(jax.random.key(seed), VIEWS[0])) for seed in (1, 5))
    return params, {**state, "teacher": {**state["teacher"], "params": other}}


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def apply(method, params, batch_stats, x):
    """(projections of the pooled features, feature map, its projections); the maps [batch, positions, channels]"""
    variables = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
    features, _ = method.backbone.apply(variables, x, train=True, mutable=["batch_stats"], method="feature_map")
    features = features.reshape(len(x), POSITIONS, 16)

    def head(name, h):
        return method.networks[name].apply({"params": params[name]}, h)

    return head("projector", jnp.mean(features, axis=1)), features, head("dense_projector", features)


@functools.cache
def step():
    """((loss, output), the loss's gradient for the teacher), and what `apply` gives for queries and for keys."""
    method = make()

    @jax.jit
    def run(params, state, views):
        def loss(teacher):
            moved = {**state, "teacher": {**state["teacher"], "params": teacher}}
            output = method.loss(params, moved, {"views": views}, jax.random.key(2))
            return output.loss, output

        teacher = state["teacher"]
        queries = apply(method, params, state["batch_stats"], views[0])
        keys = apply(method, teacher["params"], teacher["batch_stats"], views[1])
        return jax.value_and_grad(loss, has_aux=True)(teacher["params"]), queries, keys

    return jax.device_get(run(*first(), VIEWS))


def test_loss_is_of_images_and_of_positions_each_with_its_own_queue():
    _, state = first()
    ((loss, output), _), (q, q_features, q_dense), (k, k_features, k_dense) = step()
    queue, dense_queue = (np.asarray(state[name]["rows"], np.float64) for name in ("queue", "dense_queue"))

    def contrast(query, key, negatives):
        logits = np.array([query @ key, *negatives @ query]) / 0.3
        return np.log(np.sum(np.exp(logits))) - logits[0]

    image = [contrast(*pair, queue) for pair in zip(unit(q), unit(k), strict=True)]
    dense, matches = [], []
    for i in range(8):
        for s in range(POSITIONS):
            match = np.argmax(unit(k_features)[i] @ unit(q_features)[i, s])
            dense.append(contrast(unit(q_dense)[i, s], unit(k_dense)[i, match], dense_queue))
            matches.append(match)
    assert len(set(matches)) > 1
    np.testing.assert_allclose(output.metrics["image_loss"], np.mean(image), rtol=1e-4)
    np.testing.assert_allclose(output.metrics["dense_loss"], np.mean(dense), rtol=1e-4)
    np.testing.assert_allclose(loss, 0.7 * np.mean(image) + 0.3 * np.mean(dense), rtol=1e-4)
    # Keys of both kinds join their queues once they have been compared; a dense one is its map's mean.
    for name, keys in (("queue", unit(k)), ("dense_queue", unit(np.mean(k_dense, axis=1)))):
        np.testing.assert_allclose(output.state[name]["rows"][:8], keys, atol=1e-5)
        np.testing.assert_array_equal(output.state[name]["rows"][8:], state[name]["rows"][8:])


def test_shuffling_changes_which_keys_share_their_batch_statistics():
    """With one group the order is nothing: the reference above is not shuffled, the method is."""
    assert make().shuffle
    grouped = {"batch_norm": "grouped", "batch_norm_groups": 4}.items()

    @jax.jit
    def run(params, state, views):
        methods = make(model=grouped), make(model=grouped, shuffle=False)
        return [m.loss(params, state, {"views": views}, jax.random.key(2)).embeddings[1] for m in methods]

    shuffled, in_order = jax.device_get(run(*first(), VIEWS))
    assert np.max(np.abs(shuffled - in_order)) > 1e-3


def test_two_projectors_of_one_shape_and_two_queues():
    params, state = first()
    expected = {
        "Dense_0": {"kernel": (16, 12), "bias": (12,)},
        "Dense_1": {"kernel": (12, 6), "bias": (6,)},
    }
    for part in (params, state["teacher"]["params"]):
        for head in ("projector", "dense_projector"):
            assert jax.tree.map(jnp.shape, part[head]) == expected
    assert np.all(params["projector"]["Dense_0"]["kernel"] != params["dense_projector"]["Dense_0"]["kernel"])
    assert state["queue"]["rows"].shape == state["dense_queue"]["rows"].shape == (24, 6)
    assert np.all(state["queue"]["rows"] != state["dense_queue"]["rows"])


def test_no_gradient_reaches_the_teacher():
    (_, gradient), *_ = step()
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0.0)


def test_the_teacher_moves_with_a_constant_decay():
    params, state = first()
    update = jax.jit(make(decay=0.9).update)
    for number in (1, 100):
        moved = update(params, state, number)["teacher"]["params"]
        expected = jax.tree.map(lambda t, p: 0.9 * t + 0.1 * p, state["teacher"]["params"], params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, expected)


def test_chance_level_is_the_loss_of_equal_embeddings():
    np.testing.assert_allclose(make().chance_level, np.log(25))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"dense_weight": 1.5}, "dense_weight must be in"),
        ({"queue_size": 20}, "queue_size=20 is not a multiple of batch_size=8; use 16"),
        ({"queue_size": 48}, "queue_size=48 is longer than the data set of 40 images"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_refuses_a_network_without_a_feature_map():
    vit = models.create("vit_tiny_patch16_224", dim=24, depth=1, heads=2, patch_size=8, image_size=16)
    with pytest.raises(ValueError, match="DenseCL needs a feature map, which ViT does not have; use a ResNet"):
        METHODS["densecl"](vit, make().schedule, queue_size=24)


def test_refuses_a_network_that_normalizes_after_the_mean():
    convnext = models.create("convnext_atto", stages=(1,), base_width=8)
    with pytest.raises(ValueError, match=r'ConvNeXt of pool="mean" has other features.*use model.pool="norm_mean"'):
        METHODS["densecl"](convnext, make().schedule, queue_size=24)


def test_refuses_a_network_whose_features_come_after_further_layers():
    with pytest.raises(ValueError, match=r"features are taken after 1 further layers; use model.head_layers=0"):
        make({"head_layers": 1})
