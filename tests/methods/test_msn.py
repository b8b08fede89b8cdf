import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models, optim
from ssl_jax.config import ConfigError, parse
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.training import augmenting, build
from tests.methods import drawn
from tests.methods.test_every_method import load

SCHEDULE = Schedule(batch_size=6, steps=80, steps_per_epoch=10, num_images=60)
RNG = np.random.default_rng(0)
VIEWS = tuple(RNG.normal(size=(6, size, size, 1)).astype(np.float32) for size in (16, 16, 8, 8))
MASK = np.argsort(RNG.random((6, 16)), axis=1) < 4  # 4 of 16 patches of each image


def make(backbone=None, **options):
    backbone = backbone or models.create(
        "vit_tiny_patch16_224", dim=16, depth=1, heads=2, mlp_ratio=2.0, patch_size=4, image_size=16
    )
    options = dict(focal_views=2, mask_ratio=0.25, projector=(8, 8, 4), prototypes=5) | options
    return METHODS["msn"](backbone, SCHEDULE, **options)


@functools.cache
def setup():
    """(params, state, what is made of them in a step and beside it)"""
    method = make(power=0.25, me_max=0.7, decay=0.9)
    params, state = drawn.draw(method, VIEWS[0])

    @jax.jit
    def run(params, state, batch, keep, steps, rng):
        def loss(prototypes):
            output = method.loss({**params, "prototypes": prototypes}, state, batch, rng)
            return output.loss, output

        def project(variables, x, **options):
            h = method.backbone.apply({"params": variables["params"]["backbone"]}, x, **options)
            projector = {kind: of_kind["projector"] for kind, of_kind in variables.items()}
            return method.networks["projector"].apply(projector, h, train=True, mutable=["batch_stats"])[0]

        target, anchor, *focal = batch["views"]
        student = {"params": params, "batch_stats": state["batch_stats"]}
        return {
            "loss": jax.value_and_grad(loss, has_aux=True)(params["prototypes"]),
            # The anchor goes through the head's BatchNorm by itself, the small crops together.
            "student": jnp.concatenate([project(student, anchor, keep=keep), project(student, jnp.concatenate(focal))]),
            "target": project(state["teacher"], target),
            "moved": jax.vmap(lambda step: method.update(params, state, step))(steps),
        }

    keep = np.stack([np.flatnonzero(~row) for row in MASK])
    assert keep.shape == (6, 12)
    batch = {"views": VIEWS, "masks": (MASK,)}
    made = run(params, state, batch, keep, np.array([0, 50, 80]), jax.random.key(6))
    return params, state, jax.device_get(made)


def unit(z):
    z = np.asarray(z, np.float64)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_loss_is_the_authors_with_the_anchors_patches_left_out():
    params, _, made = setup()
    (_, output), of_prototypes = made["loss"]
    prototypes = unit(params["prototypes"])
    p = softmax(unit(made["student"]) @ prototypes.T / 0.1)
    q = softmax(unit(made["target"]) @ prototypes.T / 0.1) ** 4
    q = (q / q.sum(1, keepdims=True)).T
    q /= q.sum()
    for _ in range(3):  # on the probabilities themselves
        q /= q.sum(1, keepdims=True) * 5
        q /= q.sum(0, keepdims=True) * 6
    q = (q * 6).T
    prior = np.arange(1.0, 6.0) ** -0.25
    prior /= prior.sum()
    mean = p.mean(0)
    expected = -np.mean(np.sum(np.tile(q, (3, 1)) * np.log(p), axis=1)) + 0.7 * np.sum(mean * np.log(mean / prior))
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
    assert output.embeddings.shape == (2, 6, 4)
    assert np.all(of_prototypes != 0)


def test_teachers_decay_is_linear_and_stretched():
    params, state, made = setup()
    old = state["teacher"]["params"]

    def check(moved, old, new):
        for got, decay in zip(moved, (0.9, 0.95, 0.98), strict=True):  # at steps 0, 50 and 80; 1 at step 100
            np.testing.assert_allclose(got, decay * old + (1 - decay) * new, atol=1e-6)

    jax.tree.map(check, made["moved"]["teacher"]["params"], old, {name: params[name] for name in old})


def test_prototypes_are_not_decayed_and_are_the_students():
    params, state, _ = setup()
    tx, _ = optim.create("adamw", lr=0.1, weight_decay=0.4, warmup_steps=0, steps=10, exempt=("prototypes",))

    @jax.jit
    def run(params):
        return tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0]

    updates = run(params)
    assert not np.any(updates["prototypes"]) and np.any(updates["projector"]["Dense_0"]["kernel"])
    assert set(state["teacher"]["params"]) == {"backbone", "projector"}


@pytest.mark.parametrize("power", [0.0, 0.25])
def test_chance_level_is_that_of_uniform_assignments(power):
    method = make(power=power, me_max=0.7)
    prior = np.arange(1.0, 6.0) ** -power
    prior /= prior.sum()
    np.testing.assert_allclose(method.chance_level, np.log(5) + 0.7 * np.mean(np.log(0.2 / prior)), rtol=1e-6)


def test_all_begins_as_the_authors():
    params, _ = jax.device_get(make().init(jax.random.key(0), VIEWS[0][:1]))
    shapes = jax.tree.map(np.shape, params["projector"])
    assert shapes["Dense_2"] == {"kernel": (8, 4), "bias": (4,)}
    assert shapes["BatchNorm_1"] == {"scale": (8,), "bias": (8,)} and "BatchNorm_2" not in shapes
    assert 0.4 < np.abs(params["prototypes"]).max() <= 0.5 and params["prototypes"].shape == (5, 4)
    embed = params["backbone"]["patch_embed"]["proj"]
    assert not np.any(embed["bias"])
    np.testing.assert_allclose(np.std(embed["kernel"]), np.sqrt(2 / 16), rtol=0.15)  # He's, of 4 x 4 pixels


def test_a_mask_of_another_share_is_refused_when_it_is_built():
    config = load("msn")
    config.mask.ratio = (0.15, 0.3)
    config = parse(config)
    method = build.method(config, SCHEDULE)
    with pytest.raises(ConfigError, match=r"takes config.mask.ratio=\(0.15, 0.15\) and images=1.0, got \(0.15, 0.3\)"):
        augmenting.masks(config, method, augmenting.augmentations(config, method.views))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_ratio": 1.0}, "mask_ratio must be in .0, 1., got 1.0"),
        ({"power": -0.25}, "power must be at least 0, got -0.25"),
        ({"decay_stretch": 0.5}, "decay_stretch must be at least 1, got 0.5"),
        ({"backbone": models.create("resnet8")}, "a ResNet does not have"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
