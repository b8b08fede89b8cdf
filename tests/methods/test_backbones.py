"""A method of whole images and one of feature maps train a network of each convolutional family."""

import itertools

import jax
import numpy as np
import optax
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 16, 16, 1)).astype(np.float32))
BACKBONES = {
    "resnext50_32x4d": dict(stages=(1, 1), width=0.25, groups=2, stem="strided"),
    "convnext_atto": dict(stages=(1, 1), base_width=8, patch_size=2, pool="norm_mean", drop_path=0.3),
    "convnextv2_atto": dict(stages=(1, 1), base_width=8, patch_size=2, pool="norm_mean"),
    "efficientnet_b0": dict(stages=(1, 2), width=0.25, drop_path=0.3),
}
METHOD_OPTIONS = {
    "simclr": dict(projector=(12, 6)),
    "densecl": dict(projector=(12, 6), queue_size=24),
}
SLOW = {("simclr", "convnext_atto"), ("densecl", "convnextv2_atto"), ("densecl", "efficientnet_b0")}
SLOW |= {("simclr", "resnext50_32x4d")}


@pytest.mark.parametrize(
    "method_name, name",
    [
        pytest.param(*pair, marks=pytest.mark.slow if pair in SLOW else ())
        for pair in itertools.product(METHOD_OPTIONS, BACKBONES)
    ],
)
def test_a_step_moves_every_weight_and_lowers_the_loss(method_name, name):
    schedule = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=40)
    backbone = models.create(name, **BACKBONES[name])
    method = METHODS[method_name](backbone, schedule, **METHOD_OPTIONS[method_name])

    @jax.jit
    def run(views):
        params, state = method.init(jax.random.key(0), views[0])

        def loss(params):
            return method.loss(params, state, {"views": views}, jax.random.key(1)).loss

        value, gradients = jax.value_and_grad(loss)(params)
        step = 1e-2 / optax.global_norm(gradients)
        return value, gradients, loss(jax.tree.map(lambda p, g: p - step * g, params, gradients))

    value, gradients, after = jax.device_get(run(VIEWS))
    assert after < value
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients["backbone"]):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0.0, jax.tree_util.keystr(path)
