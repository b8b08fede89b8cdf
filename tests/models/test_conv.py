import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ssl_jax.models import conv, kernel_gradient
from tests.models import drawn

CASES = [
    # (batch, height, width, in), out, kernel, strides, padding
    ((5, 9, 7, 3), 4, (3, 3), (1, 1), "SAME"),
    ((5, 9, 7, 3), 4, (3, 3), (2, 2), "SAME"),
    ((5, 9, 7, 3), 4, (3, 3), (2, 2), "VALID"),
    ((4, 8, 8, 2), 5, (1, 1), (1, 1), "SAME"),
    ((4, 8, 9, 2), 5, (1, 1), (2, 2), ((0, 0), (0, 0))),  # the last column is in no window
    ((3, 16, 15, 1), 6, (7, 7), (2, 2), ((3, 3), (3, 3))),
    ((3, 8, 8, 2), 3, (3, 2), (1, 2), ((2, 0), (1, 3))),
    ((4, 6, 9, 2), 3, (3, 2), (1, 1), ((2, 0), (0, 1))),
    ((4, 6, 9, 3), 3, (3, 3), (1, 1), ((3, 0), (0, 4))),  # more padding than the kernel reaches
    ((1, 4, 4, 2), 3, (4, 4), (4, 4), "VALID"),
    ((3, 8, 12, 2), 5, (4, 4), (4, 4), "SAME"),  # patches: a product of matrices
    ((3, 9, 8, 2), 5, (4, 4), (4, 4), "VALID"),  # the last row is in no patch
    ((3, 8, 8, 2), 5, (2, 2), (2, 2), "VALID"),
]


def value_and_gradients(module, variables, x):
    weight = np.cos(np.arange(np.prod(jax.eval_shape(module.apply, variables, x).shape), dtype=np.float32))

    def total(variables, x):
        y = module.apply(variables, x)
        return jnp.sum(y.astype(jnp.float32) * weight.reshape(y.shape)), y

    (_, y), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(variables, x)
    return y, gradients


def equals_flaxs(cases, before=lambda shape: None, **tolerance):
    """cases: [(shape, out, kernel, strides, padding, options)], all compiled as one program; `before` each is traced
    it is called with the shape."""
    xs = [np.random.default_rng(0).normal(size=case[0]).astype(np.float32) for case in cases]
    pairs = [
        [module(*case[1:3], strides=case[3], padding=case[4], **case[5]) for module in (conv.Conv, nn.Conv)]
        for case in cases
    ]
    variables = [drawn.variables_of(ours, x) for (ours, _), x in zip(pairs, xs, strict=True)]

    @jax.jit
    def run(variables, xs):
        found = []
        for pair, v, x in zip(pairs, variables, xs, strict=True):
            before(x.shape)
            found.append([value_and_gradients(module, v, x) for module in pair])
        return found

    for case, (_, flaxs), v, x, (found, expected) in zip(cases, pairs, variables, xs, run(variables, xs), strict=True):
        shapes = jax.eval_shape(flaxs.init, jax.random.key(0), x)
        assert jax.tree.map(np.shape, v) == jax.tree.map(np.shape, shapes), case
        jax.tree.map(functools.partial(np.testing.assert_allclose, err_msg=str(case), **tolerance), found, expected)


def test_single_channels_are_nn_convs():
    cases = [
        ((5, 9, 7, 3), (3, 3), (1, 1), "SAME", (1, 1)),
        ((5, 9, 7, 3), (7, 7), (1, 1), "SAME", (1, 1)),
        ((5, 9, 8, 3), (5, 3), (2, 2), ((2, 1), (0, 1)), (1, 1)),
        ((5, 9, 8, 3), (3, 3), (2, 1), "VALID", (1, 1)),  # the last row is in no window
        ((5, 9, 8, 3), (3, 3), (1, 2), ((4, 0), (3, 3)), (1, 1)),  # more zeros than the kernel reaches
        ((5, 9, 8, 3), (3, 2), (1, 1), "SAME", (2, 3)),
        ((5, 2, 1, 3), (3, 3), (1, 1), "SAME", (1, 1)),
    ]
    options = [dict(feature_group_count=3, kernel_dilation=dilation) for *_, dilation in cases]
    equals_flaxs(
        [(shape, 3, *case[:3], option) for (shape, *case), option in zip(cases, options, strict=True)],
        rtol=1e-5,
        atol=1e-5,
    )


def test_maps_smaller_than_the_kernel_are_nn_convs():
    shapes = [(5, 2, 2, 3), (5, 1, 1, 3), (5, 2, 7, 3), (5, 4, 4, 3)]
    cases = [(shape, 4, (3, 3), (stride, stride), "SAME", {}) for shape in shapes for stride in (1, 2)]
    equals_flaxs(
        [*cases, ((5, 3, 3, 3), 4, (3, 3), (1, 1), "SAME", dict(kernel_dilation=(2, 2)))], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("more, way", enumerate(["whole", "convolved", "of patches", "crossed"]))
def test_value_and_gradients_are_nn_convs(more, way, monkeypatch):
    def before(shape):
        image = 4 * math.prod(shape[1:])
        if way != "whole":  # two images each, and a rest
            monkeypatch.setattr(kernel_gradient, "CHUNK_BYTES", {"crossed": 12}.get(way, 3) * image)
        if way == "convolved":
            monkeypatch.setattr(kernel_gradient, "FEWEST_IMAGES", 0)
        if way == "of patches":
            monkeypatch.setattr(kernel_gradient, "PATCH_BYTES", 2 * 9 * image)
        monkeypatch.setattr(kernel_gradient, "CROSSED_FROM", 0 if way == "crossed" else 10**6)

    # JAX keeps the gradient that it traced for a shape, whatever the constants are later: hence other batch sizes.
    equals_flaxs([((batch + more, *side), *case, {}) for (batch, *side), *case in CASES], before, rtol=1e-5, atol=1e-5)


def test_groups_and_dilation_are_nn_convs():
    case = ((3, 8, 8, 4), 4, (3, 3), (1, 1), "SAME")
    groups = [dict(feature_group_count=count) for count in (2, 4)]
    options = *groups, dict(kernel_dilation=(2, 2)), dict(precision="highest")
    strided = ((5, 9, 7, 6), 4, (3, 3), (2, 2), ((1, 1), (1, 1)), dict(feature_group_count=2))
    equals_flaxs([*((*case, of_case) for of_case in options), strided], rtol=1e-5, atol=1e-5)


def test_bfloat16():
    ours, exact = conv.Conv(4, (3, 3), dtype=jnp.bfloat16), nn.Conv(4, (3, 3))
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 4)).astype(np.float32)

    @jax.jit
    def run(x):
        variables, of_flax = (module.init(jax.random.key(1), x) for module in (ours, exact))
        return variables, of_flax, value_and_gradients(ours, variables, x), value_and_gradients(exact, variables, x)

    *variables, (y, (gradient, _)), (expected_y, (expected, _)) = run(x)
    jax.tree.map(np.testing.assert_array_equal, *variables)
    assert y.dtype == jnp.bfloat16
    assert gradient["params"]["kernel"].dtype == jnp.float32  # as the parameter
    np.testing.assert_allclose(np.asarray(y, np.float32), expected_y, atol=0.05)
    scale = np.abs(expected["params"]["kernel"]).max()
    np.testing.assert_allclose(gradient["params"]["kernel"], expected["params"]["kernel"], atol=0.01 * scale)


@pytest.mark.parametrize(
    "options",
    [dict(strides=(2, 2)), dict(feature_group_count=4), dict(strides=(3, 3))],
    ids=["plain", "of single channels", "smaller than the kernel"],
)
def test_gradients_under_a_mapping_are_those_of_the_whole_batch(options):
    module = conv.Conv(4, (3, 3), **options)
    x = np.random.default_rng(0).normal(size=(8, 6, 6, 4)).astype(np.float32)
    variables = drawn.variables_of(module, x)
    weight = np.cos(np.arange(8, dtype=np.float32))[:, None, None, None]

    def mean(variables, x, weight):
        return jnp.mean(module.apply(variables, x) * weight)

    def on_device(variables, x, weight):
        gradient = jax.grad(lambda v: lax.pmean(mean(v, x, weight), "i"))(variables)
        return lax.pmean(gradient, "i")

    specs = (PartitionSpec(), PartitionSpec("i"), PartitionSpec("i"))
    mesh = Mesh(np.asarray(jax.devices()), ("i",))

    @jax.jit
    def run(variables, x, weight):
        expected = jax.grad(mean)(variables, x, weight)
        split = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(variables, x, weight)
        each = jax.vmap(jax.grad(mean), in_axes=(None, 0, 0))(variables, x[:, None], weight[:, None])
        return expected, split, each

    expected, split, each = jax.device_get(run(variables, x, weight))
    pmapped = jax.device_get(
        jax.pmap(on_device, axis_name="i", in_axes=(None, 0, 0))(variables, x[:, None], weight[:, None])
    )
    for name, got in (
        ("shard_map", split),
        ("vmap", jax.tree.map(lambda g: g.mean(axis=0), each)),
        ("pmap", jax.tree.map(lambda g: g[0], pmapped)),
    ):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6, err_msg=name), got, expected)
