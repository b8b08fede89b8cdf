import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

SCHEDULE = Schedule(batch_size=6, steps=100, steps_per_epoch=10, num_images=60)
RNG = np.random.default_rng(0)
VIEWS = tuple(RNG.normal(size=(6, size, size, 1)).astype(np.float32) for size in (16, 16, 8, 8))
MASKS = RNG.random((2, 6, 16)) < 0.4
MASKS[:, 0] = False  # the first image has none


def vit(**options):
    return models.create(
        "vit_tiny_patch16_224", dim=16, depth=1, heads=2, mlp_ratio=2.0, patch_size=4, image_size=16, **options
    )


def make(backbone=None, **options):
    options = dict(local_views=2, prototypes=12, hidden=(8,), bottleneck=4, warmup_temperature_epochs=2) | options
    return METHODS["ibot"](backbone or vit(), SCHEDULE, **options)


@functools.cache
def setup():
    """(params, state after some steps, what is made of them in a step and beside it)"""
    method = make(
        patch_weight=0.5,
        teacher_temperature=0.06,
        patch_teacher_temperature=0.08,
        warmup_patch_teacher_temperature=0.04,
    )
    params, state = drawn.draw(method, VIEWS[0][:1])
    state["step"] = np.array(5, np.int32)

    @jax.jit
    def run(params, state, batch, rng):
        def loss(mask_token):
            output = method.loss({**params, "mask_token": mask_token}, state, batch, rng)
            return output.loss, output

        def scores(params, *views, **options):
            """Of the class token and of the patches: [views, batch, 1 + patches, prototypes]."""
            backbone, x = {"params": params["backbone"]}, jnp.concatenate(views)
            tokens = method.backbone.apply(backbone, x, method="tokens", **options)
            return method.networks["head"].apply({"params": params["head"]}, tokens.reshape(-1, 6, *tokens.shape[1:]))

        (x1, x2, *small), mask = batch["views"], jnp.concatenate(batch["masks"])
        return {
            "loss": jax.value_and_grad(loss, has_aux=True)(params["mask_token"]),
            "masked": scores(params, x1, x2, mask=mask, mask_token=params["mask_token"]),
            "small": scores(params, *small),
            "teacher": scores(state["teacher"]["params"], x1, x2),
            "updated": method.update(params, state, jnp.array(1)),
        }

    batch = {"views": VIEWS, "masks": tuple(MASKS)}
    return params, state, jax.device_get(run(params, state, batch, jax.random.key(6)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(targets, scores):
    return -np.sum(targets * np.log(softmax(scores / 0.1)), axis=-1)


def test_loss_is_dinos_of_masked_large_crops_plus_that_of_the_masked_patches():
    _, state, made = setup()
    (_, output), _ = made["loss"]
    new, metrics = output.state, output.metrics
    masked, small, teacher = (made[name].astype(np.float64) for name in ("masked", "small", "teacher"))
    student = [*masked, *small]
    temperature, patch_temperature = 0.045, 0.05  # step 5 of 20 between 0.04 and 0.06, and 0.08
    targets = softmax((teacher[:, :, 0] - state["center"]) / temperature)
    class_loss = np.mean(
        [np.mean(entropy(t, s[:, 0])) for i, t in enumerate(targets) for j, s in enumerate(student) if i != j]
    )
    np.testing.assert_allclose(metrics["class_loss"], class_loss, rtol=1e-4)
    of_images = []
    for t, s, mask in zip(teacher, masked, MASKS, strict=True):
        target = softmax((t[:, 1:] - state["patch_center"]) / patch_temperature)
        terms = entropy(target, s[:, 1:])
        of_images += [np.mean(row[m]) if m.any() else 0.0 for row, m in zip(terms, mask, strict=True)]
    np.testing.assert_allclose(metrics["patch_loss"], np.mean(of_images), rtol=1e-4)
    np.testing.assert_allclose(output.loss, class_loss + 0.5 * np.mean(of_images), rtol=1e-4)

    mean = teacher[:, :, 0].mean(axis=(0, 1))
    np.testing.assert_allclose(new["center"], 0.9 * state["center"] + 0.1 * mean, rtol=1e-3, atol=1e-5)
    mean = teacher[:, :, 1:].mean(axis=(0, 1, 2))  # of all patches
    np.testing.assert_allclose(new["patch_center"], 0.9 * state["patch_center"] + 0.1 * mean, rtol=1e-3, atol=1e-5)


def test_mask_token_is_the_students_alone_and_learns():
    params, state, made = setup()
    _, of_token = made["loss"]
    assert params["mask_token"].shape == (16,) and np.all(of_token != 0)
    assert "mask_token" not in state["teacher"]["params"]
    new = made["updated"]
    assert new["step"] == 1 and set(new["teacher"]["params"]) == {"backbone", "head"}


def test_prototypes_stay_for_the_first_epochs():
    assert make(freeze_epochs=2).frozen_steps == {"head/last": 20}


def test_refuses_a_network_without_patches():
    with pytest.raises(ValueError, match="a ResNet does not have"):
        make(models.create("resnet8"))
    with pytest.raises(ValueError, match=r"leave model\.class_token=True"):
        make(vit(class_token=False, pool="norm_mean"))


@pytest.mark.parametrize("name", ["teacher_temperature", "warmup_patch_teacher_temperature"])
def test_refuses_a_teacher_that_is_not_sharper(name):
    with pytest.raises(ValueError, match=f"{name}=0.1 must be below student_temperature=0.1"):
        make(**{name: 0.1})
