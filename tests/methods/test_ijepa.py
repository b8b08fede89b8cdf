import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ssl_jax import models
from ssl_jax.methods import METHODS, Run
from ssl_jax.methods.ijepa import Patches, block_sizes
from ssl_jax.models.patches import patchify, unpatchify

RUN = Run(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
VIT = dict(dim=16, depth=1, heads=2, patch_size=4, image_size=24, positions="sincos")
INDEX = jnp.array([3, 14, 15, 92])
LAST = (("attn", "proj"), ("mlp", "fc2"))


def make(vit=None, run=RUN, **options):
    backbone = models.create(
        "vit_tiny_patch16_224", **{**VIT, "class_token": False, "pool": "norm_mean", **(vit or {})}
    )
    return METHODS["ijepa"](backbone, run, **{"predictor_dim": 8, "predictor_depth": 1, "min_context": 4, **options})


def setup(**options):
    method = make(**options)
    x = jax.random.normal(jax.random.key(0), (4, 24, 24, 1))
    params, state = jax.jit(method.init)(jax.random.key(1), x[:1])
    # Ten times as large as at the beginning, where what attention sees hardly matters; so unlike the teacher, too.
    params = jax.tree.map(lambda leaf: 10.0 * leaf, params)
    return method, {"views": (x,), "index": INDEX}, params, state


def as_masks(patches, count):
    """bool [..., count] of the valid patches; none of them twice."""
    here = np.asarray(jax.nn.one_hot(patches.index, count)) * np.asarray(patches.valid)[..., None]
    assert here.sum(axis=-2).max() == 1
    return here.sum(axis=-2) > 0


def box(mask):
    """(height, width) of the smallest rectangle around the True ones."""
    return tuple(int(np.ptp(places)) + 1 for places in np.nonzero(mask))


def test_block_sizes_are_the_papers():
    # From floor(0.15 * 196) = 29 patches, wider than high, to 39, higher than wide: sqrt(29 * 0.75) = 4.7, ...
    sizes = block_sizes((14, 14), (0.15, 0.2), (0.75, 1.5))
    assert list(map(tuple, sizes[[0, -1]])) == [(5, 6), (8, 5)]
    # floor(0.85 * 196) = 166 = 12.9^2; half of the areas are above 13.5^2.
    sizes = block_sizes((14, 14), (0.85, 1.0), (1.0, 1.0))
    assert set(map(tuple, sizes)) == {(13, 13), (14, 14)} and 0.4 < np.mean(sizes == 14) < 0.6


def test_targets_are_whole_blocks_of_one_size_and_the_context_has_none_of_them():
    method, grid = make(context_share=1.0), (14, 14)
    draw = jax.jit(lambda rng: method.draw_blocks(rng, jnp.arange(100), grid))
    shapes = set()
    for seed in range(5):
        context, targets = draw(jax.random.key(seed))
        context, targets = as_masks(context, 196), as_masks(targets, 196)
        blocks = targets.reshape(400, *grid)
        (size,) = {box(block) for block in blocks}
        assert np.all(blocks.sum(axis=(1, 2)) == size[0] * size[1])  # no holes
        assert {size} <= set(map(tuple, block_sizes(grid, method.target_area, method.target_aspect)))
        assert not np.any(context & targets.any(axis=1))
        assert len(np.unique(blocks.reshape(400, -1), axis=0)) > 50  # at places of their own
        # The context is all that targets leave of a square of 13 or 14 patches a side.
        together = (context | targets.any(axis=1)).reshape(100, *grid)
        assert np.all(context.sum(axis=1) >= 13**2 - targets.any(axis=1).sum(axis=1))
        assert {min(box(one)) for one in together} <= {13, 14}
        shapes.add(size)
    assert len(shapes) > 1  # another draw for another step


def test_every_place_is_drawn_and_an_image_alone_has_the_same_blocks():
    method, grid, rng = make(context_share=1.0), (6, 6), jax.random.key(3)
    context, targets = jax.jit(lambda: method.draw_blocks(rng, jnp.arange(400), grid))()
    first = as_masks(targets, 36).reshape(-1, *grid)
    height, width = box(first[0])
    corners = {tuple(np.argwhere(block)[0]) for block in first}
    assert corners == {(i, j) for i in range(7 - height) for j in range(7 - width)}  # the last row and column, too
    alone = method.draw_blocks(rng, jnp.array([42]), grid)
    for all_, one in zip((context, targets), alone, strict=True):
        np.testing.assert_array_equal(as_masks(one, 36)[0], as_masks(all_, 36)[42])


def test_a_context_keeps_enough_patches_and_no_more_than_there_is_room_for():
    grid, rng, index = (7, 7), jax.random.key(0), jnp.arange(300)

    def count(**options):
        context, _ = jax.jit(lambda: make(**options).draw_blocks(rng, index, grid))()
        return as_masks(context, 49).sum(axis=1), context.index.shape[1]

    kept, room = count(context_share=1.0, min_context=1)
    assert room == 49 and kept.min() < 20
    kept_more, _ = count(context_share=1.0, min_context=20)
    assert kept_more.min() >= 20
    np.testing.assert_array_equal(kept_more[kept >= 20], kept[kept >= 20])  # the first placement where it will do
    cut, room = count(context_share=0.5, min_context=20)
    assert room == 24
    np.testing.assert_array_equal(cut, np.minimum(kept_more, 24))


def test_contexts_of_a_group_are_cut_to_the_smallest_on_any_number_of_devices():
    grid, rng, index = (7, 7), jax.random.key(0), jnp.arange(24)

    def draw(index, axis_name=None, **options):
        method = make(run=Run(24, 100, 10, 60), context_share=1.0, **options)
        return method.draw_blocks(rng, index, grid, axis_name)[0]

    plain = as_masks(jax.jit(draw)(index), 49)
    cut = as_masks(jax.jit(functools.partial(draw, cut_images=12))(index), 49)
    smallest = np.repeat(plain.sum(axis=1).reshape(2, 12).min(axis=1), 12)
    assert len(set(smallest)) == 2 and plain.sum(axis=1).max() > smallest.max()
    # The first patches, row by row.
    np.testing.assert_array_equal(cut, plain & (np.cumsum(plain, axis=1) <= smallest[:, None]))
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))  # 6 images each
    split = jax.shard_map(
        functools.partial(draw, axis_name="data", cut_images=12), mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    np.testing.assert_array_equal(as_masks(jax.jit(split)(index), 49), cut)
    # Where there is less room than the smallest has, it is cut to the room.
    method = make(run=Run(24, 100, 10, 60), context_share=0.2, cut_images=12)
    narrow = as_masks(jax.jit(lambda: method.draw_blocks(rng, index, grid)[0])(), 49)
    np.testing.assert_array_equal(narrow, plain & (np.cumsum(plain, axis=1) <= np.minimum(smallest, 10)[:, None]))


def test_no_block_lies_in_the_margin():
    method = make(context_share=1.0, margin=1)
    context, targets = jax.jit(lambda: method.draw_blocks(jax.random.key(3), jnp.arange(200), (6, 6)))()
    seen = as_masks(context, 36).any(axis=0) | as_masks(targets, 36).any(axis=(0, 1))
    expected = np.zeros((6, 6), bool)
    expected[:5, :5] = True
    np.testing.assert_array_equal(seen.reshape(6, 6), expected)
    assert block_sizes((14, 14), (0.85, 1.0), (1.0, 1.0), margin=1).max() == 13


def test_only_the_context_is_seen():
    method, batch, params, _ = setup()
    (x,), rng = batch["views"], jax.random.key(2)
    context, targets = method.draw_blocks(rng, INDEX, (6, 6))
    assert not np.all(context.valid) and not np.all(targets.valid)  # there is padding to be seen
    predict = jax.jit(lambda x, context, targets: method.predict(params, x, context, targets, None, None))
    prediction = np.asarray(predict(x, context, targets))
    valid = np.asarray(targets.valid)
    seen = unpatchify(jnp.broadcast_to(jnp.asarray(as_masks(context, 36))[..., None], (4, 36, 16)), (24, 24), 4)
    np.testing.assert_allclose(predict(jnp.where(seen, x, 9.0), context, targets), prediction, atol=1e-3)
    assert np.abs(predict(jnp.where(seen, 9.0, x), context, targets) - prediction).max() > 0.1
    # Nor are the places of what only fills up; and no block sees another.
    moved = Patches(jnp.where(targets.valid, targets.index, 35), targets.valid)
    np.testing.assert_allclose(predict(x, context, moved)[valid], prediction[valid], atol=1e-3)
    moved = Patches(targets.index.at[:, 0].set(35 - targets.index[:, 0]), targets.valid)
    changed = predict(x, context, moved)
    np.testing.assert_allclose(changed[:, 1:][valid[:, 1:]], prediction[:, 1:][valid[:, 1:]], atol=1e-3)
    assert np.abs(changed[:, 0] - prediction[:, 0])[valid[:, 0]].max() > 0.1


def test_predictions_do_not_depend_on_the_order_of_patches():
    method, batch, params, _ = setup()
    (x,) = batch["views"]
    context, targets = method.draw_blocks(jax.random.key(2), INDEX, (6, 6))
    predict = jax.jit(lambda context, targets: method.predict(params, x, context, targets, None, None))
    reversed_ = jax.tree.map(lambda leaf: leaf[..., ::-1], (context, targets))
    valid = np.asarray(targets.valid)
    np.testing.assert_allclose(predict(*reversed_)[:, :, ::-1][valid], predict(context, targets)[valid], atol=1e-3)


def test_loss_is_of_the_targets_and_its_gradient_stops_at_the_teacher():
    method, batch, params, state = setup()
    rng = jax.random.key(2)

    def loss(params, teacher):
        return method.loss(params, {**state, "teacher": teacher}, batch, rng)

    (value, (_, metrics)), (of_params, of_teacher) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
        params, state["teacher"]
    )
    context, targets = method.draw_blocks(jax.random.split(rng)[0], INDEX, (6, 6))
    predict = jax.jit(lambda: method.predict(params, *batch["views"], context, targets, None, None))
    prediction = np.asarray(predict())
    teacher = {"params": state["teacher"]["params"]["backbone"]}
    h = np.asarray(method.backbone.apply(teacher, *batch["views"], tokens=True), np.float64)
    target = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    d = []
    for image, block, number in np.argwhere(targets.valid):
        d.append(np.abs(prediction[image, block, number] - target[image, targets.index[image, block, number]]))
    d = np.array(d)
    np.testing.assert_allclose(value, np.mean(np.where(d < 1, d * d / 2, d - 0.5)), rtol=1e-4)
    np.testing.assert_allclose(metrics["target_variance"], target.var(axis=(0, 1)).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["context_patches"], context.valid.sum(axis=1).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["embeddings"][0], method.features(params, state, *batch["views"]), atol=1e-5)
    assert not any(np.any(g) for g in jax.tree.leaves(of_teacher))
    # Attention's keys have a bias that changes nothing.
    assert all(np.any(g) for g in jax.tree.leaves(of_params))


def test_the_teacher_is_kept_and_stands_still_in_the_end():
    method, _, params, state = setup(decay=0.5)
    leaf = lambda tree: np.asarray(tree["backbone"]["patch_embed"]["proj"]["kernel"])  # noqa: E731
    old, new = leaf(state["teacher"]["params"]), leaf(params)
    for step, decay in ((0, 0.5), (50, 0.75), (100, 1.0)):
        moved = method.update(params, state, step)
        kept = method.backbone_variables(params, moved)["params"]["patch_embed"]["proj"]["kernel"]
        np.testing.assert_allclose(kept, decay * old + (1 - decay) * new, rtol=1e-5, atol=1e-7)


def test_all_blocks_begin_alike():
    method = make(vit={"depth": 4}, predictor_dim=16, predictor_depth=2)
    params, state = jax.jit(method.init)(jax.random.key(0), jnp.zeros((1, 24, 24, 1)))
    for network, depth in (("backbone", 4), ("predictor", 2)):
        blocks = [params[network][f"blocks_{i}"] for i in range(depth)]
        spread = [np.std(block[branch][last]["kernel"]) for block in blocks for branch, last in LAST]
        np.testing.assert_allclose(spread, 0.02, rtol=0.2)  # of 256 numbers at least
    np.testing.assert_allclose(np.std(params["backbone"]["patch_embed"]["proj"]["kernel"]), 0.02, rtol=0.2)
    jax.tree.map(np.testing.assert_array_equal, state["teacher"]["params"], {"backbone": params["backbone"]})


def test_pictures_show_the_context_and_the_targets():
    method, batch, params, state = setup()
    pictures = method.pictures(params, state, batch, jax.random.key(2))
    context, targets = method.draw_blocks(jax.random.split(jax.random.key(2))[0], INDEX, (6, 6))
    for name, mask in (("context", as_masks(context, 36)), ("targets", as_masks(targets, 36).any(axis=1))):
        shown = np.any(np.asarray(patchify(pictures[name], 4)) != 0, axis=-1)
        np.testing.assert_array_equal(shown, mask)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"vit": {"class_token": True}}, "use model.class_token=False"),
        ({"vit": {"pool": "mean"}}, 'and model.pool="norm_mean", got False'),
        ({"predictor_dim": 6}, "predictor_dim=6 must be a multiple of 4 and of model.heads=2"),
        ({"target_area": (0.2, 0.1)}, "target_area must be"),
        ({"context_area": (0.5, 1.5)}, "least <= most <= 1.0"),
        ({"context_share": 0.0}, "context_share must be in"),
        ({"cut_images": 3}, "cut_images=3 must divide batch_size=4"),
        ({"margin": -1}, "margin must be at least 0"),
        ({"targets": 0}, "targets must be above 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_resnet_is_refused():
    with pytest.raises(ValueError, match="use a vision transformer"):
        METHODS["ijepa"](models.create("resnet8"), RUN)
