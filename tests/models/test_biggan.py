import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models import biggan

X = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)


def repeated(side, x, calls=40):
    """(layer, its variables after some calls in training)"""
    layer = biggan.SpectralLayer(5, side)

    @jax.jit
    def run(x):
        variables = layer.init(jax.random.key(0), x)
        kernel = jax.random.normal(jax.random.key(1), variables["params"]["kernel"].shape)
        params = {**variables["params"], "kernel": kernel, "bias": jnp.arange(5.0)}

        def call(stats, _):
            _, new = layer.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
            return new["batch_stats"], None

        stats, _ = jax.lax.scan(call, variables["batch_stats"], length=calls)
        return {"params": params, "batch_stats": stats}, layer.apply({"params": params, "batch_stats": stats}, x)

    return jax.device_get(run(x))


@pytest.mark.parametrize("side", [0, 1, 3])
def test_a_layer_is_divided_by_its_largest_singular_value(side):
    x = X if side else X[:, 0, 0]
    variables, y = repeated(side, x)
    kernel = variables["params"]["kernel"]
    largest = np.linalg.svd(kernel.reshape(-1, 5), compute_uv=False)[0]
    if side == 3:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        product = sum(padded[:, i : i + 4, j : j + 4] @ kernel[i, j] for i, j in np.ndindex(3, 3))
    else:
        product = x @ kernel.reshape(3, 5)
    np.testing.assert_allclose(y, product / largest + np.arange(5.0), rtol=1e-3, atol=1e-3)


def test_the_gradient_goes_through_the_singular_value():
    layer = biggan.SpectralLayer(3)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)

    @functools.partial(jax.jit)
    def slope(x):
        variables = layer.init(jax.random.key(0), x)
        loss = lambda params: jnp.sum(layer.apply({**variables, "params": params}, x) ** 2)  # noqa: E731
        params = variables["params"]
        return jnp.sum(jax.grad(loss)(params)["kernel"] * params["kernel"])

    np.testing.assert_allclose(slope(x), 0.0, atol=1e-4)  # a kernel times any number is the same layer


@pytest.mark.parametrize("side, halvings", [(8, 1), (14, 1), (28, 2)])
def test_sizes(side, halvings):
    generator, features = biggan.Generator(side, channels=3, width=4), biggan.Features(4)
    z = np.zeros((2, 5), np.float32)
    made, _ = jax.eval_shape(lambda z: generator.init_with_output(jax.random.key(0), z), z)
    assert made.shape == (2, side, side, 3)
    h, _ = jax.eval_shape(lambda x: features.init_with_output(jax.random.key(0), x, False), made)
    assert h.shape == (2, 4 * 2 ** (halvings - 1))


def test_a_code_changes_scale_and_offset_of_every_block():
    generator = biggan.Generator(8, channels=1, width=2)

    @jax.jit
    def run(z):
        variables = generator.init(jax.random.key(0), z)
        loss = lambda params: jnp.sum(generator.apply({**variables, "params": params}, z))  # noqa: E731
        return jax.grad(loss)(variables["params"]), generator.apply(variables, z)

    gradient, made = jax.device_get(run(np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)))
    for name in ("scale1", "offset1", "scale2", "offset2"):
        assert np.abs(gradient["block0"][name]["kernel"]).max() > 0
    assert np.abs(made).max() <= 1.0
