import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run, _tiles

NUM_IMAGES = 40
INDEX = np.array([3, 39, 0, 17])


def make(**options):
    run = Run(batch_size=4, steps=20, steps_per_epoch=6, num_images=NUM_IMAGES)
    options = {"projector": (8,), "negatives": 0, "temperature": 0.1, "grid": 2, "tile": 6} | options
    return METHODS["pirl"](models.create("resnet8", stages=(1,)), run, **options)


def start(method):
    images, patches = jax.random.normal(jax.random.key(0), (2, 4, 16, 16, 1))
    params, state = method.init(jax.random.key(1), images[:1])
    return params, state, {"views": (images, patches), "index": jnp.asarray(INDEX)}


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


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_image_and_shuffled_tiles_are_both_found_in_the_bank(weight):
    method = make(image_weight=weight)
    params, state, batch = start(method)
    rng = jax.random.key(2)
    loss, (new_state, metrics) = method.loss(params, state, batch, rng)

    h, updated = trained(method.backbone, params["backbone"], state["batch_stats"]["backbone"], batch["views"][0])
    z_image = unit(linear(h, params["projector"]["Dense_0"]))
    rng_cut, rng_shuffle = jax.random.split(jax.random.split(rng, 4)[0])
    tiles = _tiles.cut(rng_cut, batch["index"], batch["views"][1], grid=2, side=6)
    tiles = np.stack(
        [jax.random.permutation(jax.random.fold_in(rng_shuffle, i), t) for i, t in zip(INDEX, tiles, strict=True)]
    )
    h, _ = trained(method.backbone, params["backbone"], updated["batch_stats"], jnp.asarray(tiles.reshape(-1, 6, 6, 1)))
    head = params["transformed_projector"]
    z_tiles = unit(linear(linear(h, head["head"]["Dense_0"]).reshape(4, -1), head["join"]))

    np.testing.assert_allclose(metrics["embeddings"], [z_image, z_tiles], atol=1e-5)
    both = [cross_entropy(z, state["bank"], INDEX) for z in (z_image, z_tiles)]
    np.testing.assert_allclose(loss, weight * both[0] + (1 - weight) * both[1], rtol=1e-5)
    # The image alone moves the bank.
    np.testing.assert_allclose(
        new_state["bank"][INDEX], unit(0.5 * np.asarray(state["bank"])[INDEX] + 0.5 * z_image), atol=1e-5
    )


def test_rotation_turns_each_image_by_quarters_of_its_own():
    method = make(pretext="rotation")
    images = jax.random.normal(jax.random.key(0), (64, 5, 5, 2))
    turned = np.asarray(method.transform(jax.random.key(1), jnp.arange(64), images))
    quarters = [
        next(k for k in range(4) if np.array_equal(np.rot90(image, k), new))
        for image, new in zip(np.asarray(images), turned, strict=True)
    ]
    assert np.all(np.bincount(quarters, minlength=4) > 4)  # of 16 each
    some = np.array([40, 3])
    again = method.transform(jax.random.key(1), jnp.asarray(some), images[some])
    np.testing.assert_array_equal(again, turned[some])
    with pytest.raises(ValueError, match="rotation needs square views, got 5x4 pixels"):
        method.transform(jax.random.key(1), jnp.arange(1), jnp.zeros((1, 5, 4, 1)))


def test_rotated_copy_has_a_head_of_its_own_like_the_images():
    method = make(pretext="rotation")
    params, state, batch = start(method)
    assert jax.tree.map(jnp.shape, params["transformed_projector"]) == jax.tree.map(jnp.shape, params["projector"])
    _, (_, metrics) = method.loss(params, state, batch, jax.random.key(2))
    turned = method.transform(jax.random.split(jax.random.key(2), 4)[0], batch["index"], batch["views"][1])
    h, _ = trained(method.backbone, params["backbone"], state["batch_stats"]["backbone"], turned)
    expected = unit(linear(h, params["transformed_projector"]["Dense_0"]))
    np.testing.assert_allclose(metrics["embeddings"][1], expected, atol=1e-5)


@pytest.mark.parametrize(
    "projector, layers", [((8,), {"Dense_0": (16, 8)}), ((12, 8), {"Dense_0": (16, 12), "Dense_1": (12, 8)})]
)
def test_heads_are_linear_or_have_one_hidden_layer_without_batch_norm(projector, layers):
    params, state, _ = start(make(projector=projector))
    assert {name: layer["kernel"].shape for name, layer in params["projector"].items()} == layers
    head = params["transformed_projector"]
    assert {name: layer["kernel"].shape for name, layer in head["head"].items()} == layers
    # A hidden layer's ReLU follows the last layer of each tile, too.
    module = make(projector=projector).transformed_projector
    h = jax.random.normal(jax.random.key(3), (2, 4, 16))
    z = np.asarray(h, np.float64)
    for layer in layers:
        z = linear(z, head["head"][layer])
        z = np.maximum(z, 0) if len(layers) > 1 else z
    np.testing.assert_allclose(
        module.apply({"params": head}, h), linear(z.reshape(2, -1), head["join"]), rtol=1e-4, atol=1e-5
    )
    assert head["join"]["kernel"].shape == (4 * 8, 8)
    assert not state["batch_stats"]["projector"]


def test_both_losses_have_one_constant_of_the_first_batch():
    method = make(negatives=30, image_weight=1.0)
    other = make(negatives=30, image_weight=0.0)
    params, state, batch = start(method)
    _, (first, metrics) = method.loss(params, state, batch, jax.random.key(2))
    assert np.isfinite(first["log_z"])
    # Once it is known, it stays, for the tiles too: the same step from there has the same losses.
    loss, (second, again) = other.loss(params, {**state, "log_z": first["log_z"]}, batch, jax.random.key(2))
    np.testing.assert_allclose(loss, metrics["loss_transformed"], rtol=1e-6)
    np.testing.assert_allclose(again["loss_image"], metrics["loss_image"], rtol=1e-6)
    assert second["log_z"] == first["log_z"]
    # It is that of the transformed images' scores, as VISSL has it, whatever the images are.
    images, patches = batch["views"]
    _, (third, _) = method.loss(params, state, {**batch, "views": (3 * images, patches)}, jax.random.key(2))
    assert third["log_z"] == first["log_z"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pretext": "colour"}, "pretext='colour' is unknown; it is one of jigsaw, rotation"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"image_weight": 1.5}, "image_weight must be in 0..1, got 1.5"),
        ({"tile": 0}, "tile must be above 0, got 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_tiles_that_do_not_fit_their_cells_are_refused():
    method = make(tile=9)
    params, state, batch = start(method)
    with pytest.raises(ValueError, match="no room for tiles of 9 pixels 0 apart; use views of 18 pixels"):
        method.loss(params, state, batch, jax.random.key(2))
