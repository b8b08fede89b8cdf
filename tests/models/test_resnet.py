import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from ssl_jax import models
from ssl_jax.models.resnet import SelectiveKernel
from ssl_jax.weights import load_backbone, save_backbone
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


@pytest.mark.parametrize("stem, side", [("imagenet", 8), ("deep", 8), ("small", 32), ("strided", 16)])
def test_stems_keep_their_share_of_the_resolution(stem, side):
    module = models.create("resnet18", stem=stem, stages=(1,))
    images = jnp.zeros((1, 32, 32, 1))
    state = jax.eval_shape(functools.partial(module.init, capture_intermediates=True), jax.random.key(0), images)
    assert state["intermediates"]["layer1_0"]["__call__"][0].shape[1:3] == (side, side)


@pytest.mark.parametrize("name, width, millions", [("resnet50", 1.0, 35), ("resnet152", 3.0, 795)])
def test_selective_kernels_have_the_weights_of_simclr_v2s_table(name, width, millions):
    """The table of google-research/simclr's README, which does not count the classifier."""
    module = models.create(name, width=width, stem="deep", selective_kernels=True)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6) == millions


def test_a_selective_kernel_is_a_mean_of_two_convolutions_weighted_by_the_image():
    module = SelectiveKernel(4, 2, FrozenDict(kind="sync", groups=1, dtype=jnp.dtype("float32")))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 6, 6, 5)).astype(np.float32)
    variables = module.init(jax.random.key(0), x, False, None)
    variables = jax.tree.map(lambda leaf: leaf + 0.3 * rng.uniform(size=leaf.shape).astype(np.float32), variables)
    got, params, stats = module.apply(variables, x, False, None), variables["params"], variables["batch_stats"]

    def normalized(y, name):
        p, s = params[name], stats[name]
        return np.maximum((y - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"], 0)

    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    both = normalized(np.einsum("bhwcij,ijco->bhwo", windows, params["conv"]["kernel"]), "bn")
    first, second = both[..., :4], both[..., 4:]
    pooled = normalized(np.mean(first + second, axis=(1, 2)) @ params["fc1"]["kernel"][0, 0], "fc1_bn")
    scores = np.asarray(pooled @ params["fc2"]["kernel"][0, 0])
    share = 1 / (1 + np.exp(scores[:, 4:] - scores[:, :4]))[:, None, None]
    assert got.shape == (3, 3, 3, 4) and np.ptp(share) > 0.01
    np.testing.assert_allclose(got, share * first + (1 - share) * second, rtol=1e-4, atol=1e-5)


def test_head_layers_come_after_the_mean_of_the_map():
    module = models.create(**SMALL, head_layers=1)
    variables = drawn.variables_of(module, IMAGES)
    head = variables["params"]["kept_head"]
    assert head["Dense_0"]["kernel"].shape == (module.dim, module.dim) == (16, 16)
    mean = jnp.mean(module.apply(variables, IMAGES, method="feature_map"), axis=(1, 2))
    h, s = mean @ head["Dense_0"]["kernel"], variables["batch_stats"]["kept_head"]["BatchNorm_0"]
    p = head["BatchNorm_0"]
    expected = np.maximum((h - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"], 0)
    np.testing.assert_allclose(module.apply(variables, IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_a_backbone_with_head_layers_is_saved_and_loaded(tmp_path):
    module = models.create(**SMALL, head_layers=1)
    variables = drawn.variables_of(module, IMAGES)
    meta = {"model": {**SMALL, "head_layers": 1}, "mean": (0.0,), "std": (1.0,), "image_size": (12, 10), "channels": 1}
    save_backbone(tmp_path, variables, meta)
    loaded = load_backbone(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_selective_kernels_want_bottlenecks():
    with pytest.raises(ValueError, match="selective_kernels=True is of bottlenecks"):
        models.create("resnet18", selective_kernels=True)
