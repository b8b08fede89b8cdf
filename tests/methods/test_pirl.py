import functools

import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.toolkit import tiling

NUM_IMAGES = 40
INDEX = np.array([3, 39, 0, 17])
IMAGES, PATCHES = np.random.default_rng(0).normal(size=(2, 4, 12, 12, 1)).astype(np.float32)
BATCH = {"views": (IMAGES, PATCHES), "index": INDEX}


def make(**options):
    schedule = Schedule(batch_size=4, steps=20, steps_per_epoch=6, num_images=NUM_IMAGES)
    options = {"projector": (8,), "negatives": 0, "temperature": 0.1, "grid": 2, "tile": 5} | options
    return METHODS["pirl"](models.create("resnet8", stages=(1,)), schedule, **options)


@functools.cache
def start():
    return jax.device_get(make().init(jax.random.key(1), IMAGES[:1]))


def shapes(**options):
    """Those of (params, state)."""
    return jax.eval_shape(make(**options).init, jax.random.key(1), IMAGES[:1])


def fill(tree, seed=3):
    """Numbers of these shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), tree)


def trained(module, params, stats, x):
    return module.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])


def unit(z):
    z = np.asarray(z, np.float64)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def linear(x, layer):
    return np.asarray(x, np.float64) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def cross_entropy(z, bank, index):
    scores = z @ np.asarray(bank, np.float64).T / 0.1
    return np.mean(np.log(np.sum(np.exp(scores), axis=1)) - scores[np.arange(len(z)), index])


def test_image_and_shuffled_tiles_are_both_found_in_the_bank():
    method = make(image_weight=0.2)
    params, state = start()

    @jax.jit
    def run(params, state, batch, rng):
        stats = state["batch_stats"]["backbone"]
        image, updated = trained(method.backbone, params["backbone"], stats, batch["views"][0])
        rng_cut, rng_shuffle = jax.random.split(jax.random.split(rng, 4)[0])
        tiles = tiling.cut(rng_cut, batch["index"], batch["views"][1], grid=2, side=5)

        def permute(index_and_tiles):
            index, tiles = index_and_tiles
            return jax.random.permutation(jax.random.fold_in(rng_shuffle, index), tiles)

        tiles = jax.lax.map(permute, (batch["index"], tiles))
        parts, _ = trained(
            method.backbone, params["backbone"], updated["batch_stats"], tiles.reshape(-1, *tiles.shape[2:])
        )
        return method.loss(params, state, batch, rng), image, parts

    output, image, parts = jax.device_get(run(params, state, BATCH, jax.random.key(2)))
    z_image = unit(linear(image, params["projector"]["Dense_0"]))
    head = params["transformed_projector"]
    z_tiles = unit(linear(linear(parts, head["head"]["Dense_0"]).reshape(4, -1), head["join"]))

    np.testing.assert_allclose(output.embeddings, [z_image, z_tiles], atol=1e-5)
    both = [cross_entropy(z, state["bank"], INDEX) for z in (z_image, z_tiles)]
    np.testing.assert_allclose(output.loss, 0.2 * both[0] + 0.8 * both[1], rtol=1e-5)
    # The image alone moves the bank.
    moved = unit(0.5 * state["bank"][INDEX] + 0.5 * z_image)
    np.testing.assert_allclose(output.state["bank"][INDEX], moved, atol=1e-5)


def test_rotation_turns_each_image_by_quarters_of_its_own():
    method = make(pretext="rotation")
    images, some = np.random.default_rng(0).normal(size=(64, 5, 5, 2)).astype(np.float32), np.array([40, 3])

    @jax.jit
    def run(rng, index, images):
        return method.transform(rng, index, images), method.transform(rng, index[some], images[some])

    turned, again = jax.device_get(run(jax.random.key(1), np.arange(64), images))
    quarters = [
        next(k for k in range(4) if np.array_equal(np.rot90(image, k), new))
        for image, new in zip(images, turned, strict=True)
    ]
    assert np.all(np.bincount(quarters, minlength=4) > 4)  # of 16 each
    np.testing.assert_array_equal(again, turned[some])
    with pytest.raises(ValueError, match="rotation needs square views, got 5x4 pixels"):
        jax.eval_shape(method.transform, jax.random.key(1), np.arange(64), images[:, :, :4])


def test_rotated_copy_has_a_head_of_its_own_like_the_images():
    method = make(pretext="rotation")
    params, _ = shapes(pretext="rotation")
    assert params["transformed_projector"] == params["projector"]
    params, state = start()
    params = {**params, "transformed_projector": fill(params["projector"])}

    @jax.jit
    def run(params, state, batch, rng):
        turned = method.transform(jax.random.split(rng, 4)[0], batch["index"], batch["views"][1])
        h, _ = trained(method.backbone, params["backbone"], state["batch_stats"]["backbone"], turned)
        return method.loss(params, state, batch, rng).embeddings, h

    embeddings, h = jax.device_get(run(params, state, BATCH, jax.random.key(2)))
    expected = unit(linear(h, params["transformed_projector"]["Dense_0"]))
    np.testing.assert_allclose(embeddings[1], expected, atol=1e-5)


@pytest.mark.parametrize(
    "projector, layers", [((8,), {"Dense_0": (16, 8)}), ((12, 8), {"Dense_0": (16, 12), "Dense_1": (12, 8)})]
)
def test_heads_are_linear_or_have_one_hidden_layer_without_batch_norm(projector, layers):
    params, state = shapes(projector=projector)
    assert {name: layer["kernel"].shape for name, layer in params["projector"].items()} == layers
    head = params["transformed_projector"]
    assert {name: layer["kernel"].shape for name, layer in head["head"].items()} == layers
    assert head["join"]["kernel"].shape == (4 * 8, 8)
    assert not state["batch_stats"]["projector"]
    # A hidden layer's ReLU follows the last layer of each tile, too.
    module, head = make(projector=projector).transformed_projector, fill(head)
    h = np.random.default_rng(3).normal(size=(2, 4, 16)).astype(np.float32)
    z = h
    for layer in layers:
        z = linear(z, head["head"][layer])
        z = np.maximum(z, 0) if len(layers) > 1 else z
    expected = linear(z.reshape(2, -1), head["join"])
    np.testing.assert_allclose(
        module.apply({"params": head}, h), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


def test_both_losses_have_one_constant_of_the_first_batch():
    params, state = start()
    assert np.isneginf(state["log_z"])
    step = jax.jit(make(negatives=30, image_weight=0.2).loss)
    first = step(params, state, BATCH, jax.random.key(2))
    log_z = first.state["log_z"]
    assert np.isfinite(log_z)
    image, transformed = (float(first.metrics[name]) for name in ("loss_image", "loss_transformed"))
    np.testing.assert_allclose(first.loss, 0.2 * image + 0.8 * transformed, rtol=1e-6)
    # Once it is known, it stays, for the tiles too: the same step from there has the same losses.
    second = step(params, {**state, "log_z": log_z}, BATCH, jax.random.key(2))
    for name in ("loss_image", "loss_transformed"):
        np.testing.assert_allclose(second.metrics[name], first.metrics[name], rtol=1e-6)
    assert second.state["log_z"] == log_z
    # It is that of the transformed images' scores, as VISSL has it, whatever the images are.
    other = {**BATCH, "views": (3 * IMAGES[::-1], PATCHES)}
    third = step(params, state, other, jax.random.key(2))
    assert third.state["log_z"] == log_z and third.metrics["loss_image"] != first.metrics["loss_image"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pretext": "colour"}, "pretext must be one of jigsaw, rotation, got 'colour'"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"image_weight": 1.5}, "image_weight must be in 0..1, got 1.5"),
        ({"tile": 0}, "tile must be at least 1, got 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_tiles_that_do_not_fit_their_cells_are_refused():
    with pytest.raises(ValueError, match="no room for tiles of 9 pixels 0 apart; use views of 18 pixels"):
        jax.eval_shape(make(tile=9).loss, *start(), BATCH, jax.random.key(2))
