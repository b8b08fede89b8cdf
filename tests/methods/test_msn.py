import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import build, models, optim
from ssl_jax.config import ConfigError
from ssl_jax.methods import METHODS, Run
from tests.methods.test_every_method import load

RUN = Run(batch_size=6, steps=80, steps_per_epoch=10, num_images=60)


def make(backbone=None, **options):
    backbone = backbone or models.create(
        "vit_tiny_patch16_224", dim=16, depth=1, heads=2, mlp_ratio=2.0, patch_size=4, image_size=16
    )
    options = dict(focal_views=2, mask_ratio=0.25, projector=(8, 8, 4), prototypes=5) | options
    return METHODS["msn"](backbone, RUN, **options)


def draw_batch():
    keys = jax.random.split(jax.random.key(0), 5)
    views = tuple(jax.random.normal(key, (6, size, size, 1)) for key, size in zip(keys, [16, 16, 8, 8], strict=False))
    masks = jnp.argsort(jax.random.uniform(keys[4], (6, 16)), axis=1) < 4  # 4 of 16 patches of each image
    return {"views": views, "masks": (masks,)}


def after_some_steps(method):
    params, state = method.init(jax.random.key(1), draw_batch()["views"][0][:1])
    other, _ = method.init(jax.random.key(2), draw_batch()["views"][0][:1])
    state["teacher"]["params"] = {name: other[name] for name in state["teacher"]["params"]}
    return params, state


def project(method, params, stats, h):
    variables = {"params": params["projector"], "batch_stats": stats["projector"]}
    z, _ = method.networks["projector"].apply(variables, h, train=True, mutable=["batch_stats"])
    z = np.asarray(z, np.float64)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("power", [0.0, 0.25])
def test_loss_is_the_authors_with_the_anchors_patches_left_out(power):
    method, batch = make(power=power, me_max=0.7), draw_batch()
    params, state = after_some_steps(method)
    loss, (_, metrics) = method.loss(params, state, batch, jax.random.key(6))
    target, anchor, focal1, focal2 = batch["views"]
    keep = jnp.stack([jnp.flatnonzero(~row) for row in batch["masks"][0]])
    assert keep.shape == (6, 12)
    backbone, stats = {"params": params["backbone"]}, state["batch_stats"]
    # The anchor goes through the head's BatchNorm by itself, the small crops together.
    z = project(method, params, stats, method.backbone.apply(backbone, anchor, keep=keep))
    z_focal = project(method, params, stats, method.backbone.apply(backbone, jnp.concatenate([focal1, focal2])))
    teacher = state["teacher"]["params"]
    z_target = project(method, teacher, stats, method.backbone.apply({"params": teacher["backbone"]}, target))
    prototypes = np.asarray(params["prototypes"], np.float64)
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    p = softmax(np.concatenate([z, z_focal]) @ prototypes.T / 0.1)
    q = softmax(z_target @ prototypes.T / 0.1) ** 4
    q = (q / q.sum(1, keepdims=True)).T
    q /= q.sum()
    for _ in range(3):  # on the probabilities themselves
        q /= q.sum(1, keepdims=True) * 5
        q /= q.sum(0, keepdims=True) * 6
    q = (q * 6).T
    prior = np.arange(1.0, 6.0) ** -power
    prior /= prior.sum()
    mean = p.mean(0)
    expected = -np.mean(np.sum(np.tile(q, (3, 1)) * np.log(p), axis=1)) + 0.7 * np.sum(mean * np.log(mean / prior))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert metrics["embeddings"].shape == (2, 6, 4)


def test_teachers_decay_is_linear_and_stretched():
    method = make(decay=0.9)
    params, state = after_some_steps(method)
    for step, decay in ((0, 0.9), (50, 0.95), (80, 0.98)):  # 1 at step 100
        new = method.update(params, state, step)["teacher"]["params"]
        expected = optim.ema(state["teacher"]["params"], {name: params[name] for name in new}, decay)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new, expected)


@pytest.mark.slow
def test_prototypes_learn_are_not_decayed_and_are_the_students():
    method = make()
    params, state = after_some_steps(method)
    gradient = jax.grad(lambda p: method.loss(p, state, draw_batch(), jax.random.key(6))[0])(params)
    assert jnp.all(gradient["prototypes"] != 0)
    tx, _ = optim.create("adamw", lr=0.1, weight_decay=0.4, warmup_steps=0, steps=10, exempt=("prototypes",))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert not jnp.any(updates["prototypes"]) and jnp.any(updates["projector"]["Dense_0"]["kernel"])
    assert jnp.max(jnp.abs(params["prototypes"])) <= 0.5 and params["prototypes"].shape == (5, 4)
    assert set(state["teacher"]["params"]) == {"backbone", "projector"}


@pytest.mark.parametrize("power", [0.0, 0.25])
def test_chance_level_is_that_of_uniform_assignments(power):
    method = make(power=power, me_max=0.7)
    prior = np.arange(1.0, 6.0) ** -power
    prior /= prior.sum()
    np.testing.assert_allclose(method.chance_level, np.log(5) + 0.7 * np.mean(np.log(0.2 / prior)), rtol=1e-6)


def test_projector_is_the_authors():
    params, _ = make().init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    shapes = jax.tree.map(jnp.shape, params["projector"])
    assert shapes["Dense_2"] == {"kernel": (8, 4), "bias": (4,)}
    assert shapes["BatchNorm_1"] == {"scale": (8,), "bias": (8,)} and "BatchNorm_2" not in shapes


def test_a_mask_of_another_share_is_refused_when_it_is_built():
    config = load("msn")
    config.mask.ratio = (0.15, 0.3)
    method = build.method(config, RUN)
    with pytest.raises(ConfigError, match=r"takes config.mask.ratio=\(0.15, 0.15\) and images=1.0, got \(0.15, 0.3\)"):
        build.masks(config, method)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_ratio": 1.0}, "mask_ratio must be in .0, 1., got 1.0"),
        ({"power": -0.25}, "power must be at least 0, got -0.25"),
        ({"decay_stretch": 0.5}, "decay_stretch must be at least 1, got 0.5"),
        ({"backbone": models.create("resnet8")}, "a ResNet has not"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
