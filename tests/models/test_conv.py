import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ssl_jax.models import conv

CASES = [
    # (batch, height, width, in), out, kernel, strides, padding
    ((5, 9, 7, 3), 4, (3, 3), (1, 1), "SAME"),
    ((5, 9, 7, 3), 4, (3, 3), (2, 2), "SAME"),
    ((5, 9, 7, 3), 4, (3, 3), (2, 2), "VALID"),
    ((4, 8, 8, 2), 5, (1, 1), (1, 1), "SAME"),
    ((4, 8, 9, 2), 5, (1, 1), (2, 2), ((0, 0), (0, 0))),  # the last column is in no window
    ((3, 16, 15, 1), 6, (7, 7), (2, 2), ((3, 3), (3, 3))),
    ((3, 8, 8, 2), 3, (3, 2), (1, 2), ((2, 0), (1, 3))),
    ((1, 4, 4, 2), 3, (4, 4), (4, 4), "VALID"),
]


def make(module, shape, out, kernel, strides, padding, **options):
    made = module(out, kernel, strides=strides, padding=padding, **options)
    x = jax.random.normal(jax.random.key(0), shape)
    return made, x, made.init(jax.random.key(1), x)


def value_and_gradients(module, variables, x):
    weight = jnp.cos(jnp.arange(module.apply(variables, x).size, dtype=jnp.float32))

    def total(variables, x):
        y = module.apply(variables, x)
        return jnp.sum(y.astype(jnp.float32) * weight.reshape(y.shape)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(variables, x)
    return y, gradients


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("chunks", ["one", "several"])
def test_value_and_gradients_are_nn_convs(case, chunks, monkeypatch):
    if chunks == "several":  # two images each, and a rest
        shape = case[0]
        monkeypatch.setattr(conv, "CHUNK_BYTES", 4 * 3 * np.prod(shape[1:]))
    ours, x, variables = make(conv.Conv, *case)
    reference, _, reference_variables = make(nn.Conv, *case)
    jax.tree.map(np.testing.assert_array_equal, variables, reference_variables)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
        value_and_gradients(ours, variables, x),
        value_and_gradients(reference, variables, x),
    )


@pytest.mark.parametrize(
    "options", [dict(feature_group_count=2), dict(kernel_dilation=(2, 2)), dict(precision="highest")]
)
def test_groups_and_dilation_are_nn_convs(options):
    case = ((3, 8, 8, 4), 4, (3, 3), (1, 1), "SAME")
    ours, x, variables = make(conv.Conv, *case, **options)
    reference, _, _ = make(nn.Conv, *case, **options)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        value_and_gradients(ours, variables, x),
        value_and_gradients(reference, variables, x),
    )


def test_bfloat16():
    case = ((6, 8, 8, 4), 4, (3, 3), (1, 1), "SAME")
    ours, x, variables = make(conv.Conv, *case, dtype=jnp.bfloat16)
    exact, _, _ = make(nn.Conv, *case)
    y, (gradient, _) = value_and_gradients(ours, variables, x)
    expected_y, (expected, _) = value_and_gradients(exact, variables, x)
    assert y.dtype == jnp.bfloat16
    assert gradient["params"]["kernel"].dtype == jnp.float32  # as the parameter
    np.testing.assert_allclose(y.astype(jnp.float32), expected_y, atol=0.05)
    scale = np.abs(expected["params"]["kernel"]).max()
    np.testing.assert_allclose(gradient["params"]["kernel"], expected["params"]["kernel"], atol=0.01 * scale)


@pytest.mark.parametrize("mapping", ["shard_map", "pmap", "vmap"])
def test_gradients_under_a_mapping_are_those_of_the_whole_batch(mapping):
    module, x, variables = make(conv.Conv, (8, 6, 6, 3), 4, (3, 3), (2, 2), "SAME")
    weight = jnp.cos(jnp.arange(8.0))[:, None, None, None]

    def mean(variables, x, weight):
        return jnp.mean(module.apply(variables, x) * weight)

    expected = jax.grad(mean)(variables, x, weight)

    def on_device(variables, x, weight):
        gradient = jax.grad(lambda v: lax.pmean(mean(v, x, weight), "i"))(variables)
        return lax.pmean(gradient, "i")

    if mapping == "shard_map":
        mesh = Mesh(np.asarray(jax.devices()), ("i",))
        specs = (PartitionSpec(), PartitionSpec("i"), PartitionSpec("i"))
        got = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec()))(
            variables, x, weight
        )
    elif mapping == "pmap":
        mapped = jax.pmap(on_device, axis_name="i", in_axes=(None, 0, 0))
        got = jax.tree.map(lambda g: g[0], mapped(variables, x[:, None], weight[:, None]))
    else:
        each = jax.vmap(jax.grad(mean), in_axes=(None, 0, 0))(variables, x[:, None], weight[:, None])
        got = jax.tree.map(lambda g: jnp.mean(g, axis=0), each)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)
