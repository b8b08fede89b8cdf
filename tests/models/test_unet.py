import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.config import get_config
from ssl_jax.models import unet
from tests.models import drawn

X = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)).astype(np.float32)
SMALL = dict(base_width=4, multipliers=(1, 2), blocks=1, attention_at=(), norm_groups=2, dropout=0.0, feature_block=1)


def make(**options):
    return models.create("ddpm_unet", **{**SMALL, **options})


def parameters(scale):
    options = dict(get_config(f"ddae:{scale}").model)
    made = models.create(options.pop("name"), **options)
    shapes = jax.eval_shape(made.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_it_has_the_authors_number_of_parameters():
    assert parameters("cifar_ddpm") == 35_746_307  # in the comment at the end of their model/unet.py
    assert round(parameters("cifar_ddpmpp") / 1e6, 1) == 56.5  # in their README


def silu(x):
    return x / (1.0 + np.exp(-x))


def group_norm(x, params, groups):
    batch, height, width, channels = x.shape
    parts = x.reshape(batch, height * width, groups, channels // groups)
    normed = (parts - parts.mean((1, 3), keepdims=True)) / np.sqrt(parts.var((1, 3), keepdims=True) + 1e-5)
    return normed.reshape(x.shape) * params["scale"] + params["bias"]


def conv(x, params):
    kernel = params["kernel"]
    pad = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = x.shape[1:3]
    shifted = (padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in np.ndindex(len(kernel), len(kernel)))
    return sum(shifted) + params["bias"]


def attend(x, params, groups):
    y = group_norm(x, params["norm"], groups).reshape(len(x), -1, x.shape[-1])
    queries, keys, values = np.split(y @ params["qkv"]["kernel"] + params["qkv"]["bias"], 3, axis=-1)
    logits = np.exp(queries @ keys.swapaxes(1, 2) / np.sqrt(x.shape[-1]))
    y = logits / logits.sum(-1, keepdims=True) @ values
    return x + (y @ params["output"]["kernel"] + params["output"]["bias"]).reshape(x.shape)


def resampled(x, how):
    if how == "halve":
        return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    return np.kron(x, np.ones((1, 2, 2, 1))) if how == "double" else x


@pytest.mark.parametrize("how, width", [("", 6), ("halve", 4), ("double", 4)])
def test_a_block_is_the_reference(how, width):
    rng = np.random.default_rng(1)
    x, time = rng.normal(size=(2, 4, 4, 4)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    options = dict(groups=2, dropout=0.5, dtype=jnp.float32, axis_name=None, attention=True, resample=how)
    block = unet.Block(width, train=False, **options)
    noise = np.random.default_rng(2)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, time)
    variables = jax.tree.map(lambda leaf: 0.5 * noise.normal(size=leaf.shape).astype(np.float32), shapes)
    p = variables["params"]
    y = resampled(silu(group_norm(x, p["norm1"], 2)), how)
    shift = silu(time) @ p["time"]["kernel"] + p["time"]["bias"]
    y = conv(y, p["conv1"]) + shift[:, None, None]
    y = conv(silu(group_norm(y, p["norm2"], 2)), p["conv2"])
    whole = resampled(x, how)
    whole = y + (conv(whole, p["shortcut"]) if width != 4 else whole)
    found = jax.jit(block.apply)(variables, x, time)
    np.testing.assert_allclose(found, attend(whole, p["attention"], 2), rtol=1e-4, atol=1e-4)


def test_noise_is_added_as_the_betas_say_and_removed_again():
    model = make(noise_steps=4, betas=(0.1, 0.4), feature_step=0)
    kept = np.sqrt(np.cumprod([1.0, 0.9, 0.8, 0.7, 0.6]))
    np.testing.assert_allclose(model.signals, kept, rtol=1e-6)
    noise, steps = jnp.ones_like(X), jnp.array([1, 4])
    noisy = model.add_noise(jnp.array(X), noise, steps)
    expected = [kept[t] * x + np.sqrt(1 - kept[t] ** 2) for t, x in zip(steps, X, strict=True)]
    np.testing.assert_allclose(noisy, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.remove_noise(noisy, noise, steps), X, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(make().signals[[0, -1]] > 0.01, [True, False])  # an image, noise


@functools.cache
def features():
    """{(step, block): features and map}, of one set of weights."""
    model = make()
    variables = drawn.variables_of(model, X)
    cases = {(step, block): make(feature_step=step, feature_block=block) for step in (0, 500) for block in (1, 4)}

    @jax.jit
    def run(x):
        return {
            str(case): (made.apply(variables, x), made.apply(variables, x, method="feature_map"))
            for case, made in cases.items()
        }

    return {case: (made, *run(X)[str(case)]) for case, made in cases.items()}


def test_features_are_the_mean_of_the_chosen_blocks_output_at_the_chosen_noise():
    found = features()
    for (_, block), (made, h, of_places) in found.items():
        assert of_places.shape == (2, *((4, 4) if block == 1 else (8, 8)), made.dim)
        assert made.dim == (8 if block == 1 else 4)
        np.testing.assert_allclose(h, np.mean(of_places, axis=(1, 2)), rtol=1e-4, atol=1e-5)
    assert np.abs(found[0, 1][1] - found[500, 1][1]).max() > 1e-3


def test_dropout_is_each_rows_own_and_keeps_the_mean():
    x, keys = jnp.ones((2, 50, 50)), jax.random.split(jax.random.key(0), 2)
    dropped = np.asarray(unet.drop(x, 0.2, keys))
    np.testing.assert_allclose(np.unique(dropped), [0.0, 1.25])
    np.testing.assert_allclose(dropped.mean(axis=(1, 2)), 1.0, atol=0.05)
    np.testing.assert_array_equal(unet.drop(x[1:], 0.2, keys[1:])[0], dropped[1])
    assert np.any(dropped[0] != dropped[1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"base_width": 5}, "base_width=5 must be a multiple of 2 and norm_groups=2"),
        ({"betas": (0.1,)}, "betas must be two numbers"),
        ({"feature_block": 5}, "feature_block=5 is more than the 4 blocks on the way up"),
        ({"feature_step": 1001}, "feature_step=1001 is more than noise_steps=1000"),
        ({"attention_at": (2,)}, "names resolutions from 0 to 1"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_an_image_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="7x8 pixels cannot be halved 1 times; use sides that are multiples of 2"):
        jax.eval_shape(make().init, jax.random.key(0), X[:, :7])
