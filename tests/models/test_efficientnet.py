import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from ssl_jax import models
from ssl_jax.models.efficientnet import scaled
from tests.models import drawn
from tests.models.devices import on_eight, trained

IMAGES = np.random.default_rng(0).normal(size=(16, 12, 10, 1)).astype(np.float32)


def small(**options):
    return models.create("efficientnet_b0", **{"stages": (2, 2), "width": 0.25, **options})


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_training_gives_the_same_on_one_device_and_eight(drop_path):
    module = small(drop_path=drop_path)
    variables = drawn.variables_of(module, IMAGES)

    outcome = functools.partial(trained, module)
    split = on_eight(functools.partial(outcome, axis_name="data"), out_specs=P())
    found, expected = jax.jit(lambda v, x: (split(v, x), outcome(v, x)))(variables, IMAGES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_drop_path_leaves_out_whole_branches():
    module = small(stages=(2,), drop_path=0.8)  # the second block's rate is half of it
    variables = drawn.variables_of(module, IMAGES)
    without = jax.tree.map(np.copy, variables)
    for leaf in without["params"]["blocks_0_1"]["bn2"].values():
        leaf[:] = 0.0
    images = np.random.default_rng(1).normal(size=(64, 8, 8, 1)).astype(np.float32)
    layered = {"batch_norm": "layer"}  # else the rows that are left out would change the statistics of the others

    @jax.jit
    def run(variables, without, images):
        of_layers = module.clone(**layered)
        h = of_layers.apply(variables, images, train=True, rngs={"dropout": jax.random.key(1)})
        return h, of_layers.apply(without, images)

    h, shallower = jax.device_get(run(*({"params": v["params"]} for v in (variables, without)), images))
    left_out = np.all(np.abs(h - shallower) < 1e-6, axis=1)
    assert 0.2 < left_out.mean() < 0.6


def test_channels_are_rounded_to_multiples_of_eight_within_a_tenth():
    # 24 * 1.1 = 26.4 and 80 * 1.1 = 88; 16 * 0.25 = 4, but at least 8; 8 would be less than 0.9 * 11.2, so 16
    assert [scaled(*of) for of in ((24, 1.1), (80, 1.1), (16, 0.25), (32, 0.35), (1280, 1.4))] == [24, 88, 8, 16, 1792]


def test_weights_start_as_timms():
    params = jax.jit(small(width=1.0).init)(jax.random.key(0), IMAGES)["params"]
    for path, leaf in flatten_dict(params).items():
        if path[-1] == "kernel":
            outputs = leaf.shape[0] * leaf.shape[1] * (1 if "conv_dw" in path else leaf.shape[-1])
            assert 0.7 < np.std(leaf) / np.sqrt(2 / outputs) < 1.3, path
        else:
            np.testing.assert_array_equal(leaf, 1.0 if path[-1] == "scale" else 0.0, err_msg=str(path))
