import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax import models
from ssl_jax.models import blocks, stochastic_depth
from ssl_jax.models.positions import relative_index, sincos_positions
from tests.models import drawn
from tests.models.devices import EACH, on_eight

IMAGES = np.random.default_rng(0).normal(size=(64, 8, 4, 1)).astype(np.float32)


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


def test_class_token_and_registers_of_one_size_may_have_a_last_norm_that_is_given():
    module = small(registers=2, depth=1)
    variables = drawn.variables_of(module, IMAGES[:2])
    given = {"scale": np.full(12, 2.0, np.float32), "bias": np.arange(12, dtype=np.float32)}
    sizes = (IMAGES[:2], IMAGES[:2, :4])
    (one, two), (_, own) = (
        module.apply(variables, sizes, method="tokens", prefix_norm=norms) for norms in ((None, given), None)
    )
    # LayerNorm by 1 and 0, of which both are the affine map of their own.
    plain = (own - variables["params"]["norm"]["bias"]) / variables["params"]["norm"]["scale"]
    np.testing.assert_allclose(two[:, :3], 2.0 * plain[:, :3] + given["bias"], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(two[:, 3:], own[:, 3:])
    np.testing.assert_array_equal(one, module.apply(variables, IMAGES[:2], method="tokens"))
    with pytest.raises(ValueError, match="prefix_norm is of the tokens before the patches"):
        module.apply(variables, IMAGES[:2], prefix_norm=given)


def test_drop_path_leaves_out_whole_branches_at_its_rate_on_any_number_of_devices():
    module = small(depth=1, drop_path=0.5, drop_path_uniform=True)
    variables = drawn.variables_of(module, IMAGES)
    # The block's two branches are each kept for half of the images; both are left out for a quarter of them, and those
    # come out as from a network whose block adds nothing.
    without = jax.tree.map(np.copy, variables)
    for branch, last in (("attn", "proj"), ("mlp", "fc2")):
        for leaf in without["params"]["blocks_0"][branch][last].values():
            leaf[:] = 0.0

    def features(variables, images, axis_name=None):
        return module.apply(variables, images, train=True, axis_name=axis_name, rngs={"dropout": jax.random.key(1)})

    split = on_eight(functools.partial(features, axis_name="data"))

    @jax.jit
    def run(variables, without, images):
        return features(variables, images), split(variables, images), module.apply(without, images)

    h, on_devices, shallower = run(variables, without, IMAGES)
    np.testing.assert_allclose(on_devices, h, atol=1e-5)
    left_out = np.all(np.abs(h - shallower) < 1e-6, axis=1)
    assert 0.1 < left_out.mean() < 0.4


def test_of_each_group_of_images_as_many_keep_a_branch_on_any_number_of_devices():
    module = small(depth=1, drop_path=0.4, drop_path_uniform=True, drop_path_group=8)
    variables = drawn.variables_of(module, IMAGES)
    for leaf in variables["params"]["blocks_0"]["mlp"]["fc2"].values():
        leaf[:] = 0.0  # a block without a feed-forward branch
    without = jax.tree.map(np.copy, variables)
    for leaf in without["params"]["blocks_0"]["attn"]["proj"].values():
        leaf[:] = 0.0

    def features(variables, images, axis_name=None):
        return module.apply(variables, images, train=True, axis_name=axis_name, rngs={"dropout": jax.random.key(1)})

    split = on_eight(functools.partial(features, axis_name="data"))

    @jax.jit
    def run(variables, without, images):
        return features(variables, images), split(variables, images), module.apply(without, images)

    h, on_devices, skipped = jax.device_get(run(variables, without, IMAGES))
    kept = np.any(np.abs(h - skipped) > 1e-6, axis=1).reshape(8, 8)
    np.testing.assert_array_equal(kept.sum(axis=1), 4)  # int(8 * (1 - 0.4)), as DINOv2 counts
    assert len(np.unique(kept, axis=0)) > 4  # in each group others
    np.testing.assert_allclose(on_devices, h, atol=1e-5)
    with pytest.raises(ValueError, match=r"drop_path_group=8 does not divide the 12 images.* use 4, another divisor"):
        jax.eval_shape(features, variables, IMAGES[:12])


def test_a_branch_is_added_to_the_images_that_keep_it_alone():
    x = np.arange(8, dtype=np.float32).reshape(8, 1, 1)
    attend = np.arange(8).reshape(8, 1, 1) % 2 == 0
    drop = np.array([[0, 3], [1, 2]])  # of two groups of four images
    scales = np.array([0.0, 2.0] * 4, np.float32)

    @jax.jit
    def run(x, attend, drop, scales):
        branch = lambda x, attend: jnp.where(attend, 10.0 * x, 0.0)  # noqa: E731
        return blocks.add_branch(x, branch, drop, attend), blocks.add_branch(x, lambda x, _: 10.0 * x, scales, None)

    of_groups, of_scales = run(x, attend, drop, scales)
    # Twice the branch, as half of the images have it: rows 0, 3, 5, 6, of which attend lets 0 and 6 through.
    expected = np.arange(8.0) + 2.0 * np.array([0, 0, 0, 0, 0, 0, 60, 0])
    np.testing.assert_allclose(of_groups[:, 0, 0], expected)
    expected = np.arange(8.0) + 20.0 * np.arange(8) * (np.arange(8) % 2)
    np.testing.assert_allclose(of_scales[:, 0, 0], expected)


def test_what_a_group_leaves_out_is_not_computed():
    def flops(**options):
        module = small(depth=1, dim=48, heads=3, drop_path=0.5, drop_path_uniform=True, **options)
        variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)

        def loss(variables):
            images = jnp.asarray(IMAGES)
            return jnp.sum(module.apply(variables, images, train=True, rngs={"dropout": jax.random.key(1)}))

        return jax.jit(jax.grad(loss)).lower(variables).cost_analysis()["flops"]

    assert 0.45 < flops(drop_path_group=16) / flops() < 0.6  # half of the block, and the patch embedding


def test_drop_path_grows_or_is_uniform():
    assert small(depth=3, drop_path=0.4).drop_rates == [0.0, 0.2, 0.4]
    assert small(depth=3, drop_path=0.4, drop_path_uniform=True).drop_rates == [0.4, 0.4, 0.4]
    assert [stochastic_depth.count_kept(*of) for of in ((128, 0.3), (64, 0.4), (10, 0.3), (4, 0.9))] == [89, 38, 7, 1]


def test_groups_that_do_nothing_or_do_not_fit_are_refused():
    for options, message in (
        (dict(drop_path_group=-1), "drop_path_group must be at least 0"),
        (dict(drop_path=0.1, drop_path_group=1), "drop_path_group=1 leaves out no image"),
        (dict(drop_path=0.5, drop_path_group=8, scan=True), "use drop_path_uniform=True"),
        (dict(drop_path=0.5, drop_path_group=8, microbatch=12), "does not divide microbatch=12"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**options)


def test_the_sum_of_branches_is_float32_where_they_are_bfloat16():
    module = small(depth=1, dtype="bfloat16", layer_scale=1e-4, positions="sincos")
    images = IMAGES[:2]
    variables = drawn.variables_of(module, images)
    of_scale = lambda scale: jax.tree_util.tree_map_with_path(  # noqa: E731
        lambda path, leaf: np.full_like(leaf, scale) if path[-1].key == "gamma" else leaf, variables
    )

    @jax.jit
    def tokens(both, images):  # before the last LayerNorm
        return [module.apply(variables, images, last_blocks=1) for variables in both]

    little, nothing = jax.device_get(tokens([of_scale(1e-4), of_scale(0.0)], images))
    assert np.mean(little != nothing) > 0.9  # in bfloat16 1e-4 of a number changes few of them


def test_drop_path_is_off_outside_training():
    plain, dropping = small(depth=1), small(depth=1, drop_path=0.5)
    variables = drawn.variables_of(plain, IMAGES)
    np.testing.assert_array_equal(*jax.jit(lambda v, x: (plain.apply(v, x), dropping.apply(v, x)))(variables, IMAGES))


WITHOUT_CLASS_TOKEN = small(class_token=False, pool="norm_mean")


@pytest.fixture(scope="module")
def without_class_token():
    return drawn.variables_of(WITHOUT_CLASS_TOKEN, IMAGES[:2])


@jax.jit
def _tokens_of(variables, images, attend):
    return WITHOUT_CLASS_TOKEN.apply(variables, images, tokens=True, attend=attend)


def test_attend_decides_which_patches_a_token_depends_on(without_class_token):
    # Patches 0 and 1 see each other, each later one itself and those before: 8 patches, in two blocks.
    attend = np.tril(np.ones((8, 8), bool))
    attend[:2, :2] = True
    of_images = np.broadcast_to(attend, (2, 8, 8))
    before = _tokens_of(without_class_token, IMAGES[:2], of_images)
    for patch in (0, 1, 3, 7):
        row, column = divmod(patch, 2)
        images = IMAGES[:2].copy()
        images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 1.0
        after = _tokens_of(without_class_token, images, of_images)
        changed = np.any(np.abs(after - before) > 1e-5, axis=(0, 2))
        np.testing.assert_array_equal(changed, attend[:, patch])


def test_attend_is_broadcast_and_by_default_all_see_all():
    module = small(depth=1, class_token=False, pool="norm_mean")
    variables = drawn.variables_of(module, IMAGES[:2])

    @jax.jit
    def run(variables, images, attends):
        return [module.apply(variables, images, tokens=True, attend=attend) for attend in (None, *attends)]

    expected, *found = run(variables, IMAGES[:2], [np.ones(shape, bool) for shape in ((1, 1, 1), (2, 1, 8), (1, 8, 8))])
    for tokens in found:
        np.testing.assert_allclose(tokens, expected, atol=1e-6)


def test_keys_that_nothing_attends_to_are_as_if_left_out(without_class_token):
    # Different ones of each image: the patches that are kept come out as if they alone had entered the blocks.
    keep = np.array([[0, 2, 3, 6], [1, 4, 5, 7]])
    valid = np.any(keep[:, :, None] == np.arange(8), axis=1)[:, None]  # [batch, 1, keys]
    alone = WITHOUT_CLASS_TOKEN.apply(without_class_token, IMAGES[:2], tokens=True, keep=keep)
    among_all = _tokens_of(without_class_token, IMAGES[:2], np.broadcast_to(valid, (2, 8, 8)))
    np.testing.assert_allclose(np.take_along_axis(np.asarray(among_all), keep[..., None], axis=1), alone, atol=1e-5)


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
    init = jax.jit(lambda rng, x: module.init(rng, x)["params"]["rel_pos_bias"])
    table = init(jax.random.key(0), x)["relative_position_bias_table"]
    assert table.shape == (7 * 3, 2) and not np.any(table)
    params = drawn.variables_of(module, x)["params"]
    # Towards the patch below, the row of offset (-1, 0), so strongly that no other patch is seen.
    table = np.zeros_like(table)
    table[2 * 3 + 1] = 1e4
    params["rel_pos_bias"] = {"relative_position_bias_table": table}
    apply = jax.jit(functools.partial(module.apply, tokens=True))
    tokens = apply({"params": params}, x)
    changed_x = x.copy()
    changed_x[:, 6:, :2] = 9.0  # the last patch of the first column
    other = apply({"params": params}, changed_x)
    changed = np.any(np.abs(tokens - other) > 1e-4, axis=(0, 2)).reshape(4, 2)
    # Each of the two blocks carries it one patch up. Patches of the last row have none below, and see all.
    np.testing.assert_array_equal(changed, [[False, False], [True, False], [True, True], [True, True]])


def test_relative_positions_of_left_out_patches_and_of_another_size_are_refused():
    module = small(positions="relative", image_size=(8, 4))
    with pytest.raises(ValueError, match="needs a position for each patch"):
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x, keep=jnp.zeros((64, 2), int)), IMAGES)
    with pytest.raises(
        ValueError, match=r"relative positions are for a grid of \(4, 2\) patches, got an image of \(3, 2\)"
    ):
        jax.eval_shape(module.init, jax.random.key(0), IMAGES[:, :6])


def value_and_gradient(module, variables, images, attend, axis_name=None):
    def loss(variables):
        rngs = {"dropout": jax.random.key(1)}
        h = module.apply(variables, images, train=True, attend=attend, axis_name=axis_name, rngs=rngs)
        value = jnp.mean(h**3)
        return value if axis_name is None else jax.lax.pmean(value, axis_name)

    return jax.value_and_grad(loss)(variables)


def test_recomputed_and_in_turn_the_blocks_are_the_same_on_any_number_of_devices():
    plain, module = (
        small(drop_path=0.5),
        small(drop_path=0.5, remat="block", microbatch=4),
    )  # two of them on each device
    images = IMAGES[:, :4]  # four patches and the class token
    attend = np.random.default_rng(1).random((1, 5, 5)) < 0.7
    variables = drawn.variables_of(plain, images)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    assert jax.tree.structure(variables) == jax.tree.structure(shapes)
    split = on_eight(
        lambda variables, images, attend: value_and_gradient(module, variables, images, attend, "data"),
        in_specs=(P(), EACH, P()),
        out_specs=P(),
    )
    run = jax.jit(lambda *arrays: (split(*arrays), value_and_gradient(plain, *arrays)))
    (got_value, got), (value, gradient) = run(variables, images, attend)
    np.testing.assert_allclose(got_value, value, rtol=1e-5)
    jax.tree.map(lambda got, expected: np.testing.assert_allclose(got, expected, atol=1e-5), got, gradient)


def test_groups_are_the_same_recomputed_in_turn_and_as_a_loop():
    images = IMAGES[:16, :4]
    attend = np.random.default_rng(1).random((16, 5, 5)) < 0.7
    options = dict(drop_path=0.5, drop_path_uniform=True, drop_path_group=4)
    modules = [small(**options), small(**options, scan=True, remat="block", microbatch=8)]
    run = jax.jit(lambda *arrays: [value_and_gradient(module, *arrays) for module in modules])
    expected, got = run(drawn.variables_of(modules[0], images), images, attend)
    jax.tree.map(lambda got, expected: np.testing.assert_allclose(got, expected, atol=1e-5), got, expected)


def test_a_loop_gives_the_last_blocks_too():
    # With a share of left out branches that grows with the depth.
    plain, loop = (small(depth=3, drop_path=0.5, scan=scan) for scan in (False, True))
    variables, attend = drawn.variables_of(plain, IMAGES), np.random.default_rng(1).random((64, 9, 9)) < 0.7
    assert jax.tree.structure(variables) == jax.tree.structure(jax.eval_shape(loop.init, jax.random.key(0), IMAGES))

    @jax.jit
    def run(*arrays):
        options = dict(train=True, last_blocks=2, rngs={"dropout": jax.random.key(1)})
        return [module.apply(*arrays[:2], attend=arrays[2], **options) for module in (plain, loop)]

    expected, found = run(variables, IMAGES, attend)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_of_a_loop_the_program_does_not_grow_with_the_depth():
    def length(depth, **options):
        module = small(depth=depth, remat="block", **options)
        variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
        gradient = jax.grad(lambda variables, images: jnp.sum(module.apply(variables, images, train=True)))
        return str(jax.make_jaxpr(gradient)(variables, IMAGES)).count("dot_general")

    assert length(3, scan=True) == length(2, scan=True) < length(3) / 2


def test_microbatches_hold_the_activations_of_few_images():
    def temporaries(**options):
        module = small(dim=48, heads=3, depth=1, **options)
        variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
        gradient = jax.jit(jax.grad(lambda variables, images: jnp.sum(module.apply(variables, images, train=True))))
        return gradient.lower(variables, IMAGES).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(microbatch=8) < temporaries() / 3


def test_microbatches_that_do_not_divide_the_images_are_refused():
    module = small(microbatch=24)
    variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match="microbatch=24 does not divide the 64 images of a device"):
        jax.eval_shape(functools.partial(module.apply, train=True), variables, IMAGES)
    with pytest.raises(ValueError, match="microbatch must be at least 0"):
        small(microbatch=-1)


def test_swiglu_is_the_silu_of_one_linear_map_times_another():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    module = blocks.FeedForward(12, jnp.float32, "swiglu")
    variables = drawn.variables_of(module, x)
    p = variables["params"]
    assert p["fc1"]["kernel"].shape == (4, 12) and p["fc2"]["kernel"].shape == (6, 4)
    gate = x @ p["fc1"]["kernel"][:, :6] + p["fc1"]["bias"][:6]
    value = x @ p["fc1"]["kernel"][:, 6:] + p["fc1"]["bias"][6:]
    expected = (gate / (1 + np.exp(-gate)) * value) @ p["fc2"]["kernel"] + p["fc2"]["bias"]
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_swiglu_needs_an_even_width():
    with pytest.raises(ValueError, match=r"must be even, got 0\.25 \* 12"):
        models.create("vit_tiny_patch16_224", dim=12, heads=3, mlp="swiglu", mlp_ratio=0.25)


def test_a_model_of_rms_norms_without_biases_has_neither_offsets_nor_means():
    module = small(depth=1, norm_kind="rms", bias=False, qkv_bias=False, qk_norm=True, pool="norm_mean", norm_eps=1e-5)
    variables = drawn.variables_of(module, IMAGES[:2])
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
    assert [name for name in names if "bias" in name] == ["['params']['patch_embed']['proj']['bias']"]
    before = np.asarray(module.apply(variables, IMAGES[:2], last_blocks=1), np.float64)[:, 0]
    scale = variables["params"]["norm"]["scale"]
    expected = before / np.sqrt(np.mean(before**2, axis=-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(module.apply(variables, IMAGES[:2], tokens=True), expected, rtol=1e-4, atol=1e-5)
    given = {"scale": np.ones(12, np.float32), "bias": np.zeros(12, np.float32)}
    with pytest.raises(ValueError, match=r"use model\.norm_kind='layer', got 'rms'"):
        module.apply(variables, IMAGES[:2], method="tokens", prefix_norm=given)
