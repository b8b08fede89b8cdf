import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ssl_jax import models
from ssl_jax.models.vit import relative_index, sincos_positions

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8, 4, 1)), jnp.float32)


def small(**options):
    return models.create("vit_tiny_patch16_224", **{"dim": 12, "depth": 2, "patch_size": 2, "image_size": 8, **options})


def test_sincos_positions_are_columns_then_rows():
    positions = sincos_positions((2, 3), 8)[0]  # wavelengths 2 pi and 200 pi
    assert positions.shape == (6, 8)
    row, column = 1, 2
    expected = [f(angle / scale) for angle in (column, row) for f in (np.sin, np.cos) for scale in (1, 100)]
    np.testing.assert_allclose(positions[row * 3 + column], expected, atol=1e-6)


def test_sincos_positions_fit_any_image_without_weights():
    module = small(positions="sincos")
    variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    assert "pos_embed" not in variables["params"]
    assert jax.eval_shape(module.apply, variables, IMAGES[:, :6]).shape == (64, 12)


def test_images_that_the_patches_do_not_fill_are_refused():
    with pytest.raises(ValueError, match="5x4 pixels does not divide into patches of 2"):
        jax.eval_shape(small().init, jax.random.key(0), IMAGES[:, :5])


def test_drop_path_leaves_out_whole_branches_at_its_rate_on_any_number_of_devices():
    module = small(drop_path=0.5)
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)

    def features(variables, images, axis_name=None):
        return module.apply(variables, images, train=True, axis_name=axis_name, rngs={"dropout": jax.random.key(1)})

    mesh = Mesh(np.asarray(jax.devices()[:8]), ("data",))
    split = jax.shard_map(
        lambda variables, images: features(variables, images, "data"),
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        check_vma=True,
    )
    h = jax.jit(features)(variables, IMAGES)
    np.testing.assert_allclose(jax.jit(split)(variables, IMAGES), h, atol=1e-5)
    # The last block's two branches are each kept for half of the images; both are left out for a quarter of them, and
    # those come out as from a network whose last block adds nothing.
    without = jax.tree.map(jnp.copy, variables)
    for branch, last in (("attn", "proj"), ("mlp", "fc2")):
        layer = without["params"]["blocks_1"][branch][last]
        without["params"]["blocks_1"][branch][last] = jax.tree.map(jnp.zeros_like, layer)
    left_out = np.all(np.abs(h - jax.jit(module.apply)(without, IMAGES)) < 1e-6, axis=1)
    assert 0.1 < left_out.mean() < 0.4


def test_drop_path_is_off_outside_training():
    variables = jax.jit(small().init)(jax.random.key(0), IMAGES)
    h = [jax.jit(small(drop_path=rate).apply)(variables, IMAGES) for rate in (0.0, 0.5)]
    np.testing.assert_array_equal(*h)


@pytest.mark.parametrize("class_token", [True, False])
def test_patches_that_are_not_valid_change_nothing(class_token):
    module = small(positions="sincos", class_token=class_token, pool="norm_mean")
    x, prefix = IMAGES[:4], int(class_token)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    # Images 0 and 1 keep 3 of 8 patches, the others 5.
    keep = jnp.array([[6, 1, 4, 0, 7]] * 4)
    valid = jnp.arange(5) < jnp.array([3, 3, 5, 5])[:, None]

    apply = jax.jit(functools.partial(module.apply, variables, x, tokens=True))
    padded, short, full = (
        np.asarray(apply(**o)) for o in ({"keep": keep, "valid": valid}, {"keep": keep[:, :3]}, {"keep": keep})
    )
    np.testing.assert_allclose(padded[:2, : prefix + 3], short[:2], atol=1e-5)
    np.testing.assert_allclose(padded[2:], full[2:], atol=1e-5)
    assert np.abs(padded[:2, : prefix + 3] - full[:2, : prefix + 3]).max() > 1e-3


def test_valid_without_keep_or_of_a_mean_is_refused():
    module, valid = small(), jnp.ones((64, 8), bool)
    for options in ({"tokens": True}, {"keep": jnp.zeros((64, 8), int)}):
        with pytest.raises(ValueError, match="takes tokens=True"):
            jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGES, valid=valid, **options))  # noqa: B023


def test_relative_index_has_a_row_for_each_offset_and_three_for_the_class_token():
    height, width = 2, 3
    offsets = [(i, j) for i in range(1 - height, height) for j in range(1 - width, width)]
    index = relative_index((height, width), class_token=True)
    patches = [(i, j) for i in range(height) for j in range(width)]
    for query, (i, j) in enumerate(patches):
        for key, (k, m) in enumerate(patches):
            assert index[1 + query, 1 + key] == offsets.index((i - k, j - m))
    assert np.all(index[0, 1:] == 15) and np.all(index[1:, 0] == 16) and index[0, 0] == 17
    np.testing.assert_array_equal(relative_index((height, width), class_token=False), index[1:, 1:])


def test_relative_positions_are_added_to_the_logits_of_every_block():
    options = dict(positions="relative", image_size=(8, 4), class_token=False, pool="norm_mean", heads=2)
    module, x = small(**options), IMAGES[:2]  # 4 x 2 patches
    variables = jax.jit(module.init)(jax.random.key(0), x)
    table = variables["params"]["rel_pos_bias"]["relative_position_bias_table"]
    assert table.shape == (7 * 3, 2) and not np.any(table)
    params = jax.tree.map(lambda leaf: 10.0 * leaf, variables["params"])  # so that branches matter
    # Towards the patch below, the row of offset (-1, 0), so strongly that no other patch is seen.
    params["rel_pos_bias"] = {"relative_position_bias_table": table.at[2 * 3 + 1].set(1e4)}
    apply = jax.jit(functools.partial(module.apply, tokens=True))
    tokens = apply({"params": params}, x)
    other = apply({"params": params}, x.at[:, 6:, :2].set(9.0))  # the last patch of the first column
    changed = np.any(np.abs(tokens - other) > 1e-4, axis=(0, 2)).reshape(4, 2)
    # Each of the two blocks carries it one patch up. Patches of the last row have none below, and see all.
    np.testing.assert_array_equal(changed, [[False, False], [True, False], [True, True], [True, True]])


def test_relative_positions_of_left_out_patches_and_of_another_size_are_refused():
    module = small(positions="relative", image_size=(8, 4))
    with pytest.raises(ValueError, match="need a position of their own"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGES, keep=jnp.zeros((64, 2), int)))
    with pytest.raises(ValueError, match=r"relative positions are of \(4, 2\) patches, got an image of \(3, 2\)"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGES[:, :6]))
