"""Swin: what its equality with timm (test_models.py) does not show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import PartitionSpec as P

from ssl_jax import models, weights
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.models import maps, swin
from tests.methods import drawn as methods_drawn
from tests.models import drawn
from tests.models.devices import assert_blocks_gather_their_shards, on_eight

NAME = "swin_tiny_patch4_window7_224"
IMAGES = np.random.default_rng(0).normal(size=(16, 20, 12, 1)).astype(np.float32)  # maps of 5 x 3 and 3 x 2 places


def small(**options):
    return models.create(NAME, **{"base_width": 8, "head_width": 4, "stages": (1, 2), "window": 2, **options})


def value_and_gradient(module, variables, images, axis_name=None):
    def loss(variables):
        h = module.apply(variables, images, train=True, axis_name=axis_name, rngs={"dropout": jax.random.key(1)})
        value = jnp.mean(h**3)
        return value if axis_name is None else jax.lax.pmean(value, axis_name)

    return jax.value_and_grad(loss)(variables)


def test_recomputed_and_with_drop_path_it_is_the_same_on_any_number_of_devices():
    options = dict(stages=(2,), drop_path=0.5)  # the second block is shifted, and left out for half of the images
    plain, remat = small(**options), small(**options, remat="block")
    variables = drawn.variables_of(plain, IMAGES)
    split = on_eight(functools.partial(value_and_gradient, remat, axis_name="data"), out_specs=P())

    @jax.jit
    def run(*arrays):
        return split(*arrays), value_and_gradient(plain, *arrays), jnp.mean(plain.apply(*arrays) ** 3)

    found, expected, without_drop_path = run(variables, IMAGES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert abs(without_drop_path - expected[0]) > 1e-3


def test_blocks_gather_their_shards():
    module = small(remat="block")
    params = drawn.variables_of(module, IMAGES)["params"]
    assert_blocks_gather_their_shards(module, params, IMAGES, least=20)


def test_the_map_has_the_features_as_its_mean():
    module = small()
    variables = drawn.variables_of(module, IMAGES)
    h, found = module.apply(variables, IMAGES), maps.patch_map(module, variables, IMAGES)
    assert found.shape == (16, 3, 2, 16) and found.dtype == jnp.float32
    np.testing.assert_allclose(np.mean(found, axis=(1, 2)), h, atol=1e-5)


def test_a_mask_hides_the_patches_of_its_squares():
    module, images = small(stages=(1,), window=1, patch_size=2), IMAGES[:, :4, :6]  # each place sees itself alone
    variables, token = drawn.variables_of(module, images), np.ones(8, np.float32)
    mask = np.arange(6) == np.arange(16)[:, None] % 6
    apply = functools.partial(module.apply, variables, images)
    shown, found = apply(method="feature_map"), apply(method="masked_map", mask=mask, mask_token=token)
    changed = np.any(np.abs(found - shown) > 1e-4, axis=-1).reshape(16, 6)
    np.testing.assert_array_equal(changed, mask)
    with pytest.raises(ValueError, match="20x12 pixels does not divide into patches of 8"):
        small().apply(drawn.variables_of(small(), IMAGES), IMAGES, method="masked_map", mask=mask, mask_token=token)


@pytest.mark.parametrize("side, window", [(224, 7), (96, 7), (160, 7), (28, 7), (384, 12), (192, 6), (64, 8), (8, 7)])
def test_windows_are_told_from_the_shapes_of_their_tables(side, window):
    # Which of several image sizes it is does not matter, if windows and shifts are the same.
    windows = swin.stage_windows((side // 4, side // 4), 4, window)
    table = "layers.{}.blocks.0.attn.relative_position_bias_table"
    shapes = {
        table.format(i): ((2 * rows - 1) * (2 * columns - 1), 3) for i, ((rows, columns), _) in enumerate(windows)
    }
    found = swin.options_of({**shapes, "patch_embed.proj.weight": (96, 3, 4, 4)})
    assert models.create(NAME, **found).windows == windows
    assert found["patch_size"] == 4


def test_indices_and_masks_that_older_files_hold_are_ignored(tmp_path):
    module, images = small(), IMAGES[:2]
    variables = drawn.variables_of(module, images)
    extra = ("layers.0.blocks.0.attn.relative_position_index", "layers.1.blocks.1.attn_mask", "head.fc.weight")
    tensors = {**weights.torch_tensors(variables), **dict.fromkeys(extra, np.zeros((4, 4), np.float32))}
    safetensors.numpy.save_file(tensors, tmp_path / "weights.safetensors")
    found = weights.load_backbone(tmp_path / "weights.safetensors", module).variables
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_tables_of_no_square_image_tell_nothing():
    table = "layers.{}.blocks.0.attn.relative_position_bias_table"
    shapes = {"patch_embed.proj.weight": (96, 3, 4, 4), **{table.format(i): (7 * 13, 3) for i in range(4)}}
    assert swin.options_of(shapes) == {}
    assert swin.options_of({}) == {}


def test_first_weights_are_timms():
    params = jax.device_get(jax.jit(small().init)(jax.random.key(0), IMAGES))["params"]
    block = params["layers_1"]["blocks_0"]
    for leaf in (
        block["attn"]["qkv"]["kernel"],
        block["mlp"]["fc2"]["kernel"],
        params["layers_1"]["downsample"]["reduction"]["kernel"],
    ):
        np.testing.assert_allclose(leaf.std(), 0.02, rtol=0.15)
    assert 0.01 < block["attn"]["relative_position_bias_table"].std() < 0.03
    assert not np.any(block["attn"]["qkv"]["bias"])
    projection = params["patch_embed"]["proj"]["kernel"]  # 16 pixels go into it: uniform in +-1/4
    assert 0.2 < np.abs(projection).max() <= 0.25


@pytest.mark.parametrize(
    "name, options", [("simclr", {}), pytest.param("densecl", {"queue_size": 32}, marks=pytest.mark.slow)]
)
def test_a_step_of_a_method_lowers_the_loss_as_its_gradient_says(name, options):
    schedule = Schedule(batch_size=16, steps=100, steps_per_epoch=10, num_images=160)
    method = METHODS[name](small(stages=(1, 1)), schedule, projector=(16, 8), **options)

    @jax.jit
    def run(params, state, images):
        def loss(params):
            return method.loss(params, state, {"views": (images, images[:, ::-1])}, jax.random.key(1)).loss

        value, gradient = jax.value_and_grad(loss)(params)
        squares = jax.tree.map(lambda g: jnp.sum(g**2), gradient)
        rate = 1e-2 / sum(jax.tree.leaves(squares))  # so that the loss falls by 0.01
        return value - loss(jax.tree.map(lambda p, g: p - rate * g, params, gradient)), squares["backbone"]

    fall, squares = jax.device_get(run(*methods_drawn.draw(method, IMAGES), IMAGES))
    np.testing.assert_allclose(fall, 1e-2, rtol=0.1)
    assert all(square > 0.0 for square in jax.tree.leaves(squares))
