import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import models, optim
from ssl_jax.methods import METHODS, Run

RUN = Run(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
VIEWS = tuple(jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1)))


def resnet(**options):
    backbone = models.create("resnet8", stages=(1,))
    return METHODS["moco_v3"](backbone, RUN, **dict(projector=(16, 8), predictor=(12, 8), temperature=0.3) | options)


def vit(**options):
    backbone = models.create(
        "vit_tiny_patch16_224", dim=24, depth=1, heads=2, patch_size=8, image_size=16, positions="sincos"
    )
    options = dict(projector=(16, 16, 8), predictor=(12, 8), predictor_norm=True, frozen_patches=True) | options
    return METHODS["moco_v3"](backbone, RUN, **options)


def apply(networks, params, batch_stats, x):
    for name, module in networks.items():
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("make", [resnet, vit])
def test_loss_is_two_temperatures_times_the_cross_entropy_of_both_directions(make):
    method = make(temperature=0.3)
    params, state = method.init(jax.random.key(1), VIEWS[0])
    # A teacher unlike the online network, so that it shows which of them made the keys.
    teacher = jax.tree.map(lambda p: 1.5 * p + 0.1, state["teacher"]["params"])
    state = {**state, "teacher": {**state["teacher"], "params": teacher}}
    loss, (_, metrics) = method.loss(params, state, {"views": VIEWS}, jax.random.key(2))
    q = [apply(method.networks, params, state["batch_stats"], x) for x in VIEWS]
    k = [apply(method.teacher_networks, teacher, state["teacher"]["batch_stats"], x) for x in VIEWS]
    expected = 0.0
    for queries, keys in ((q[0], k[1]), (q[1], k[0])):
        logits = queries @ keys.T / 0.3
        expected += 2 * 0.3 * np.mean(np.log(np.sum(np.exp(logits), axis=1)) - np.diagonal(logits))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert metrics["embeddings"].shape == (2, 8, 8)


def test_no_gradient_reaches_the_teacher():
    method = resnet()
    params, state = method.init(jax.random.key(1), VIEWS[0])

    def loss(teacher):
        moved = {**state, "teacher": {**state["teacher"], "params": teacher}}
        return method.loss(params, moved, {"views": VIEWS}, jax.random.key(2))[0]

    for leaf in jax.tree.leaves(jax.grad(loss)(state["teacher"]["params"])):
        np.testing.assert_array_equal(leaf, 0.0)


def test_heads_are_the_authors():
    def layers(method, head):
        params, _ = method.init(jax.random.key(0), VIEWS[0])
        return jax.tree.map(jnp.shape, params[head])

    norm = {"scale": (16,), "bias": (16,)}
    # The last BatchNorm has no parameters, and so no entry; no linear layer has a bias.
    assert layers(resnet(), "projector") == {
        "Dense_0": {"kernel": (16, 16)},
        "BatchNorm_0": norm,
        "Dense_1": {"kernel": (16, 8)},
    }
    assert layers(vit(), "projector") == {
        "Dense_0": {"kernel": (24, 16)},
        "BatchNorm_0": norm,
        "Dense_1": {"kernel": (16, 16)},
        "BatchNorm_1": norm,
        "Dense_2": {"kernel": (16, 8)},
    }
    stats = {name: make().init(jax.random.key(0), VIEWS[0])[1]["batch_stats"] for name, make in HEADS.items()}
    assert [len(stats[name]["projector"]) for name in HEADS] == [2, 3]  # a BatchNorm after every layer
    assert [len(stats[name]["predictor"]) for name in HEADS] == [1, 2]  # the ResNet's predictor ends without
    assert "predictor" not in resnet().init(jax.random.key(0), VIEWS[0])[1]["teacher"]["params"]


HEADS = {"resnet": resnet, "vit": vit}


@pytest.mark.parametrize("step, decay", [(0, 0.9), (50, 0.95), (100, 1.0)])
def test_decay_goes_by_half_a_cosine_to_1(step, decay):
    method = resnet(decay=0.9)
    params, state = method.init(jax.random.key(0), VIEWS[0])
    moved = method.update(jax.tree.map(lambda p: p + 1.0, params), state, step)["teacher"]["params"]
    change = jax.tree.map(lambda new, old: new - old, moved, state["teacher"]["params"])
    for leaf in jax.tree.leaves(change):
        np.testing.assert_allclose(leaf, 1.0 - decay, atol=1e-6)


def test_the_patch_projection_of_a_vit_never_moves():
    method = vit()
    params, state = method.init(jax.random.key(0), VIEWS[0])
    tx, _ = optim.create(
        "adamw", lr=0.1, warmup_steps=0, steps=RUN.steps, weight_decay=0.1, frozen_steps=method.frozen_steps
    )
    opt_state = tx.init(params)
    grad = jax.jit(jax.grad(lambda p: method.loss(p, state, {"views": VIEWS}, jax.random.key(1))[0]))
    moved = params
    for _ in range(2):
        updates, opt_state = tx.update(grad(moved), opt_state, moved)
        moved = optax.apply_updates(moved, updates)
    same = jax.tree.map(np.array_equal, moved["backbone"], params["backbone"])
    assert all(jax.tree.leaves(same.pop("patch_embed")))
    assert not any(jax.tree.leaves(same))
    assert max(method.frozen_steps.values()) > RUN.steps
    assert resnet().frozen_steps == vit(frozen_patches=False).frozen_steps == {}


def test_a_vits_kernels_are_xaviers():
    params = vit().init(jax.random.key(0), VIEWS[0])[0]["backbone"]
    block = params["blocks_0"]
    fans = [  # kernel, fan-in + fan-out
        (params["patch_embed"]["proj"]["kernel"], 8 * 8 + 24),
        (block["attn"]["qkv"]["kernel"], 24 + 24),  # of queries, keys and values each, not 24 + 72
        (block["attn"]["proj"]["kernel"], 24 + 24),
        (block["mlp"]["fc1"]["kernel"], 24 + 96),
    ]
    for kernel, fan in fans:
        limit = np.sqrt(6 / fan)
        assert 0.97 * limit < np.max(np.abs(kernel)) <= limit
        np.testing.assert_allclose(np.std(kernel), limit / np.sqrt(3), rtol=0.05)
    np.testing.assert_array_equal(params["patch_embed"]["proj"]["bias"], 0.0)


def test_chance_level_is_the_loss_of_equal_embeddings():
    # Cross entropy log 8 in both directions, times 2 * 0.3.
    np.testing.assert_allclose(resnet().chance_level, 2 * 2 * 0.3 * np.log(8))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"decay": 1.5}, "decay must be in"),
        ({"frozen_patches": True}, "frozen_patches=True needs a ViT"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        resnet(**options)
