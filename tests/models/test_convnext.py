import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ssl_jax import models
from ssl_jax.models import convnext
from tests.models import drawn
from tests.models.devices import assert_blocks_gather_their_shards, on_eight

IMAGES = np.random.default_rng(0).normal(size=(64, 8, 9, 1)).astype(np.float32)


def small(name="convnext_tiny", **options):
    return models.create(name, **{"stages": (1, 1), "base_width": 8, "patch_size": 2, **options})


def without_branches(variables):
    """The same variables, with blocks that add nothing."""
    zero = lambda path, leaf: np.zeros_like(leaf) if path[-1].key == "gamma" else leaf  # noqa: E731
    return jax.tree_util.tree_map_with_path(zero, variables)


def test_drop_path_leaves_out_branches_at_its_rate_on_any_number_of_devices():
    module = small(stages=(2,), drop_path=0.5)
    variables = drawn.variables_of(module, IMAGES)
    # Only the last block is ever left out, at a rate of 0.5. Without its branch the first block is all that there is.
    first_alone = jax.tree.map(np.copy, variables)
    first_alone["params"]["stages_0"]["blocks_1"]["gamma"][:] = 0.0

    def features(variables, images, axis_name=None):
        return module.apply(variables, images, train=True, axis_name=axis_name, rngs={"dropout": jax.random.key(1)})

    split = on_eight(functools.partial(features, axis_name="data"))

    @jax.jit
    def run(variables, first_alone, images):
        found = features(variables, images), split(variables, images)
        return *found, *(module.apply(v, images) for v in (first_alone, variables))

    h, on_devices, shallower, whole = jax.device_get(run(variables, first_alone, IMAGES))
    np.testing.assert_allclose(on_devices, h, atol=1e-5)
    left_out = np.all(np.abs(h - shallower) < 1e-5, axis=1)
    assert 0.3 < left_out.mean() < 0.7
    assert np.all(np.abs(h - whole).max(axis=1) > 1e-3)  # the others have the branch twice
    assert small(stages=(1, 2), drop_path=0.4).drop_rates == [0.0, 0.2, 0.4]


def test_the_last_normalization_is_of_the_mean_and_of_each_position():
    module = small()
    variables = drawn.variables_of(module, IMAGES)
    norm = variables["params"]["head"]["norm"]
    first = {**variables, "params": {**variables["params"], "norm_pre": norm}}

    @jax.jit
    def run(variables, first, images):
        of_first = small(pool="norm_mean")
        maps = [m.apply(v, images, method="feature_map") for m, v in ((module, variables), (of_first, first))]
        return maps, module.apply(variables, images), of_first.apply(first, images)

    (found, same), h, mean = jax.device_get(run(variables, first, IMAGES))
    assert found.shape == (64, 2, 2, 16)  # 9 columns: the last one fills no patch
    np.testing.assert_array_equal(found, same)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), mean, atol=1e-5)
    for normalized in (found, h):
        plain = (normalized - norm["bias"]) / norm["scale"]
        np.testing.assert_allclose(plain.mean(axis=-1), 0.0, atol=1e-5)
        np.testing.assert_allclose(plain.std(axis=-1), 1.0, atol=1e-3)
    assert np.abs(h - mean).max() > 0.1


def test_channels_compete_by_their_norms():
    x = np.zeros((2, 2, 2, 3), np.float32)
    x[0, 0, 0], x[0, 1, 1], x[1] = [3.0, 0.0, 1.0], [4.0, 0.0, 0.0], 0.0  # norms 5, 0, 1 and 0, 0, 0; their means 2, 0
    module = convnext.GRN()
    params = {"scale": np.array([1.0, 2.0, -0.5], np.float32), "bias": np.array([0.0, 0.5, 0.25], np.float32)}

    @jax.jit
    def run(params, x):
        total = lambda params, x: jnp.sum(module.apply({"params": params}, x) ** 2)  # noqa: E731
        start = module.init(jax.random.key(0), x)
        return module.apply({"params": params}, x), module.apply(start, x), jax.grad(total, argnums=(0, 1))(params, x)

    y, at_start, gradients = run(params, x)
    np.testing.assert_allclose(y, x + params["scale"] * x * [2.5, 0.0, 0.5] + params["bias"], rtol=1e-5)
    np.testing.assert_array_equal(at_start, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))  # also where a channel is 0 everywhere


def test_weights_start_as_timms():
    module = small("convnextv2_atto", base_width=40, layer_scale=1e-6)
    params = jax.jit(module.init)(jax.random.key(0), IMAGES)["params"]
    for path, leaf in flatten_dict(params).items():
        if path[-1] == "kernel":
            assert 0.018 < np.std(leaf) < 0.022, path
        else:
            expected = {"gamma": 1e-6, "bias": 0.0, "scale": 0.0 if "grn" in path else 1.0}[path[-1]]
            np.testing.assert_allclose(leaf, expected, err_msg=str(path))


def test_the_sum_of_branches_is_float32_where_they_are_bfloat16():
    module = small(stages=(1,), dtype="bfloat16")
    variables = drawn.variables_of(module, IMAGES)
    little = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 1e-4 * leaf if path[-1].key == "gamma" else leaf, variables
    )
    both = little, without_branches(variables)
    found, nothing = jax.jit(lambda both, x: [module.apply(v, x) for v in both])(both, IMAGES)
    assert np.mean(np.asarray(found) != np.asarray(nothing)) > 0.9  # in bfloat16 1e-4 of a number changes few of them


def test_images_too_small_for_the_stages_are_refused():
    module = models.create("convnext_tiny")
    with pytest.raises(ValueError, match=r"28x40 pixels is too small for 4 stages.* at least 32; choose a smaller"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 28, 40, 1)))


def test_blocks_gather_their_shards():
    module = small("convnextv2_atto", remat="block")
    params = drawn.variables_of(module, IMAGES)["params"]
    assert_blocks_gather_their_shards(module, params, IMAGES, least=10)
