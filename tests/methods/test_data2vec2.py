import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.data2vec2 import ConvLayers, in_squares
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
X = np.random.default_rng(0).normal(size=(4, 24, 24, 1)).astype(np.float32)  # 6 x 6 patches
MASKS = 3


def make(**options):
    vit = dict(dim=16, depth=3, heads=2, patch_size=4, image_size=24, positions="sincos", pool="norm_mean")
    small = dict(masks=MASKS, target_blocks=2, decoder_dim=8, decoder_depth=2, decoder_groups=2)
    return METHODS["data2vec2"](models.create("vit_tiny_patch16_224", **vit), RUN, **{**small, **options})


@functools.cache
def step():
    """(output, the teacher's largest gradient, predictions, class tokens, hidden, targets, the teacher's blocks)"""
    method = make(class_weight=0.5)
    params, state = drawn.draw(method, X[:1])

    @jax.jit
    def run(params, state, x, index, rng):
        def loss(teacher):
            output = method.loss(params, {**state, "teacher": teacher}, {"views": (x,), "index": index}, rng)
            return output.loss, output

        (_, output), gradient = jax.value_and_grad(loss, has_aux=True)(state["teacher"])
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(gradient)]))
        found = method.predict(params, x, index, rng, None)
        variables = {"params": state["teacher"]["params"]["backbone"]}
        blocks = method.backbone.apply(variables, x, last_blocks=2)
        return output, largest, *found, method.targets(state["teacher"], x), blocks

    return jax.device_get(run(params, state, X, np.arange(4, dtype=np.int32), jax.random.key(2)))


def normalize(x, axis):
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)


def test_targets_are_the_teachers_blocks_normalized_over_patches_and_their_mean_over_entries():
    *_, targets, blocks = step()
    mean = np.mean(normalize(blocks[:, :, 1:].astype(np.float64), 2), axis=1)
    np.testing.assert_allclose(targets, normalize(mean, -1), atol=1e-4)


def test_loss_has_the_hidden_patches_of_each_mask_and_the_class_token():
    output, gradient, prediction, of_class, hidden, targets, _ = step()
    targets = targets.astype(np.float64).repeat(MASKS, axis=0)
    of_patches = np.mean((prediction - targets)[hidden] ** 2)
    of_token = np.mean((of_class - targets.mean(1)) ** 2)
    np.testing.assert_allclose(output.metrics["patch_error"], of_patches, rtol=1e-4)
    np.testing.assert_allclose(output.metrics["class_error"], of_token, rtol=1e-4)
    np.testing.assert_allclose(output.loss, np.sqrt(16) * (of_patches + 0.5 * of_token), rtol=1e-4)
    assert gradient == 0.0  # the teacher is constant
    assert output.embeddings.shape == (1, 4, 16)


def test_every_mask_hides_as_many_patches_and_others():
    hidden = step()[4].reshape(4, MASKS, 36)
    assert np.all(hidden.sum(-1) == 36 - 7)  # int(36 * 0.2)
    assert len(np.unique(hidden.reshape(-1, 36), axis=0)) > 8


def test_what_is_visible_are_squares():
    # Of 36 patches, 9 are visible, as one square has, and one square is drawn: int(36 * 0.27 / 9) = 1.
    method = make(mask_ratio=0.75, mask_adjust=0.02, masks=50)
    keep = np.asarray(method.draw_visible(jax.random.key(0), jnp.arange(2), (6, 6)))
    assert keep.shape == (2, 50, 9)
    shown = np.zeros((100, 36), bool)
    np.put_along_axis(shown, keep.reshape(100, 9), True, axis=1)
    shown = shown.reshape(100, 6, 6)
    squares = shown[:, :-2, :-2].copy()
    for i in range(3):
        for j in range(3):
            squares &= shown[:, i : 4 + i, j : 4 + j]
    whole = squares.any((1, 2))
    # The middle of a square is within the image in 16 of 36 cases.
    assert 0.25 < whole.mean() < 0.65
    assert np.all(shown.sum((1, 2)) == 9)


@pytest.mark.parametrize(
    "middle, side, expected",
    [(7, 3, {1, 2, 3, 6, 7, 8, 11, 12, 13}), (0, 3, {0, 1, 5, 6}), (9, 3, {3, 4, 8, 9, 13, 14}), (0, 1, {0})],
)
def test_squares_stop_at_the_edges(middle, side, expected):
    inside = in_squares(jnp.full((1, 1, 1), float(middle)), (3, 5), side)
    assert set(np.flatnonzero(inside[0, 0]).tolist()) == expected


@pytest.mark.usefixtures("unchecked")
def test_the_decoder_sees_neighbors_and_adds_its_input():
    decoder = ConvLayers(dim=4, depth=2, groups=2)
    x = np.random.default_rng(0).normal(size=(1, 7, 7, 4)).astype(np.float32)
    params = decoder.init(jax.random.key(0), x)["params"]
    other = x.copy()
    other[0, 3, 3] += 1.0
    apply = jax.jit(lambda x: decoder.apply({"params": params}, x))
    changed = np.any(np.abs(apply(other) - apply(x)) > 1e-6, axis=-1)[0]
    expected = np.zeros((7, 7), bool)
    expected[1:6, 1:6] = True  # two 3x3 convolutions
    np.testing.assert_array_equal(changed, expected)
    still = jax.tree.map(np.zeros_like, params)
    proj = {"kernel": np.eye(4, dtype=np.float32), "bias": np.zeros(4, np.float32)}
    passed = decoder.apply({"params": {**still, "proj": proj}}, x)
    np.testing.assert_allclose(passed, x, atol=1e-6)  # convolutions of zeros add nothing


def test_the_teachers_decay_grows_and_stays():
    params, state = drawn.draw(make(), X[:1])
    method = make(decay=0.5, final_decay=0.9, decay_steps=10)
    for at, decay in ((0, 0.5), (5, 0.7), (10, 0.9), (50, 0.9)):
        moved = method.update(params, state, jnp.array(at))["teacher"]["params"]["backbone"]["norm"]["bias"]
        old, new = state["teacher"]["params"]["backbone"]["norm"]["bias"], params["backbone"]["norm"]["bias"]
        np.testing.assert_allclose(moved, decay * old + (1 - decay) * new, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target_blocks": 4}, r"target_blocks must be in 1\.\.model\.depth=3, got 4"),
        ({"decoder_groups": 3}, "decoder_groups=3 must divide decoder_dim=8"),
        ({"decoder_dim": 12, "decoder_groups": 12}, "decoder_groups=12 must divide model.dim=16"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.usefixtures("unchecked")
def test_the_report_has_what_the_first_masks_leave_visible():
    method = make()
    batch = {"views": (jnp.array(X),), "index": jnp.arange(4)}
    pictures = jax.jit(lambda batch, rng: method.pictures({}, {}, batch, rng))(batch, jax.random.key(2))
    assert list(pictures) == ["image", "mask 1", "mask 2"]
    hidden = step()[4].reshape(4, MASKS, 6, 1, 6, 1)  # the same key draws them in a step
    for number in range(2):
        seen = np.where(hidden[:, number], 0.0, X.reshape(4, 6, 4, 6, 4)).reshape(4, 24, 24, 1)
        np.testing.assert_array_equal(pictures[f"mask {number + 1}"], seen)
