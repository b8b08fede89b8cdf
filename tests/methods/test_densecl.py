import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run

VIEWS = tuple(jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1)))
POSITIONS = 4  # resnet8 halves 16 pixels three times: a map of 2x2


def make(model=(), **options):
    run = Run(batch_size=8, steps=100, steps_per_epoch=10, num_images=40)
    options = dict(projector=(12, 6), queue_size=24, temperature=0.3, dense_weight=0.3) | options
    return METHODS["densecl"](models.create("resnet8", width=0.25, **dict(model)), run, **options)


def first(method):
    """Params, and a state whose teacher is another network."""
    params, state = method.init(jax.random.key(1), VIEWS[0])
    other, _ = method.init(jax.random.key(5), VIEWS[0])
    return params, {**state, "teacher": {**state["teacher"], "params": other}}


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def apply(method, params, batch_stats, x):
    """(projections of the pooled features, feature map, its projections); the maps [batch, positions, channels]"""
    variables = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
    features, _ = method.backbone.apply(variables, x, train=True, mutable=["batch_stats"], pool=False)
    features = features.reshape(len(x), POSITIONS, 16)

    def head(name, h):
        return method.networks[name].apply({"params": params[name]}, h)

    return head("projector", jnp.mean(features, axis=1)), features, head("dense_projector", features)


def test_loss_is_of_images_and_of_positions_each_with_its_own_queue():
    method = make()
    params, state = first(method)
    loss, (new_state, metrics) = method.loss(params, state, {"views": VIEWS}, jax.random.key(2))
    q, q_features, q_dense = apply(method, params, state["batch_stats"], VIEWS[0])
    k, k_features, k_dense = apply(method, state["teacher"]["params"], state["teacher"]["batch_stats"], VIEWS[1])
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
    np.testing.assert_allclose(metrics["image_loss"], np.mean(image), rtol=1e-4)
    np.testing.assert_allclose(metrics["dense_loss"], np.mean(dense), rtol=1e-4)
    np.testing.assert_allclose(loss, 0.7 * np.mean(image) + 0.3 * np.mean(dense), rtol=1e-4)
    # Keys of both kinds join their queues once they have been compared; a dense one is its map's mean.
    for name, keys in (("queue", unit(k)), ("dense_queue", unit(np.mean(k_dense, axis=1)))):
        np.testing.assert_allclose(new_state[name]["rows"][:8], keys, atol=1e-5)
        np.testing.assert_array_equal(new_state[name]["rows"][8:], state[name]["rows"][8:])


def test_shuffling_changes_which_keys_share_their_batch_statistics():
    batch = {"views": VIEWS}

    def keys(**options):
        method = make(**options)
        params, state = first(method)
        return method.loss(params, state, batch, jax.random.key(2))[1][1]["embeddings"][1]

    grouped = {"batch_norm": "grouped", "batch_norm_groups": 4}.items()
    assert np.max(np.abs(keys(model=grouped) - keys(model=grouped, shuffle=False))) > 1e-3
    np.testing.assert_allclose(keys(), keys(shuffle=False), atol=1e-4)  # one group: the order is nothing


def test_two_projectors_of_one_shape_and_two_queues():
    params, state = make().init(jax.random.key(0), VIEWS[0])
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
    method = make()
    params, state = first(method)

    def loss(teacher):
        moved = {**state, "teacher": {**state["teacher"], "params": teacher}}
        return method.loss(params, moved, {"views": VIEWS}, jax.random.key(2))[0]

    for leaf in jax.tree.leaves(jax.grad(loss)(state["teacher"]["params"])):
        np.testing.assert_array_equal(leaf, 0.0)


def test_the_teacher_moves_with_a_constant_decay():
    method = make(decay=0.9)
    params, state = method.init(jax.random.key(0), VIEWS[0])
    for step in (1, 100):
        moved = method.update(jax.tree.map(lambda p: p + 1.0, params), state, step)["teacher"]["params"]
        change = jax.tree.map(lambda new, old: new - old, moved, state["teacher"]["params"])
        for leaf in jax.tree.leaves(change):
            np.testing.assert_allclose(leaf, 0.1, atol=1e-6)


def test_chance_level_is_the_loss_of_equal_embeddings():
    np.testing.assert_allclose(make().chance_level, np.log(25))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"dense_weight": 1.5}, "dense_weight must be in"),
        ({"queue_size": 20}, "queue_size=20 is no multiple of batch_size=8; use 16"),
        ({"queue_size": 48}, "queue_size=48 is longer than the data set of 40 images"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_refuses_a_network_without_a_feature_map():
    vit = models.create("vit_tiny_patch16_224", dim=24, depth=1, heads=2, patch_size=8, image_size=16)
    with pytest.raises(ValueError, match="densecl needs a feature map, which ViT has not; use a ResNet"):
        METHODS["densecl"](vit, make().run, queue_size=24)
