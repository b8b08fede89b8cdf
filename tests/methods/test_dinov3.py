import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import models
from ssl_jax.config import ConfigError, parse
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.toolkit.masking import resized, shrunk
from ssl_jax.training import augmenting, build
from ssl_jax.training.state import begun, with_backbone
from ssl_jax.weights import save_backbone
from tests.losses.test_distillation import reference_gram
from tests.methods import drawn
from tests.methods.test_dinov2 import koleo, sinkhorn, softmax
from tests.methods.test_every_method import load
from tests.models.drawn import variables_of

SCHEDULE = Schedule(batch_size=6, steps=100, steps_per_epoch=10, num_images=60)
RNG = np.random.default_rng(0)
VIEWS = tuple(RNG.normal(size=(6, size, size, 1)).astype(np.float32) for size in (16, 16, 8))
MASKS = RNG.random((2, 6, 16)) < 0.4
MASKS[:, 0] = False  # the first image has none
BATCH = {"views": VIEWS, "masks": tuple(MASKS)}
GRAM = dict(gram_weight=2.0)


def make(model=None, **options):
    backbone = models.create(
        "vit_small_patch16_dinov3",
        dim=16,
        depth=1,
        heads=2,
        mlp_ratio=2.0,
        patch_size=4,
        image_size=16,
        **(model or {}),
    )
    small = dict(prototypes=12, hidden=(8,), bottleneck=4, patch_prototypes=10, patch_hidden=(8,), patch_bottleneck=6)
    options = dict(local_views=1, koleo_images=3, warmup_temperature_epochs=2, freeze_epochs=0) | small | options
    return METHODS["dinov3"](backbone, SCHEDULE, **options)


def after_some_steps(method, step=5):
    params, state = drawn.draw(method, VIEWS[0][:1])
    return params, {**state, "step": np.asarray(step, np.int32)}


def tokens_of(method, params, x, **options):
    tokens = method.backbone.apply({"params": params}, x, method="tokens", **options)
    return np.asarray(tokens, np.float64)


def scores_of(head, x):
    """A head with one hidden layer and a gelu, and prototypes of any length."""
    mlp = head["mlp"]
    x = np.asarray(jax.nn.gelu(x @ mlp["Dense_0"]["kernel"] + mlp["Dense_0"]["bias"], approximate=False), np.float64)
    x = x @ mlp["Dense_1"]["kernel"] + mlp["Dense_1"]["bias"]
    return x / np.linalg.norm(x, axis=-1, keepdims=True) @ np.asarray(head["last"]["kernel"], np.float64)


@pytest.mark.parametrize(
    "options, anchoring",
    [({}, 0.0), (dict(GRAM, gram_warmup=20, most_masked=12), 0.5 - 0.5 * np.cos(np.pi * 5 / 20))],
)
def test_loss_is_dinov2s_with_untied_heads_and_gram_anchoring(options, anchoring):
    method = make(**options)
    params, state = after_some_steps(method)
    output = method.loss(params, state, BATCH, jax.random.key(6))
    metrics, teacher = output.metrics, state["teacher"]["params"]

    masked = dict(mask_token=params["mask_token"])
    large = [tokens_of(method, params["backbone"], x, mask=m, **masked) for x, m in zip(VIEWS[:2], MASKS, strict=True)]
    own_norm = {**params["backbone"], "norm": params["local_norm"]}
    small = tokens_of(method, own_norm, VIEWS[2])
    whole = [tokens_of(method, teacher["backbone"], x) for x in VIEWS[:2]]
    prefix = 5  # a class token and four registers
    student = np.stack([scores_of(params["head"], x[:, 0]) for x in (*large, small)])
    scores = np.stack([scores_of(teacher["head"], x[:, 0]) for x in whole])
    temperature = 0.04 + 0.03 * 5 / 20
    targets = sinkhorn(scores.reshape(12, -1), temperature).reshape(scores.shape)
    logs = np.log(softmax(student / 0.1))

    def pair(target, view):
        return -np.mean(np.sum(targets[target] * logs[view], axis=-1))

    weight = 1.0 - 0.5 * anchoring
    class_loss = (pair(0, 1) + pair(1, 0) + weight * (pair(0, 2) + pair(1, 2))) / 4
    np.testing.assert_allclose(metrics["class_loss"], class_loss, rtol=1e-4)

    of_student = np.stack([scores_of(params["patch_head"], x[:, prefix:]) for x in large])
    of_teacher = np.stack([scores_of(teacher["patch_head"], x[:, prefix:]) for x in whole])
    patch_targets = sinkhorn(of_teacher[MASKS], temperature)
    terms = -np.sum(patch_targets * np.log(softmax(of_student / 0.1))[MASKS], axis=-1)
    patch_loss = np.sum(terms * (MASKS / np.maximum(MASKS.sum(-1, keepdims=True), 1))[MASKS]) / 12
    np.testing.assert_allclose(metrics["patch_loss"], patch_loss, rtol=1e-4)

    spread = sum(np.mean([koleo(x[:3, 0]), koleo(x[3:, 0])]) for x in large)
    np.testing.assert_allclose(metrics["koleo"], spread, rtol=1e-3)
    total = class_loss + patch_loss + 0.1 * spread
    if options:
        of_gram = [tokens_of(method, state["gram"]["backbone"], x)[:, prefix:] for x in VIEWS[:2]]
        gram = np.mean([reference_gram(s[:, prefix:], t) for s, t in zip(large, of_gram, strict=True)])
        np.testing.assert_allclose(metrics["gram"], gram, rtol=1e-4)
        total += 2.0 * anchoring * gram
    np.testing.assert_allclose(output.loss, total, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scale, side", [(2.0, 32), (1.5, 24)])
def test_the_gram_teacher_sees_large_crops_that_are_shrunk_for_the_others(scale, side):
    method = make(**GRAM, gram_scale=scale)
    params, state = after_some_steps(method)
    views = tuple(RNG.normal(size=(6, side, side, 1)).astype(np.float32) for side in (side, side, 8))
    found = method.loss(params, state, {"views": views, "masks": tuple(MASKS)}, jax.random.key(6))
    small = (*(np.asarray(shrunk(jnp.asarray(x), scale)) for x in views[:2]), views[2])
    plain = make(**GRAM).loss(params, state, {"views": small, "masks": tuple(MASKS)}, jax.random.key(6))
    for name in ("class_loss", "patch_loss", "koleo"):
        np.testing.assert_allclose(found.metrics[name], plain.metrics[name], rtol=1e-5)
    gram = 0.0
    for x, x_small, mask in zip(views, small, MASKS, strict=False):
        student = tokens_of(method, params["backbone"], x_small, mask=mask, mask_token=params["mask_token"])[:, 5:]
        teacher = tokens_of(method, state["gram"]["backbone"], x)[:, 5:].astype(np.float32)
        gram += (
            reference_gram(
                student, np.asarray(resized(jnp.asarray(teacher), (side // 4, side // 4), scale), np.float64)
            )
            / 2
        )
    np.testing.assert_allclose(found.metrics["gram"], gram, rtol=1e-4)
    assert abs(found.metrics["gram"] - plain.metrics["gram"]) > 1e-3


def test_features_of_twice_the_resolution_are_resized_as_a_map_row_by_row():
    row, column = np.mgrid[0:8, 0:12].astype(np.float32)
    features = np.stack([row, column], axis=-1).reshape(1, -1, 2)
    found = resized(jnp.asarray(features), (8, 12), 2).reshape(4, 6, 2)
    # In the middle of two rows, and of two columns; the border repeats its weights.
    np.testing.assert_allclose(found[1:-1, 1:-1, 0], np.tile([[2.5], [4.5]], (1, 4)), atol=1e-5)
    np.testing.assert_allclose(found[1:-1, 1:-1, 1], np.tile([[2.5, 4.5, 6.5, 8.5]], (2, 1)), atol=1e-5)


def test_features_of_three_halves_of_the_resolution_are_resized_to_whole_sides_alone():
    features = jnp.arange(36.0).reshape(1, 36, 1)
    found = resized(features, (6, 6), 1.5).reshape(4, 4)
    np.testing.assert_allclose(found[1, 1], found[2, 1] - 9.0, atol=1e-4)  # 1.5 rows of 6
    np.testing.assert_allclose(jnp.mean(found), 17.5, rtol=1e-3)
    with pytest.raises(ValueError, match=r"sides \(32, 32\) do not become whole when divided by 1.5"):
        shrunk(jnp.zeros((1, 32, 32, 1)), 1.5)


@pytest.mark.slow
def test_positions_of_the_teachers_are_not_jittered():
    method = make(**GRAM, gram_start=3, model=dict(rope_jitter=4.0))
    params, state = after_some_steps(method)
    one, other = (method.loss(params, state, BATCH, jax.random.key(seed)).metrics for seed in (0, 1))
    np.testing.assert_array_equal(one["teacher_entropy"], other["teacher_entropy"])
    assert one["class_loss"] != other["class_loss"]
    assert one["gram"] > 0 and one["gram"] != other["gram"]  # of the student's patches
    early = method.loss(params, {**state, "step": np.asarray(2, np.int32)}, BATCH, jax.random.key(0)).metrics
    assert early["gram"] == 0 and early["class_loss"] > one["class_loss"] * 0.5


def test_the_gram_teacher_is_a_copy_of_the_teacher_after_the_named_steps_alone():
    method = make(**GRAM, gram_copies=(4, 7), decay=0.5)
    params, state = after_some_steps(method)
    first = state["gram"]["backbone"]
    for step in range(1, 9):
        state = method.update(params, state, jnp.asarray(step))
        teacher = state["teacher"]["params"]["backbone"]
        if step in (4, 7):
            first = teacher
        for a, b in zip(jax.tree.leaves(state["gram"]["backbone"]), jax.tree.leaves(first), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("final, expected", [(None, 0.9), (1.0, 0.95)])
def test_the_teachers_decay_is_constant_or_half_a_cosine(final, expected):
    method = make(decay=0.9, final_decay=final)
    params, state = after_some_steps(method)
    moved = method.update(params, state, jnp.asarray(50))["teacher"]["params"]["head"]["last"]["kernel"]
    old, new = state["teacher"]["params"]["head"]["last"]["kernel"], params["head"]["last"]["kernel"]
    np.testing.assert_allclose(moved, expected * old + (1 - expected) * new, atol=1e-6)


def test_weights_to_begin_with_are_the_gram_teachers_too_and_small_crops_keep_their_norm():
    method = make(**GRAM)
    params, state = drawn.draw(method, VIEWS[0][:1])
    given = jax.tree.map(lambda x: x + 1.0, params["backbone"])
    placed = with_backbone(begun(params, state, optax.sgd(0.1), jax.random.key(0)), {"params": given})
    for part in (placed.params, placed.model_state["teacher"]["params"], placed.model_state["gram"]):
        jax.tree.map(np.testing.assert_array_equal, part["backbone"], given)
    np.testing.assert_array_equal(placed.params["local_norm"]["scale"], params["local_norm"]["scale"])


@pytest.fixture
def saved(tmp_path):
    """(directory, parameters) of a network like the tiny config's, of images of another mean and deviation."""
    settings = parse(load("dinov3"))
    variables = variables_of(build.network(settings), np.zeros((1, 28, 28, 1), np.float32))
    mean, std = [settings.data.mean[0] + 0.1], [2 * settings.data.std[0]]
    meta = dict(model={**settings.model}, image_size=[28, 28], channels=1, mean=mean, std=std)
    save_backbone(tmp_path, variables, meta)
    return tmp_path, variables["params"]


def with_gram_teacher(path, **options):
    config = load("dinov3")
    config.method = {**config.method, "gram_start": 0, "gram_copies": (), "gram_teacher": str(path), **options}
    return build.method(parse(config), Schedule(batch_size=256, steps=1000, steps_per_epoch=100, num_images=25_600))


def test_a_gram_teacher_of_a_file_stays_and_sees_images_as_it_was_trained_with(saved):
    path, params = saved
    method = with_gram_teacher(path)
    jax.tree.map(np.testing.assert_array_equal, method.constants["gram"]["given"], params)
    views = RNG.normal(size=(2, 2, 28, 28, 1)).astype(np.float32)
    student = RNG.normal(size=(2, 2, 16, 96)).astype(np.float32)
    # Fashion-MNIST has mean 0.286 and deviation 0.353; the file's are 0.386 and 0.706.
    seen = (views * 0.353 + 0.286 - 0.386) / 0.706
    expected = [tokens_of(method, params, x.astype(np.float32))[:, 3:] for x in seen]
    state = {**method.constants, "step": np.asarray(0, np.int32)}
    found = method.gram_loss(jnp.asarray(student), state, tuple(map(jnp.asarray, views)), None)
    np.testing.assert_allclose(found, np.mean([*map(reference_gram, student, expected)]), rtol=1e-3)


def test_copies_of_the_teacher_do_not_follow_a_gram_teacher_of_other_images(saved):
    with pytest.raises(ConfigError, match=r"was trained with images of another mean and std than config.data has"):
        with_gram_teacher(saved[0], gram_copies=(3,))
    with pytest.raises(ValueError, match="gram_teacher='x' names the weights that loaded must be"):
        make(**GRAM, gram_teacher="x")


def test_without_small_crops_or_gram_anchoring_there_is_nothing_of_them():
    params, state = jax.eval_shape(make(local_views=0).init, jax.random.key(0), VIEWS[0][:1])
    assert "local_norm" not in params and "gram" not in state
    assert set(state["teacher"]["params"]) == {"backbone", "head", "patch_head"}
    assert jax.tree.map(jnp.shape, params["head"]["last"]) == {"kernel": (4, 12)}  # no gain
    assert jax.tree.map(jnp.shape, params["patch_head"]["last"]) == {"kernel": (6, 10)}
    assert make(freeze_epochs=2).still_steps == {"head/last": 20, "patch_head/last": 20}


def test_masks_are_for_the_shrunk_views():
    config = load("dinov3")  # 28 x 28 pixels in patches of 7
    for view in (config.augment.global1, config.augment.global2):
        view.size = (56, 56)
    config.method = {**config.method, "gram_scale": 2, "most_masked": 8}
    config = parse(config)
    method = build.method(config, Schedule(batch_size=256, steps=1000, steps_per_epoch=100, num_images=25_600))
    mask, other, small = augmenting.masks(config, method, augmenting.augmentations(config, method.views))[:3]
    assert mask is not None and mask.grid((56, 56)) == (4, 4) and other == mask and small is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"koleo_images": 4}, "koleo_images=4 must be at least 2 and divide batch_size=6"),
        ({"gram_weight": -1.0}, "gram_weight must be at least 0, got -1.0"),
        ({"gram_copies": (3,)}, r"gram_copies=\(3,\) belongs to Gram anchoring, .* use gram_weight=2.0"),
        ({"gram_scale": 2}, "gram_scale=2 belongs to Gram anchoring"),
        ({**GRAM, "gram_scale": 1.6}, r"gram_scale=1.6 makes 6.4 pixels of the 4 of a patch, .* use 6 / 4 = 1.5"),
        ({**GRAM, "gram_scale": 0.5}, "gram_scale must be at least 1"),
        ({**GRAM, "gram_copies": (0,)}, "each value of gram_copies must be at least 1"),
        ({"teacher_temperature": 0.1}, "teacher_temperature=0.1 must be below student_temperature=0.1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
