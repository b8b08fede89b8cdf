import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from ssl_jax import models
from tests.models import drawn
from tests.models.devices import on_eight, trained

IMAGES = np.random.default_rng(0).normal(size=(16, 12, 10, 1)).astype(np.float32)
SMALL = {"name": "resnet8", "stages": (1, 1), "width": 0.5}  # the second block has a stride and a downsample


def test_training_gives_the_same_on_one_device_and_eight():
    module = models.create(**SMALL)
    variables = drawn.variables_of(module, IMAGES)

    outcome = functools.partial(trained, module)
    split = on_eight(functools.partial(outcome, axis_name="data"), out_specs=P())
    found, expected = jax.jit(lambda v, x: (split(v, x), outcome(v, x)))(variables, IMAGES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize("name, last", [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_residual_is_of_the_last_scale_of_each_block(name, last):
    module = models.create(name, stages=(1, 1), zero_init_residual=True, width=1 / 16)

    @jax.jit
    def scales(images):
        params = module.init(jax.random.key(0), images)["params"]
        return {path: leaf for path, leaf in flatten_dict(params).items() if path[-1] == "scale"}

    for path, leaf in scales(IMAGES).items():
        np.testing.assert_array_equal(leaf, 0.0 if path[-2] == last else 1.0)


@pytest.mark.parametrize("stem, side", [("imagenet", 8), ("small", 32), ("strided", 16)])
def test_stems_keep_their_share_of_the_resolution(stem, side):
    module = models.create("resnet18", stem=stem, stages=(1,))
    images = jnp.zeros((1, 32, 32, 1))
    state = jax.eval_shape(functools.partial(module.init, capture_intermediates=True), jax.random.key(0), images)
    assert state["intermediates"]["layer1_0"]["__call__"][0].shape[1:3] == (side, side)
