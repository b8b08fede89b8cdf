import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.spark import Decoder, Densify
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
RNG = np.random.default_rng(0)
# of 2 x 3 squares
MASK = np.array([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 1]], bool)
X = (2.0 + RNG.normal(size=(4, 8, 12, 1))).astype(np.float32)
HIDDEN = MASK.reshape(4, 2, 3).repeat(4, axis=1).repeat(4, axis=2)[..., None]
NETWORKS = {
    "resnet": models.create("resnet8", stages=(1, 1), width=0.25),
    "convnext": models.create("convnext_atto", stages=(1, 1), base_width=4, patch_size=2, layer_scale=1.0),
}


def make(network="resnet"):
    return METHODS["spark"](NETWORKS[network], RUN, decoder_width=8)


@functools.cache
def step(network):
    """images -> (loss, (metrics, prediction, batch_stats)), gradient of the parameters"""
    method = make(network)
    params, state = drawn.draw(method, X[:1])

    @jax.jit
    def run(params, x, mask):
        def loss(params):
            output = method.loss(params, state, {"views": (x,), "masks": (mask,)}, jax.random.key(2))
            prediction = method.predict(params, state, x, mask, None, None)[0]
            return output.loss, (output.metrics, prediction, output.state["batch_stats"])

        return jax.value_and_grad(loss, has_aux=True)(params)

    return lambda x: jax.device_get(run(params, x, MASK))


@pytest.mark.parametrize("network", NETWORKS)
def test_hidden_pixels_are_not_seen(network):
    (_, (_, prediction, stats)), _ = step(network)(X)
    (_, (_, same, same_stats)), _ = step(network)(np.where(HIDDEN, np.float32(100.0), X))
    (_, (_, other, _)), _ = step(network)(np.where(HIDDEN, X, X**2))
    np.testing.assert_allclose(same, prediction, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), same_stats, stats)
    assert np.abs(other - prediction).max() > 1e-2


def test_the_loss_is_that_of_the_hidden_squares_relative_to_their_mean_and_deviation():
    (loss, (metrics, prediction, _)), _ = step("resnet")(X)
    squares = X.reshape(4, 2, 4, 3, 4).swapaxes(2, 3).reshape(4, 6, 16).astype(np.float64)
    normalized = squares - squares.mean(-1, keepdims=True)
    normalized /= np.sqrt(squares.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(loss, np.mean((prediction - normalized)[MASK] ** 2), rtol=1e-5)
    np.testing.assert_allclose(metrics["square_mean_loss"], 15 / 16, rtol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_weight_but_a_convnexts_last_layer_norms_has_a_gradient(network):
    _, gradient = step(network)(X)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all()
        assert np.any(leaf != 0.0) != ("head" in jax.tree_util.keystr(path)), path


def test_a_densified_map_has_normalized_features_where_it_is_seen_and_its_token_elsewhere():
    module = Densify(width=5, size=1, batch_norm=True)  # as wide as the map: no convolution follows
    x, hidden = RNG.normal(2.0, 3.0, size=(4, 4, 6, 5)).astype(np.float32), jnp.asarray(MASK.reshape(4, 2, 3))
    token = np.arange(5, dtype=np.float32)
    norm = {"scale": np.ones(5, np.float32), "bias": np.zeros(5, np.float32)}
    variables = {
        "params": {"norm": norm, "mask_token": token},
        "batch_stats": {"norm": {"mean": np.zeros(5, np.float32), "var": np.ones(5, np.float32)}},
    }
    found, _ = module.apply(variables, x, hidden, True, None, mutable=["batch_stats"])
    where = MASK.reshape(4, 2, 3).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(found[where], np.broadcast_to(token, (where.sum(), 5)))
    visible = x[~where]
    np.testing.assert_allclose(found[~where], (visible - visible.mean(0)) / visible.std(0), atol=1e-4)


def test_the_decoder_adds_each_map_at_its_resolution_and_halves_its_width():
    decoder = Decoder(width=32, channels=3, doublings=3, batch_norm=False)
    # A network of stride 8 with a map as large as the images, which is left out.
    maps = tuple(jnp.zeros((2, 16 // 2**i, 16 // 2**i, 4 * 2**i)) for i in range(4))
    mask = jnp.zeros((2, 4), bool)
    made, variables = jax.eval_shape(decoder.init_with_output, jax.random.key(0), maps, mask)
    assert made.shape == (2, 16, 16, 3)
    params = variables["params"]
    assert {name for name in params if name.startswith("densify")} == {"densify_0", "densify_1", "densify_2"}
    assert "proj" not in params["densify_0"]  # 32 channels already
    assert params["densify_2"]["proj"]["kernel"].shape == (3, 3, 8, 8)
    assert [params[f"dec_{i}"]["conv_1"]["kernel"].shape[2:] for i in range(3)] == [(32, 16), (16, 8), (8, 4)]


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("vit_tiny_patch16_224", {}, "which a ViT cannot do; use a ConvNeXt or a ResNet"),
        ("convnext_atto", dict(patch_size=3), "its stride is 24, no power of 2"),
        ("resnet18", dict(stages=(1,) * 6), "decoder_width=64 is halved at each doubling.* use a multiple of 128"),
    ],
)
def test_what_the_decoder_cannot_serve_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        METHODS["spark"](models.create(model, **options), RUN, decoder_width=64 if options.get("stages") else 768)
