import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import build, models
from ssl_jax.config import ConfigError
from ssl_jax.methods import METHODS, Run
from tests.methods.test_every_method import load

RUN = Run(batch_size=6, steps=100, steps_per_epoch=10, num_images=60)


def make(**options):
    backbone = models.create(
        "vit_tiny_patch16_224", dim=16, depth=1, heads=2, mlp_ratio=2.0, patch_size=4, image_size=16
    )
    options = dict(local_views=1, prototypes=12, hidden=(8,), bottleneck=4, warmup_temperature_epochs=2) | options
    return METHODS["dinov2"](backbone, RUN, **options)


UNTIED = dict(separate_heads=True, patch_prototypes=10, patch_bottleneck=6)


def draw_batch():
    keys = jax.random.split(jax.random.key(0), 5)
    views = tuple(jax.random.normal(key, (6, size, size, 1)) for key, size in zip(keys, [16, 16, 8], strict=False))
    masks = [jax.random.bernoulli(key, 0.4, (6, 16)) for key in keys[3:]]
    return {"views": views, "masks": tuple(mask.at[0].set(False) for mask in masks)}  # the first image has none


def after_some_steps(method):
    params, state = method.init(jax.random.key(1), draw_batch()["views"][0][:1])
    other, _ = method.init(jax.random.key(2), draw_batch()["views"][0][:1])
    state["teacher"]["params"] = {name: other[name] for name in state["teacher"]["params"]}
    params["mask_token"] = jax.random.normal(jax.random.key(3), params["mask_token"].shape)
    keys = {"class": jax.random.key(4), "patch": jax.random.key(5)}
    centers = {name: 0.1 * jax.random.normal(keys[name], c.shape) for name, c in state["centers"].items()}
    return params, {**state, "centers": centers, "step": jnp.asarray(5, jnp.int32)}


def tokens_of(method, params, x, mask=None, token=None):
    return method.backbone.apply({"params": params["backbone"]}, x, tokens=True, mask=mask, mask_token=token)


def scores_of(method, name, params, tokens):
    return np.asarray(method.heads[name].apply({"params": params[name]}, tokens), np.float64)


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


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
@pytest.mark.parametrize("heads", [{}, UNTIED])
@pytest.mark.parametrize("of_masked", [False, True])
def test_loss_is_of_classes_of_masked_patches_and_of_the_spread(centering, heads, of_masked):
    batch = draw_batch()
    most = max(int(mask.sum(axis=1).max()) for mask in batch["masks"])
    assert 4 < most < 16
    method = make(centering=centering, most_masked=most if of_masked else 0, **heads)
    params, state = after_some_steps(method)
    loss, (new, metrics) = method.loss(params, state, batch, jax.random.key(6))
    patch_head = "patch_head" if heads else "head"
    masks, teacher = np.stack(batch["masks"]), state["teacher"]["params"]
    (x1, x2, x3), token = batch["views"], params["mask_token"]
    student = [tokens_of(method, params, x, m, token) for x, m in zip((x1, x2), batch["masks"], strict=True)]
    student += [tokens_of(method, params, x3)]
    teacher_tokens = [tokens_of(method, teacher, x) for x in (x1, x2)]
    scores = np.stack([scores_of(method, "head", teacher, t[:, 0]) for t in teacher_tokens])
    patches = np.stack([scores_of(method, patch_head, teacher, t[:, 1:]) for t in teacher_tokens])
    temperature = 0.04 + 0.03 * 5 / 20
    if centering == "mean":
        targets = softmax((scores - np.asarray(state["centers"]["class"])) / temperature)
        patch_targets = softmax((patches - np.asarray(state["centers"]["patch"])) / temperature)[masks]
        mean = 0.9 * state["centers"]["class"] + 0.1 * scores.mean((0, 1))
        np.testing.assert_allclose(new["centers"]["class"], mean, rtol=1e-3, atol=1e-5)
        mean = 0.9 * state["centers"]["patch"] + 0.1 * patches[masks].mean(0)  # of the masked ones
        np.testing.assert_allclose(new["centers"]["patch"], mean, rtol=1e-3, atol=1e-5)
    else:
        targets = sinkhorn(scores.reshape(12, -1), temperature).reshape(scores.shape)
        patch_targets = sinkhorn(patches[masks], temperature)
        assert new["centers"] == {}

    logs = [np.log(softmax(scores_of(method, "head", params, s[:, 0]) / 0.1)) for s in student]
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    class_loss = np.mean([-np.mean(np.sum(targets[t] * logs[s], axis=-1)) for t, s in pairs])
    np.testing.assert_allclose(metrics["class_loss"], class_loss, rtol=1e-4)
    patch_logs = np.log(softmax(np.stack([scores_of(method, patch_head, params, s[:, 1:]) for s in student[:2]]) / 0.1))
    terms = -np.sum(patch_targets * patch_logs[masks], axis=-1)
    weights = (masks / np.maximum(masks.sum(-1, keepdims=True), 1))[masks]
    patch_loss = np.sum(terms * weights) / 12  # crops, masked or not
    np.testing.assert_allclose(metrics["patch_loss"], patch_loss, rtol=1e-4)
    spread = sum(koleo(np.asarray(s[:, 0], np.float64)) for s in student[:2])
    np.testing.assert_allclose(metrics["koleo"], spread, rtol=1e-3)
    np.testing.assert_allclose(loss, class_loss + patch_loss + 0.1 * spread, rtol=1e-4)


def test_masks_of_more_patches_than_pass_the_head_are_refused_when_they_are_built():
    config = load("dinov2")  # 28 x 28 pixels in patches of 7, up to half of them masked
    config.method = {**config.method, "most_masked": 7}
    method = build.method(config, RUN)
    with pytest.raises(ConfigError, match=r"up to 8 patches of global1, more than config.method.most_masked=7; use"):
        build.masks(config, method)


def test_koleo_in_groups_is_that_of_each():
    method = make(koleo_images=3)
    params, state = after_some_steps(method)
    _, (_, metrics) = method.loss(params, state, draw_batch(), jax.random.key(6))
    h = np.asarray(metrics["embeddings"], np.float64)
    expected = sum(np.mean([koleo(view[:3]), koleo(view[3:])]) for view in h)
    np.testing.assert_allclose(metrics["koleo"], expected, rtol=1e-3)


@pytest.mark.slow
def test_a_batch_without_any_mask_gives_finite_gradients():
    method = make(centering="sinkhorn")
    params, state = after_some_steps(method)
    batch = {**draw_batch(), "masks": (jnp.zeros((6, 16), bool),) * 2}
    (_, (_, metrics)), gradients = jax.value_and_grad(method.loss, has_aux=True)(
        params, state, batch, jax.random.key(6)
    )
    assert metrics["patch_loss"] == 0
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradients))


def test_heads_are_tied_or_not_with_trainable_gains_and_frozen_prototypes():
    tied, untied = make(freeze_epochs=2), make(freeze_epochs=2, **UNTIED)
    assert tied.still_steps == {"head/last": 20}
    assert untied.still_steps == {"head/last": 20, "patch_head/last": 20}
    params, state = untied.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    assert jax.tree.map(jnp.shape, params["head"]["last"]) == {"kernel": (4, 12), "gain": (12,)}
    assert jax.tree.map(jnp.shape, params["patch_head"]["last"]) == {"kernel": (6, 10), "gain": (10,)}
    assert set(state["teacher"]["params"]) == {"backbone", "head", "patch_head"}
    assert jax.tree.map(jnp.shape, state["centers"]) == {"class": (12,), "patch": (10,)}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"centering": "batch"}, "centering must be one of mean, sinkhorn, got 'batch'"),
        ({"koleo_images": 4}, "koleo_images=4 must divide batch_size=6, and be 2"),
        ({"koleo_images": 1}, "koleo_images=1 must divide"),
        ({"koleo_weight": -0.1}, "koleo_weight must be at least 0, got -0.1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
