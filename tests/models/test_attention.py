"""Attention on each platform."""

import functools
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models import attention as ours
from ssl_jax.models import tpu_kernel
from ssl_jax.models.attention import attention

RNG = np.random.default_rng(0)


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def value_and_gradients(function, *arguments):
    def total(*arguments):
        y = function(*arguments)
        return jnp.sum(jnp.cos(jnp.arange(y.size).reshape(y.shape)) * y.astype(jnp.float32)), y

    return jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(arguments))), has_aux=True))(*arguments)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_is_jaxs(masked, biased):
    queries, keys, values = (normal(2, 5, 3, 4) for _ in range(3))
    mask = jnp.asarray(RNG.random((2, 1, 5, 5)) < 0.6).at[:, :, :, 0].set(True) if masked else None
    bias = normal(1, 3, 5, 5) if biased else jnp.zeros((1, 3, 5, 5))
    found, expected = (
        value_and_gradients(lambda q, k, v, b, of=of: of(q, k, v, b, mask), queries, keys, values, bias)
        for of in (attention, jax.nn.dot_product_attention)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_attention_without_a_bias_is_the_softmax_of_scaled_products():
    queries, keys, values = (RNG.normal(size=(1, 3, 1, 4)) for _ in range(3))
    logits = queries[0, :, 0] @ keys[0, :, 0].T / 2
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = attention(*(jnp.asarray(x, jnp.float32) for x in (queries, keys, values)))
    np.testing.assert_allclose(found[0, :, 0], weights @ values[0, :, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [5, 40, 300])
def test_the_kernel_for_tpus_is_jaxs_attention(monkeypatch, tokens):
    """In one block of queries, in three, and in blocks of which the last is not full."""
    monkeypatch.setattr(tpu_kernel, "BLOCK_LOGITS", 16 * 300)
    *given, g = (normal(2, tokens, 3, 8) for _ in range(4))
    expected, backward = jax.vjp(jax.nn.dot_product_attention, *given)
    found = tpu_kernel.forward(*given, interpret=True), tpu_kernel.backward(*given, g, interpret=True)
    expected = expected, backward(g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_the_kernel_keeps_bfloat16_and_computes_its_softmax_in_float32():
    given = [normal(1, 20, 2, 8, dtype=jnp.bfloat16) * 8 for _ in range(3)]
    found = tpu_kernel.forward(*given, interpret=True)
    expected = jax.nn.dot_product_attention(*(x.astype(jnp.float32) for x in given))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=2e-2, atol=5e-2)


def lowered(function, *shapes, platform, dtype=jnp.bfloat16):
    def gradient(*given):
        return jax.grad(lambda *given: jnp.sum(function(*given).astype(jnp.float32)), (0, 1, 2))(*given)

    given = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.jit(gradient).trace(*given).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    "kind, tokens, dtype, kernel",
    [
        ("auto", 512, "bfloat16", True),
        ("auto", 257, "bfloat16", False),
        ("fused", 257, "bfloat16", True),
        ("xla", 512, "bfloat16", False),
        ("auto", 512, "float32", False),
        ("fused", 2561, "bfloat16", False),
    ],
)
def test_which_attention_a_tpu_computes(kind, tokens, dtype, kernel):
    shape = (1, tokens, 2, 16)
    text = lowered(functools.partial(attention, kind=kind), *[shape] * 3, platform="tpu", dtype=dtype)
    assert ("tpu_custom_call" in text) == kernel
    logits = f"tensor<1x2x{tokens}x{tokens}x"
    assert (logits in text) != kernel
    assert "tpu_custom_call" not in lowered(functools.partial(attention, kind=kind), *[shape] * 3, platform="cpu")


def test_where_there_is_no_tpu_the_gradient_is_that_of_plain_attention():
    given = [normal(2, 12, 3, 8, dtype=jnp.bfloat16) for _ in range(3)]
    found, expected = (
        value_and_gradients(functools.partial(attention, kind=kind), *given) for kind in ("fused", "xla")
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), found, expected)


@pytest.mark.parametrize("tokens", [16, 17])
def test_nvidias_gpus_compute_attention_by_cudnn(monkeypatch, tokens):
    """Lowered for a GPU that is not here; JAX asks what version of cuDNN there is."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91100)
    shape = (2, tokens, 2, 16)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(ours, "has_cudnn", lambda: False)
    assert "fmha" not in lowered(attention, *[shape] * 3, platform="cuda")
    monkeypatch.setattr(ours, "has_cudnn", lambda: True)
    text = lowered(attention, *[shape] * 3, platform="cuda")
    assert text.count("__cudnn$fmha") == 2  # forward and backward
    assert "fmha" not in lowered(attention, *[shape] * 3, platform="cuda", dtype=jnp.float32)
    assert "fmha" not in lowered(functools.partial(attention, kind="xla"), *[shape] * 3, platform="cuda")
    assert "fmha" not in lowered(attention, *[(2, tokens, 2, 12)] * 3, platform="cuda")  # heads of no multiple of 8


@pytest.mark.parametrize(
    "capability, expected", [("8.0", True), ("10.3", True), ("7.5", False), ("gfx90a", False), (None, False)]
)
def test_which_gpus_have_cudnns_attention(monkeypatch, capability, expected):
    device = type("Device", (), {} if capability is None else {"compute_capability": capability})()
    monkeypatch.setattr(jax, "devices", lambda: [device])
    ours.has_cudnn.cache_clear()
    assert ours.has_cudnn() is expected
    monkeypatch.undo()
    ours.has_cudnn.cache_clear()


ON_TWO_CHIPS = """
import jax, numpy as np
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ssl_jax import models
from ssl_jax.planning import chips, plan

mesh = Mesh(np.array(plan.describe(chips.parse_slice("v5e:2x2"))[:2]), ("data",))
images = jax.ShapeDtypeStruct((4, 96, 96, 3), jnp.float32)
for kind in ("xla", "auto"):
    options = dict(dim=64, heads=1, depth=1, patch_size=4, image_size=96, dtype="bfloat16", attention=kind)
    vit = models.create("vit_tiny_patch16_224", remat="block", **options)
    variables = jax.eval_shape(vit.init, jax.random.key(0), images)

    def gradient(variables, images):
        def loss(variables):
            return jax.lax.pmean(jnp.mean(vit.apply(variables, images, train=True) ** 2), "data")

        return jax.grad(loss)(variables)

    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    compiled = jax.jit(mapped).trace(variables, images).lower(lowering_platforms=("tpu",)).compile()
    print("577,577]" in compiled.as_text())  # the class token and 24x24 patches
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="asks the TPU compiler; pip install libtpu")
def test_a_vits_step_on_tpus_has_no_logits_in_memory():
    """Mapped over two chips as a train step is, with blocks that are computed again."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # of CPUs; libtpu reads it
    command = [sys.executable, "-c", ON_TWO_CHIPS]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.split() == ["True", "False"]
