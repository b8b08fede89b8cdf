import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run

RUN = Run(batch_size=6, steps=100, steps_per_epoch=10, num_images=60)


def vit(**options):
    return models.create(
        "vit_tiny_patch16_224", dim=16, depth=1, heads=2, mlp_ratio=2.0, patch_size=4, image_size=16, **options
    )


def make(backbone=None, **options):
    options = dict(local_views=2, prototypes=12, hidden=(8,), bottleneck=4, warmup_temperature_epochs=2) | options
    return METHODS["ibot"](backbone or vit(), RUN, **options)


def draw_batch():
    keys = jax.random.split(jax.random.key(0), 6)
    views = tuple(jax.random.normal(key, (6, size, size, 1)) for key, size in zip(keys, [16, 16, 8, 8], strict=False))
    masks = [jax.random.bernoulli(key, 0.4, (6, 16)) for key in keys[4:]]
    return {"views": views, "masks": tuple(mask.at[0].set(False) for mask in masks)}  # the first image has none


def after_some_steps(method):
    params, state = method.init(jax.random.key(1), draw_batch()["views"][0][:1])
    other, _ = method.init(jax.random.key(2), draw_batch()["views"][0][:1])
    state["teacher"]["params"] = {name: other[name] for name in state["teacher"]["params"]}
    params["mask_token"] = jax.random.normal(jax.random.key(3), params["mask_token"].shape)
    for name, seed in (("center", 4), ("patch_center", 5)):
        state[name] = 0.1 * jax.random.normal(jax.random.key(seed), state[name].shape)
    return params, {**state, "step": jnp.asarray(5, jnp.int32)}


def scores_of(method, params, x, mask=None, token=None):
    """Of the class token and of the patches: [batch, 1 + patches, prototypes]."""
    tokens = method.backbone.apply({"params": params["backbone"]}, x, tokens=True, mask=mask, mask_token=token)
    return np.asarray(method.networks["head"].apply({"params": params["head"]}, tokens), np.float64)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(targets, scores):
    return -np.sum(targets * np.log(softmax(scores / 0.1)), axis=-1)


def test_loss_is_dinos_of_masked_large_crops_plus_that_of_the_masked_patches():
    method = make(
        patch_weight=0.5,
        teacher_temperature=0.06,
        patch_teacher_temperature=0.08,
        warmup_patch_teacher_temperature=0.04,
    )
    batch = draw_batch()
    params, state = after_some_steps(method)
    loss, (new, metrics) = method.loss(params, state, batch, jax.random.key(6))
    (x1, x2, x3, x4), masks = batch["views"], batch["masks"]
    token = params["mask_token"]
    masked = [scores_of(method, params, x, m, token) for x, m in zip((x1, x2), masks, strict=True)]
    student = [*masked, scores_of(method, params, x3), scores_of(method, params, x4)]
    teacher = [scores_of(method, state["teacher"]["params"], x) for x in (x1, x2)]
    temperature, patch_temperature = 0.045, 0.05  # step 5 of 20 between 0.04 and 0.06, and 0.08
    targets = [softmax((t[:, 0] - np.asarray(state["center"])) / temperature) for t in teacher]
    class_loss = np.mean(
        [np.mean(entropy(t, s[:, 0])) for i, t in enumerate(targets) for j, s in enumerate(student) if i != j]
    )
    np.testing.assert_allclose(metrics["class_loss"], class_loss, rtol=1e-4)
    of_images = []
    for t, s, mask in zip(teacher, masked, masks, strict=True):
        target = softmax((t[:, 1:] - np.asarray(state["patch_center"])) / patch_temperature)
        terms = entropy(target, s[:, 1:])
        of_images += [np.mean(row[m]) if m.any() else 0.0 for row, m in zip(terms, np.asarray(mask), strict=True)]
    np.testing.assert_allclose(metrics["patch_loss"], np.mean(of_images), rtol=1e-4)
    np.testing.assert_allclose(loss, class_loss + 0.5 * np.mean(of_images), rtol=1e-4)

    mean = np.mean([t[:, 0] for t in teacher], axis=(0, 1))
    np.testing.assert_allclose(new["center"], 0.9 * state["center"] + 0.1 * mean, rtol=1e-3, atol=1e-5)
    mean = np.mean([t[:, 1:] for t in teacher], axis=(0, 1, 2))  # of all patches
    np.testing.assert_allclose(new["patch_center"], 0.9 * state["patch_center"] + 0.1 * mean, rtol=1e-3, atol=1e-5)


def test_mask_token_is_the_students_alone_and_learns():
    method = make()
    params, state = after_some_steps(method)
    gradient = jax.grad(lambda p: method.loss(p, state, draw_batch(), jax.random.key(6))[0])(params)
    assert params["mask_token"].shape == (16,) and jnp.all(gradient["mask_token"] != 0)
    assert "mask_token" not in state["teacher"]["params"]
    new = method.update(params, state, 1)
    assert new["step"] == 1 and set(new["teacher"]["params"]) == {"backbone", "head"}


def test_prototypes_stay_for_the_first_epochs():
    assert make(freeze_epochs=2).frozen_steps == {"head/last": 20}


def test_refuses_a_network_without_patches():
    with pytest.raises(ValueError, match="a ResNet has not"):
        make(models.create("resnet8"))
    with pytest.raises(ValueError, match=r"leave model\.class_token=True"):
        make(vit(class_token=False, pool="norm_mean"))


@pytest.mark.parametrize("name", ["teacher_temperature", "warmup_patch_teacher_temperature"])
def test_refuses_a_teacher_that_is_not_sharper(name):
    with pytest.raises(ValueError, match=f"{name}=0.1 must be below student_temperature=0.1"):
        make(**{name: 0.1})
