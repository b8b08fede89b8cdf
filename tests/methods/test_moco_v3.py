import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import models, optim
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
VIEWS = np.random.default_rng(0).normal(size=(2, 8, 16, 16, 1)).astype(np.float32)


def resnet(**options):
    backbone = models.create("resnet8", stages=(1,))
    return METHODS["moco_v3"](backbone, RUN, **dict(projector=(16, 8), predictor=(12, 8), temperature=0.3) | options)


def vit(**options):
    backbone = models.create(
        "vit_tiny_patch16_224", dim=24, depth=1, heads=2, patch_size=8, image_size=16, positions="sincos"
    )
    options = dict(projector=(16, 16, 8), predictor=(12, 8), predictor_norm=True, frozen_patches=True) | options
    return METHODS["moco_v3"](backbone, RUN, **options)


def shapes_of(method):
    """(params, state)"""
    return jax.eval_shape(method.init, jax.random.key(0), VIEWS[0])


@pytest.mark.parametrize("make", [resnet, vit])
def test_loss_is_two_temperatures_times_the_cross_entropy_of_both_directions(make):
    method = make(temperature=0.3)

    def apply(networks, variables, x):
        for name, module in networks.items():
            of_module = {"params": variables["params"][name], "batch_stats": variables["batch_stats"][name]}
            x, _ = module.apply(of_module, x, train=True, mutable=["batch_stats"])
        return x

    @jax.jit
    def run(params, state, views):
        def loss(teacher):
            moved = {**state, "teacher": {**state["teacher"], "params": teacher}}
            output = method.loss(params, moved, {"views": tuple(views)}, jax.random.key(2))
            return output.loss, output

        online = {"params": params, "batch_stats": state["batch_stats"]}
        return (
            jax.value_and_grad(loss, has_aux=True)(state["teacher"]["params"]),
            jax.vmap(lambda x: apply(method.networks, online, x))(views),
            jax.vmap(lambda x: apply(method.teacher_networks, state["teacher"], x))(views),
        )

    ((loss, output), of_teacher), *outputs = jax.device_get(run(*drawn.draw(method, VIEWS[0]), VIEWS))
    q, k = (x / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True) for x in outputs)
    expected = 0.0
    for queries, keys in ((q[0], k[1]), (q[1], k[0])):
        logits = queries @ keys.T / 0.3
        expected += 2 * 0.3 * np.mean(np.log(np.sum(np.exp(logits), axis=1)) - np.diagonal(logits))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert output.embeddings.shape == (2, 8, 8)
    for leaf in jax.tree.leaves(of_teacher):
        np.testing.assert_array_equal(leaf, 0.0, "no gradient reaches the teacher")


def test_heads_are_the_authors():
    def layers(method, head):
        return jax.tree.map(jnp.shape, shapes_of(method)[0][head])

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
    stats = [shapes_of(make())[1]["batch_stats"] for make in (resnet, vit)]
    assert [len(of_both["projector"]) for of_both in stats] == [2, 3]  # a BatchNorm after every layer
    assert [len(of_both["predictor"]) for of_both in stats] == [1, 2]  # the ResNet's predictor ends without
    assert "predictor" not in shapes_of(resnet())[1]["teacher"]["params"]


def test_decay_goes_by_half_a_cosine_to_1():
    method, steps = resnet(decay=0.9), np.array([0, 50, 100])
    params, state = drawn.draw(method, VIEWS[0])
    teacher = state["teacher"]["params"]
    online = {**params, **jax.tree.map(lambda p: p + 1, teacher)}
    move = jax.jit(jax.vmap(method.update, in_axes=(None, None, 0)))
    moved = move(online, state, steps)["teacher"]["params"]
    for new, old in zip(jax.tree.leaves(moved), jax.tree.leaves(teacher), strict=True):
        change = np.asarray(new) - old
        expected = 1.0 - np.array([0.9, 0.95, 1.0]).reshape(3, *[1] * old.ndim)
        np.testing.assert_allclose(change, np.broadcast_to(expected, change.shape), atol=1e-6)


def test_the_patch_projection_of_a_vit_never_moves():
    method = vit()
    params, _ = drawn.draw(method, VIEWS[0])
    tx, _ = optim.create(
        "adamw", lr=0.1, warmup_steps=0, steps=RUN.steps, weight_decay=0.1, frozen_steps=method.frozen_steps
    )

    @jax.jit
    def two_steps(params):
        opt_state, gradient = tx.init(params), jax.tree.map(jnp.ones_like, params)
        for _ in range(2):
            updates, opt_state = tx.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
        return params

    same = jax.tree.map(np.array_equal, two_steps(params)["backbone"], params["backbone"])
    assert all(jax.tree.leaves(same.pop("patch_embed")))
    assert not any(jax.tree.leaves(same))
    assert max(method.frozen_steps.values()) > RUN.steps
    assert resnet().frozen_steps == vit(frozen_patches=False).frozen_steps == {}


def test_a_vits_kernels_are_xaviers():
    params = jax.device_get(vit().init(jax.random.key(0), VIEWS[0])[0]["backbone"])
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
