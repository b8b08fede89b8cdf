"""Each operation by onnxruntime and by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from jax import lax

from ssl_jax.exporting import onnx_graph

SHAPE = (4, 6, 3)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (5, *SHAPE)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(3, 2, 1, 6)).astype(np.float32)  # of a depthwise convolution
WEIGHTS = np.random.default_rng(2).normal(size=(3, 2)).astype(np.float32)


def depthwise(x):
    """Strides, dilations and paddings that differ by axis and end."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, KERNEL, (1, 2), ((2, 1), (0, 1)), rhs_dilation=(2, 1), dimension_numbers=numbers, feature_group_count=3
    )


def pooled(x, operation, start):
    return lax.reduce_window(x, start, operation, (1, 2, 3, 1), (1, 2, 1, 1), ((0, 0), (1, 1), (0, 2), (0, 0)))


@jax.jit
def twice(x):
    return jnp.exp(x) + jnp.sum(x**2)


def constant_then_not(x):
    """The same function of a constant and of the images: what is known in its first call is not in its second."""
    return twice(jnp.ones(3)) + twice(x)


FUNCTIONS = {
    "depthwise convolution": depthwise,
    "largest of a window": lambda x: pooled(x, lax.max, -jnp.inf),
    "sum of a window": lambda x: pooled(x, lax.add, 0.0),
    "matrix": lambda x: x @ WEIGHTS,
    "attention": lambda x: jnp.einsum("bhqc,bhkc->bqhk", x, x),
    "products of a batch": lambda x: lax.dot_general(x, x, (((2,), (2,)), ((0, 3), (0, 3)))),
    "class token": jax.vmap(lambda x: jnp.concatenate([jnp.full((1, 6, 3), WEIGHTS[0, 0]), x])),
    "parts": jax.vmap(lambda x: lax.slice(x, (1, 0, 2), (4, 6, 3), (2, 3, 1))[:, 1]),
    "in three": lambda x: sum(part * i for i, part in enumerate(jnp.split(x, 3, axis=2))),
    "reverse order of axes": jax.vmap(lambda x: x.transpose(2, 1, 0).reshape(-1, 4)),
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=0.5),
    "choice": lambda x: jnp.where((x > 0.1) & ~(x >= 0.5) | (x != x), x, jnp.minimum(x, -0.2)),
    "clipped": lambda x: jnp.clip(x, -0.5, 0.25),
    "powers": lambda x: x**3 + jnp.abs(x) ** 0.5 - x**2,
    "of a number": lambda x: jnp.log1p(jnp.exp(x)) + jnp.sin(x) * jnp.cos(x) - jnp.tanh(x) / (2 + jnp.floor(x)),
    "activations": lambda x: jax.nn.gelu(x, approximate=False) + jax.nn.silu(x) + jax.nn.relu(x) + lax.erf(x),
    "norm": lambda x: (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-6),
    "extremes": lambda x: x.max(axis=(1, 2)) - x.min(axis=(1, 2)),
    "softmax": lambda x: jax.nn.softmax(x, axis=2),
    "integers": lambda x: (x * 4).astype(jnp.int32).astype(jnp.float32) * jnp.sign(x),
    "recomputed": jax.checkpoint(lambda x: jnp.sin(jnp.sqrt(jnp.abs(x)))),
    "called twice": constant_then_not,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_an_operation_gives_what_jax_gives(tmp_path, function):
    path = tmp_path / "x.onnx"
    path.write_bytes(onnx_graph.to_onnx(function, SHAPE))
    onnx.checker.check_model(path, full_check=True)
    for images in (IMAGES, IMAGES[:1]):
        np.testing.assert_allclose(onnx_graph.run(path, images), function(jnp.asarray(images)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda x: jnp.sort(x, axis=1), "an operation without a translation to ONNX: sort"),
        (lambda x: lax.slice_in_dim(x, 1, x.shape[0]), "takes a part of the batch"),
        (lambda x: x.astype(jnp.bfloat16), r"computes in bfloat16.*clone\(dtype=\"float32\"\)"),
    ],
)
def test_what_has_no_translation_is_refused(function, reason):
    with pytest.raises(onnx_graph.NoTranslation, match=reason):
        onnx_graph.to_onnx(function, SHAPE)


def test_what_does_not_depend_on_the_images_is_computed_before(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(onnx_graph.to_onnx(lambda x: x * jnp.sin(jnp.arange(3.0)), SHAPE))
    assert [node.op_type for node in onnx.load(path).graph.node if node.op_type != "Identity"] in (
        ["Mul"],
        ["Expand", "Mul"],
    )
