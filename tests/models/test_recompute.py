"""Recomputation changes what a backward pass keeps, never its result."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.models.recompute import REMATS, group_size
from tests.models import drawn

IMAGES = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
VIT = dict(name="vit_tiny_patch16_224", dim=16, heads=2, depth=4, patch_size=8, image_size=16, drop_path=0.5)
NETWORKS = {
    "resnet": dict(name="resnet18", stages=(2, 1), base_width=8, stem="small"),
    "efficientnet": dict(name="efficientnet_b0", stages=(1, 2), width=0.25, drop_path=0.5),
    "convnext": dict(name="convnextv2_atto", stages=(2, 1), base_width=8, drop_path=0.5),
    "swin": dict(
        name="swin_tiny_patch4_window7_224", stages=(2, 1), base_width=8, head_width=4, image_size=16, window=2
    ),
    "vit": VIT,
    "vit as a loop": {**VIT, "scan": True},
}


def forward(module, variables, params, images):
    given = {**variables, "params": params}
    rngs = {"dropout": jax.random.key(1)}
    h, changed = module.apply(given, images, train=True, mutable=["batch_stats"], rngs=rngs)
    return jnp.sum(jnp.sin(h)), changed


def made(network, remat):
    return models.create(**NETWORKS[network], remat=remat)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_value_the_statistics_and_the_gradient_are_the_same(network):
    modules = [made(network, remat) for remat in REMATS]

    @jax.jit
    def run(variables, images):
        steps = (functools.partial(forward, module, variables) for module in modules)
        return [jax.value_and_grad(step, has_aux=True)(variables["params"], images) for step in steps]

    expected, *others = run(drawn.variables_of(modules[0], IMAGES), IMAGES)
    for found in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def kept_bytes(module):
    """Bytes that the backward pass keeps, beside variables and images."""
    variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)

    def backward(variables, images):
        return jax.vjp(functools.partial(forward, module, variables), variables["params"], images, has_aux=True)[1]

    given = sum(math.prod(leaf.shape) for leaf in (*jax.tree.leaves(variables), IMAGES))
    leaves = jax.tree.leaves(jax.eval_shape(backward, variables, IMAGES))
    return 4 * (sum(math.prod(leaf.shape) for leaf in leaves) - given)


@pytest.mark.parametrize("network", ["resnet", "efficientnet", "convnext", "swin", "vit as a loop"])
def test_each_keeps_less_than_the_one_before(network):
    kept = [kept_bytes(made(network, remat)) for remat in REMATS]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept), kept


def test_full_keeps_the_inputs_of_groups():
    """With 16 blocks, 4 inputs of groups instead of 16 of blocks."""
    block, full = (
        kept_bytes(models.create(**VIT | dict(depth=16, scan=True, drop_path=0.0), remat=remat)) for remat in REMATS[2:]
    )
    assert full < block / 3


def count(jaxpr, names):
    inner = jax.tree.leaves([list(equation.params.values()) for equation in jaxpr.eqns])
    inner = [getattr(value, "jaxpr", value) for value in inner]
    here = sum(equation.primitive.name in names for equation in jaxpr.eqns)
    return here + sum(count(value, names) for value in inner if hasattr(value, "eqns"))


def test_dots_computes_no_convolution_and_no_statistic_again():
    def counted(remat):
        module = models.create(**NETWORKS["resnet"], remat=remat)

        def gradient(variables, images):
            step = functools.partial(forward, module, variables)
            return jax.grad(step, has_aux=True)(variables["params"], images)

        variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
        return count(jax.make_jaxpr(gradient)(variables, IMAGES).jaxpr, {"conv_general_dilated", "reduce_sum"})

    none, dots, block, _ = map(counted, REMATS)
    assert none == dots < block


@pytest.mark.parametrize("blocks, size", [(1, 1), (7, 1), (9, 3), (12, 3), (24, 4), (40, 5)])
def test_groups_divide_the_blocks(blocks, size):
    assert group_size(blocks, "full") == size
    assert group_size(blocks, "block") == blocks


def test_unknown_values_are_refused():
    with pytest.raises(ValueError, match="remat must be one of none, dots, block, full, got 'some'"):
        made("vit", "some")
