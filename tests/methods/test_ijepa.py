import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.ijepa import Patches, block_sizes
from tests.losses.checks import mesh_of
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
VIT = dict(dim=16, depth=1, heads=2, patch_size=4, image_size=24, positions="sincos")
LAST = (("attn", "proj"), ("mlp", "fc2"))
GRID = (6, 6)
X = np.random.default_rng(0).normal(size=(4, 24, 24, 1)).astype(np.float32)
BATCH = {"views": (X,), "index": np.array([3, 14, 15, 92])}
STEPS = (0, 50, 100)


def make(vit=None, run=RUN, **options):
    backbone = models.create(
        "vit_tiny_patch16_224", **{**VIT, "class_token": False, "pool": "norm_mean", **(vit or {})}
    )
    return METHODS["ijepa"](backbone, run, **{"predictor_dim": 8, "predictor_depth": 1, "min_context": 4, **options})


@functools.cache
def setup():
    """(method, params, state, what a step has drawn and made of BATCH)"""
    method = make(decay=0.5)
    params, state = drawn.draw(method, X[:1])

    @jax.jit
    def run(params, state, batch, rng, steps):
        def loss(params, teacher):
            output = method.loss(params, {**state, "teacher": teacher}, batch, rng)
            return output.loss, output

        teacher = {"params": state["teacher"]["params"]["backbone"]}
        return {
            "loss": jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, state["teacher"]),
            "blocks": method.draw_blocks(jax.random.split(rng)[0], batch["index"], GRID),
            "tokens": method.backbone.apply(teacher, batch["views"][0], tokens=True),
            "pictures": method.pictures(params, state, batch, rng),
            "kept": jax.vmap(lambda step: method.backbone_variables(params, method.update(params, state, step)))(steps),
        }

    return method, params, state, jax.device_get(run(params, state, BATCH, jax.random.key(4), np.array(STEPS)))


@functools.cache
def predictor():
    """(context, targets, x) -> numpy [batch, blocks, room, dim]"""
    method, params, *_ = setup()
    predict = jax.jit(lambda params, x, *blocks: method.predict(params, x, *blocks, None, None))
    return lambda context, targets, x=X: np.asarray(predict(params, x, context, targets))


def as_masks(patches, count):
    """bool [..., count] of the valid patches; none of them twice."""
    here = (np.asarray(patches.index)[..., None] == np.arange(count)) & np.asarray(patches.valid)[..., None]
    assert here.sum(axis=-2).max() == 1
    return here.any(axis=-2)


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
    draw = jax.jit(lambda rng, index: method.draw_blocks(rng, index, grid))
    shapes = set()
    for seed in range(5):
        context, targets = draw(jax.random.key(seed), np.arange(100))
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


def test_every_place_is_drawn_and_an_image_has_the_same_blocks_in_any_batch():
    method = make(context_share=1.0)
    draw = jax.jit(lambda rng, index: method.draw_blocks(rng, index, GRID))
    index = np.arange(400)
    context, targets = (as_masks(patches, 36) for patches in draw(jax.random.key(3), index))
    first = targets.reshape(-1, *GRID)
    height, width = box(first[0])
    corners = {tuple(np.argwhere(block)[0]) for block in first}
    assert corners == {(i, j) for i in range(7 - height) for j in range(7 - width)}  # the last row and column, too
    # Wherever it is in the batch, and whatever is beside it.
    for patches, before in zip(draw(jax.random.key(3), index[::-1] // 2), (context, targets), strict=True):
        np.testing.assert_array_equal(as_masks(patches, 36), before[index[::-1] // 2])


def test_a_context_keeps_enough_patches_and_no_more_than_there_is_room_for():
    cases = (dict(context_share=1.0, min_context=1), dict(context_share=1.0, min_context=20), dict(context_share=0.5))

    @jax.jit
    def draw(rng, index):
        return [make(**{"min_context": 20, **case}).draw_blocks(rng, index, (7, 7))[0] for case in cases]

    contexts = draw(jax.random.key(0), np.arange(300))
    assert [context.index.shape[1] for context in contexts] == [49, 49, 24]  # room
    kept, kept_more, cut = (as_masks(context, 49).sum(axis=1) for context in contexts)
    assert kept.min() < 20 and kept_more.min() >= 20
    np.testing.assert_array_equal(kept_more[kept >= 20], kept[kept >= 20])  # the first placement where it will do
    np.testing.assert_array_equal(cut, np.minimum(kept_more, 24))


def test_contexts_of_a_group_are_cut_to_the_smallest_on_any_number_of_devices():
    def draw(rng, index, axis_name=None, context_share=1.0, cut_images=12):
        method = make(run=Schedule(24, 100, 10, 60), context_share=context_share, cut_images=cut_images)
        return method.draw_blocks(rng, index, (7, 7), axis_name)[0]

    @jax.jit
    def run(rng, index):
        sharded = jax.shard_map(
            functools.partial(draw, axis_name="i"), mesh=mesh_of(4), in_specs=(P(), P("i")), out_specs=P("i")
        )  # 6 images each
        plain, narrow = draw(rng, index, cut_images=0), draw(rng, index, context_share=0.2)
        return plain, draw(rng, index), sharded(rng, index), narrow

    plain, cut, sharded, narrow = (as_masks(context, 49) for context in run(jax.random.key(0), np.arange(24)))
    smallest = np.repeat(plain.sum(axis=1).reshape(2, 12).min(axis=1), 12)
    assert len(set(smallest)) == 2 and plain.sum(axis=1).max() > smallest.max()
    # The first patches, row by row.
    np.testing.assert_array_equal(cut, plain & (np.cumsum(plain, axis=1) <= smallest[:, None]))
    np.testing.assert_array_equal(sharded, cut)
    # Where there is less room than the smallest has, it is cut to the room.
    np.testing.assert_array_equal(narrow, plain & (np.cumsum(plain, axis=1) <= np.minimum(smallest, 10)[:, None]))


def test_no_block_lies_in_the_margin():
    method = make(context_share=1.0, margin=1)
    context, targets = jax.jit(lambda *args: method.draw_blocks(*args, GRID))(jax.random.key(3), np.arange(200))
    seen = as_masks(context, 36).any(axis=0) | as_masks(targets, 36).any(axis=(0, 1))
    expected = np.zeros((6, 6), bool)
    expected[:5, :5] = True
    np.testing.assert_array_equal(seen.reshape(6, 6), expected)
    assert block_sizes((14, 14), (0.85, 1.0), (1.0, 1.0), margin=1).max() == 13


def test_only_the_context_is_seen():
    context, targets = setup()[-1]["blocks"]
    assert not np.all(context.valid) and not np.all(targets.valid)  # there is padding to be seen
    predict, valid = predictor(), targets.valid
    prediction = predict(context, targets)
    seen = as_masks(context, 36).reshape(4, *GRID).repeat(4, axis=1).repeat(4, axis=2)[..., None]  # pixels
    other = np.float32(9.0)
    np.testing.assert_allclose(predict(context, targets, np.where(seen, X, other)), prediction, atol=1e-3)
    assert np.abs(predict(context, targets, np.where(seen, other, X)) - prediction).max() > 0.1
    # Nor are the places of what only fills up; and no block sees another.
    moved = Patches(np.where(valid, targets.index, np.int32(35)), valid)
    np.testing.assert_allclose(predict(context, moved)[valid], prediction[valid], atol=1e-3)
    moved = Patches(np.concatenate([35 - targets.index[:, :1], targets.index[:, 1:]], axis=1), valid)
    changed = predict(context, moved)
    np.testing.assert_allclose(changed[:, 1:][valid[:, 1:]], prediction[:, 1:][valid[:, 1:]], atol=1e-3)
    assert np.abs(changed[:, 0] - prediction[:, 0])[valid[:, 0]].max() > 0.1


def test_predictions_do_not_depend_on_the_order_of_patches():
    blocks, predict = setup()[-1]["blocks"], predictor()
    valid = blocks[1].valid
    reversed_ = predict(*(Patches(index[..., ::-1], valid[..., ::-1]) for index, valid in blocks))
    np.testing.assert_allclose(reversed_[:, :, ::-1][valid], predict(*blocks)[valid], atol=1e-3)


def test_loss_is_of_the_targets_and_its_gradient_stops_at_the_teacher():
    *_, made = setup()
    (value, output), (of_params, of_teacher) = made["loss"]
    context, targets = made["blocks"]
    prediction, h = predictor()(context, targets), made["tokens"].astype(np.float64)
    target = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    d = []
    for image, block, number in np.argwhere(targets.valid):
        d.append(np.abs(prediction[image, block, number] - target[image, targets.index[image, block, number]]))
    d = np.array(d)
    np.testing.assert_allclose(value, np.mean(np.where(d < 1, d * d / 2, d - 0.5)), rtol=1e-4)
    np.testing.assert_allclose(output.metrics["target_variance"], target.var(axis=(0, 1)).mean(), rtol=1e-4)
    np.testing.assert_allclose(output.metrics["context_patches"], context.valid.sum(axis=1).mean(), rtol=1e-6)
    np.testing.assert_allclose(output.embeddings[0], h.mean(axis=1), atol=1e-5)
    assert not any(np.any(g) for g in jax.tree.leaves(of_teacher))
    # Attention's keys have a bias that changes nothing.
    assert all(np.any(g) for g in jax.tree.leaves(of_params))


def test_the_teacher_is_kept_and_stands_still_in_the_end():
    _, params, state, made = setup()
    leaf = lambda tree: tree["patch_embed"]["proj"]["kernel"]  # noqa: E731
    old, new = leaf(state["teacher"]["params"]["backbone"]), leaf(params["backbone"])
    kept = leaf(made["kept"]["params"])
    for moved, decay in zip(kept, (0.5, 0.75, 1.0), strict=True):  # at STEPS
        np.testing.assert_allclose(moved, decay * old + (1 - decay) * new, rtol=1e-5, atol=1e-7)


def test_all_blocks_begin_alike():
    method = make(vit={"depth": 2}, predictor_dim=16)
    params, state = method.init(jax.random.key(0), X[:1])
    for network, depth in (("backbone", 2), ("predictor", 1)):
        blocks = [params[network][f"blocks_{i}"] for i in range(depth)]
        spread = [np.std(np.asarray(block[branch][last]["kernel"])) for block in blocks for branch, last in LAST]
        np.testing.assert_allclose(spread, 0.02, rtol=0.2)  # of 256 numbers at least
    np.testing.assert_allclose(np.std(np.asarray(params["backbone"]["patch_embed"]["proj"]["kernel"])), 0.02, rtol=0.2)
    jax.tree.map(np.testing.assert_array_equal, state["teacher"]["params"], {"backbone": params["backbone"]})


def test_pictures_show_the_context_and_the_targets():
    made = setup()[-1]
    context, targets = made["blocks"]
    for name, mask in (("context", as_masks(context, 36)), ("targets", as_masks(targets, 36).any(axis=1))):
        shown = made["pictures"][name].reshape(4, 6, 4, 6, 4).any(axis=(2, 4)).reshape(4, 36)
        np.testing.assert_array_equal(shown, mask)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"vit": {"class_token": True}}, "use model.class_token=False"),
        ({"vit": {"pool": "mean"}}, 'and model.pool="norm_mean", got False'),
        ({"predictor_dim": 6}, "predictor_dim=6 must be a multiple of 4 and of model.heads=2"),
        ({"target_area": (0.2, 0.1)}, "target_area must be"),
        ({"context_area": (0.5, 1.5)}, r"context_area must be in \(0, 1\], got \(0\.5, 1\.5\)"),
        ({"context_share": 0.0}, "context_share must be in"),
        ({"cut_images": 3}, "cut_images=3 must divide batch_size=4"),
        ({"margin": -1}, "margin must be at least 0"),
        ({"targets": 0}, "targets must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_resnet_is_refused():
    with pytest.raises(ValueError, match="use a ViT"):
        METHODS["ijepa"](models.create("resnet8"), RUN)
