import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.config import ConfigError, parse
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.training import augmenting, build
from tests.methods import drawn
from tests.methods.test_every_method import load

SCHEDULE = Schedule(batch_size=6, steps=100, steps_per_epoch=10, num_images=60)
RNG = np.random.default_rng(0)
VIEWS = tuple(RNG.normal(size=(6, size, size, 1)).astype(np.float32) for size in (16, 16, 8))
MASKS = RNG.random((2, 6, 16)) < 0.4
MASKS[:, 0] = False  # the first image has none
BATCH = {"views": VIEWS, "masks": tuple(MASKS)}
UNTIED = dict(separate_heads=True, patch_prototypes=10, patch_bottleneck=6)


def make(**options):
    backbone = models.create(
        "vit_tiny_patch16_224", dim=16, depth=1, heads=2, mlp_ratio=2.0, patch_size=4, image_size=16
    )
    options = dict(local_views=1, prototypes=12, hidden=(8,), bottleneck=4, warmup_temperature_epochs=2) | options
    return METHODS["dinov2"](backbone, SCHEDULE, **options)


def after_some_steps(method):
    params, state = drawn.draw(method, VIEWS[0][:1])
    return params, {**state, "step": np.asarray(5, np.int32)}


@jax.jit
def tokens_of(params, teacher, batch):
    """(the student's of each view, large ones masked; the teacher's of the large ones)"""
    backbone, (x1, x2, x3) = make().backbone, batch["views"]
    large, mask = jnp.concatenate([x1, x2]), jnp.concatenate(batch["masks"])

    def apply(params, x, **options):
        return backbone.apply({"params": params["backbone"]}, x, method="tokens", **options)

    masked = apply(params, large, mask=mask, mask_token=params["mask_token"])
    return [*jnp.split(masked, 2), apply(params, x3)], jnp.split(apply(teacher, large), 2)


def scores_of(head, x):
    """A head with one hidden layer and a gelu."""
    x, head = np.asarray(x, np.float64), jax.tree.map(np.float64, head)
    mlp, last = head["mlp"], head["last"]
    x = x @ mlp["Dense_0"]["kernel"] + mlp["Dense_0"]["bias"]
    x = x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2
    x = x @ mlp["Dense_1"]["kernel"] + mlp["Dense_1"]["bias"]
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit @ (last["kernel"] / np.linalg.norm(last["kernel"], axis=0)) * last["gain"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sinkhorn(scores, temperature):
    """The authors' loop on the matrix itself."""
    q = np.exp(scores / temperature).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdims=True) * q.shape[0]
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


def koleo(h):
    x = h / np.linalg.norm(h, axis=1, keepdims=True)
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1) + 10 * np.eye(len(x))
    return -np.mean(np.log(distances.min(axis=1)))


# Each pair of two of: how targets are centered, whether the heads are tied, whether all patches pass the head.
@pytest.mark.parametrize(
    "centering, heads, of_masked, koleo_images",
    [("mean", {}, False, 0), ("mean", UNTIED, True, 3), ("sinkhorn", {}, True, 0), ("sinkhorn", UNTIED, False, 3)],
)
def test_loss_is_of_classes_of_masked_patches_and_of_the_spread(centering, heads, of_masked, koleo_images):
    most = int(MASKS.sum(axis=2).max())
    assert 4 < most < 16
    method = make(centering=centering, most_masked=most if of_masked else 0, koleo_images=koleo_images, **heads)
    params, state = after_some_steps(method)
    patch_head = "patch_head" if heads else "head"

    student, of_teacher = jax.device_get(tokens_of(params, state["teacher"]["params"], BATCH))
    output = method.loss(params, state, BATCH, jax.random.key(6))
    new, metrics = output.state, output.metrics
    teacher = state["teacher"]["params"]
    of_student = np.stack([scores_of(params["head"], tokens[:, 0]) for tokens in student])
    patches_of_student = np.stack([scores_of(params[patch_head], tokens[:, 1:]) for tokens in student[:2]])
    scores = np.stack([scores_of(teacher["head"], tokens[:, 0]) for tokens in of_teacher])
    patches = np.stack([scores_of(teacher[patch_head], tokens[:, 1:]) for tokens in of_teacher])
    temperature, masks = 0.04 + 0.03 * 5 / 20, MASKS
    if centering == "mean":
        targets = softmax((scores - state["centers"]["class"]) / temperature)
        patch_targets = softmax((patches - state["centers"]["patch"]) / temperature)[masks]
        mean = 0.9 * state["centers"]["class"] + 0.1 * scores.mean((0, 1))
        np.testing.assert_allclose(new["centers"]["class"], mean, rtol=1e-3, atol=1e-5)
        mean = 0.9 * state["centers"]["patch"] + 0.1 * patches[masks].mean(0)  # of the masked ones
        np.testing.assert_allclose(new["centers"]["patch"], mean, rtol=1e-3, atol=1e-5)
    else:
        targets = sinkhorn(scores.reshape(12, -1), temperature).reshape(scores.shape)
        patch_targets = sinkhorn(patches[masks], temperature)
        assert new["centers"] == {}

    logs = np.log(softmax(of_student / 0.1))
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    class_loss = np.mean([-np.mean(np.sum(targets[t] * logs[s], axis=-1)) for t, s in pairs])
    np.testing.assert_allclose(metrics["class_loss"], class_loss, rtol=1e-4)
    patch_logs = np.log(softmax(patches_of_student / 0.1))
    terms = -np.sum(patch_targets * patch_logs[masks], axis=-1)
    weights = (masks / np.maximum(masks.sum(-1, keepdims=True), 1))[masks]
    patch_loss = np.sum(terms * weights) / 12  # crops, masked or not
    np.testing.assert_allclose(metrics["patch_loss"], patch_loss, rtol=1e-4)
    count = koleo_images or 6  # in groups it is the mean of theirs
    h = np.asarray(student[:2], np.float64)[:, :, 0].reshape(2, -1, count, 16)
    spread = sum(np.mean([koleo(group) for group in view]) for view in h)
    np.testing.assert_allclose(metrics["koleo"], spread, rtol=1e-3)
    np.testing.assert_allclose(output.loss, class_loss + patch_loss + 0.1 * spread, rtol=1e-4)


def test_nested_heads_see_the_first_entries_alone_and_their_losses_are_added():
    nested = make(nested=(2, 4), **UNTIED | {"patch_prototypes": 8})
    params, state = after_some_steps(nested)
    shapes = jax.tree.map(jnp.shape, params)
    for name, count in (("head", 12), ("patch_head", 8)):
        for part, suffix in ((1, ""), (2, "_2"), (4, "_4")):
            of_head = shapes[name + suffix]
            assert of_head["mlp"]["Dense_0"]["kernel"] == (16 // part, 8)
            assert of_head["last"]["gain"] == (count // part,)
    assert jax.tree.map(jnp.shape, state["centers"]) == {
        f"{kind}{suffix}": (count // part,)
        for kind, count in (("class", 12), ("patch", 8))
        for part, suffix in ((1, ""), (2, "_2"), (4, "_4"))
    }
    assert set(nested.still_steps) == {f"{name}{n}/last" for name in ("head", "patch_head") for n in ("", "_2", "_4")}

    student, of_teacher = jax.device_get(tokens_of(params, state["teacher"]["params"], BATCH))
    run = jax.jit(lambda *args: nested.loss(*args))
    output = jax.device_get(run(params, state, BATCH, jax.random.key(6)))
    teacher, temperature, expected = state["teacher"]["params"], 0.04 + 0.03 * 5 / 20, {"class": 0.0, "patch": 0.0}
    for part, suffix in ((1, ""), (2, "_2"), (4, "_4")):
        of_student = np.stack([scores_of(params["head" + suffix], x[:, 0, : 16 // part]) for x in student])
        scores = np.stack([scores_of(teacher["head" + suffix], x[:, 0, : 16 // part]) for x in of_teacher])
        targets = softmax((scores - state["centers"]["class" + suffix]) / temperature)
        logs = np.log(softmax(of_student / 0.1))
        pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
        expected["class"] += np.mean([-np.mean(np.sum(targets[t] * logs[s], axis=-1)) for t, s in pairs])
        moved = 0.9 * state["centers"]["class" + suffix] + 0.1 * scores.mean((0, 1))
        np.testing.assert_allclose(output.state["centers"]["class" + suffix], moved, rtol=1e-3, atol=1e-5)
        patches = np.stack([scores_of(teacher["patch_head" + suffix], x[:, 1:, : 16 // part]) for x in of_teacher])
        targets = softmax((patches - state["centers"]["patch" + suffix]) / temperature)
        of_student = np.stack([scores_of(params["patch_head" + suffix], x[:, 1:, : 16 // part]) for x in student[:2]])
        terms = -np.sum(targets * np.log(softmax(of_student / 0.1)), axis=-1)
        expected["patch"] += np.sum(terms * MASKS / np.maximum(MASKS.sum(-1, keepdims=True), 1)) / 12
    np.testing.assert_allclose(output.metrics["class_loss"], expected["class"], rtol=1e-4)
    np.testing.assert_allclose(output.metrics["patch_loss"], expected["patch"], rtol=1e-4)


def test_masks_of_more_patches_than_pass_the_head_are_refused_when_they_are_built():
    config = load("dinov2")  # 28 x 28 pixels in patches of 7, up to half of them masked
    config.method = {**config.method, "most_masked": 7}
    config = parse(config)
    method = build.method(config, SCHEDULE)
    with pytest.raises(ConfigError, match=r"up to 8 patches of global1, more than config.method.most_masked=7; use"):
        augmenting.masks(config, method, augmenting.augmentations(config, method.views))


@pytest.mark.slow
def test_a_batch_without_any_mask_gives_finite_gradients():
    method = make(centering="sinkhorn")
    batch = {**BATCH, "masks": (np.zeros((6, 16), bool),) * 2}

    def loss(*args):
        output = method.loss(*args)
        return output.loss, output.metrics

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, metrics), gradients = run(*after_some_steps(method), batch, jax.random.key(6))
    assert metrics["patch_loss"] == 0
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


def test_heads_are_tied_or_not_with_trainable_gains_and_frozen_prototypes():
    tied, untied = make(freeze_epochs=2), make(freeze_epochs=2, **UNTIED)
    assert tied.still_steps == {"head/last": 20}
    assert untied.still_steps == {"head/last": 20, "patch_head/last": 20}
    params, state = jax.eval_shape(untied.init, jax.random.key(0), VIEWS[0][:1])
    assert jax.tree.map(jnp.shape, params["head"]["last"]) == {"kernel": (4, 12), "gain": (12,)}
    assert jax.tree.map(jnp.shape, params["patch_head"]["last"]) == {"kernel": (6, 10), "gain": (10,)}
    assert set(state["teacher"]["params"]) == {"backbone", "head", "patch_head"}
    assert jax.tree.map(jnp.shape, state["centers"]) == {"class": (12,), "patch": (10,)}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"centering": "batch"}, "centering must be one of mean, sinkhorn, got 'batch'"),
        ({"koleo_images": 4}, "koleo_images=4 must be at least 2 and divide batch_size=6"),
        ({"koleo_images": 1}, "koleo_images=1 must be at least 2"),
        ({"koleo_weight": -0.1}, "koleo_weight must be at least 0, got -0.1"),
        ({"nested": (2, 2)}, r"each number of nested=\(2, 2\) must be another divisor of model\.dim=16"),
        ({"nested": (8,)}, r"must be another divisor of prototypes=12"),
        ({"nested": (1, 2)}, r"each value of nested must be at least 2"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
