import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run

RUN = Run(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
MASK = np.random.default_rng(0).random((4, 16)) < 0.6


def setup(**options):
    vit = dict(dim=16, depth=3, heads=2, patch_size=4, image_size=16, pool="norm_mean")
    backbone = models.create("vit_tiny_patch16_224", **vit)
    method = METHODS["data2vec"](backbone, RUN, **{"target_blocks": 2, **options})
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))
    params, state = method.init(jax.random.key(1), x[:1])
    other, _ = method.init(jax.random.key(7), x[:1])
    state["teacher"]["params"]["backbone"] = other["backbone"]  # unlike the student
    return method, {"views": (x,), "masks": (jnp.asarray(MASK),)}, params, state


def normalize(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_targets_are_the_teachers_last_blocks_normalized_each_and_their_mean_again():
    method, batch, _, state = setup()
    variables, x = {"params": state["teacher"]["params"]["backbone"]}, batch["views"][0]
    # Of a model of two and of all three blocks, before the LayerNorm, which capture_intermediates shows.
    _, seen = method.backbone.apply(variables, x, capture_intermediates=True)
    blocks = [seen["intermediates"][f"blocks_{i}"]["__call__"][0][:, 1:] for i in (1, 2)]
    mean = np.mean(normalize(np.asarray(blocks, np.float64)), axis=0)
    np.testing.assert_allclose(method.targets(state["teacher"], x), normalize(mean), atol=1e-4)


def test_the_decay_is_constant_unless_a_config_says_otherwise():
    method, _, params, state = setup()
    leaf = lambda tree: np.asarray(tree["backbone"]["patch_embed"]["proj"]["kernel"])  # noqa: E731
    old, new = leaf(state["teacher"]["params"]), leaf(params)
    for step in (0, 1, 90):
        moved = leaf(method.update(params, state, step)["teacher"]["params"])
        np.testing.assert_allclose(moved - old, 2e-4 * (new - old), rtol=1e-2, atol=1e-8)


def test_the_backbone_and_the_head_begin_as_beits():
    _, _, params, _ = setup()
    for kernel in (params["backbone"]["patch_embed"]["proj"]["kernel"], params["head"]["kernel"]):
        assert 0.015 < np.abs(kernel).max() <= 0.02
    for block in range(3):
        largest = np.abs(params["backbone"][f"blocks_{block}"]["attn"]["proj"]["kernel"]).max()
        np.testing.assert_allclose(largest, 0.02 / np.sqrt(2 * (block + 1)), rtol=0.1)


def test_loss_counts_hidden_patches_and_its_gradient_stops_at_the_teacher():
    method, batch, params, state = setup()
    loss, (_, metrics) = method.loss(params, state, batch, jax.random.key(2))
    target = np.asarray(method.targets(state["teacher"], batch["views"][0]))
    tokens = method.backbone.apply(
        {"params": params["backbone"]},
        batch["views"][0],
        tokens=True,
        mask=batch["masks"][0],
        mask_token=params["mask_token"],
    )
    prediction = method.head.apply({"params": params["head"]}, tokens[:, 1:])
    d = np.abs(np.asarray(prediction) - target)[MASK]
    np.testing.assert_allclose(loss, np.mean(np.where(d < 2, d * d / 4, d - 1)), rtol=1e-4)
    assert 0.1 < metrics["target_variance"] < 2
    of_teacher = jax.grad(
        lambda teacher: method.loss(params, {**state, "teacher": teacher}, batch, jax.random.key(2))[0]
    )
    assert not any(np.any(g) for g in jax.tree.leaves(of_teacher(state["teacher"])))


def test_the_teachers_decay_grows_and_stays():
    method, _, params, state = setup(decay=0.5, final_decay=0.9, decay_steps=10)
    leaf = lambda tree: np.asarray(jax.tree.leaves(tree)[0])  # noqa: E731
    for step, decay in ((0, 0.5), (5, 0.7), (10, 0.9), (50, 0.9)):
        moved = method.update(params, state, step)
        old, new = leaf(state["teacher"]["params"]), leaf({"backbone": params["backbone"]})
        np.testing.assert_allclose(leaf(moved["teacher"]["params"]), decay * old + (1 - decay) * new, rtol=1e-5)


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"target_blocks must be in 1\.\.model\.depth=3, got 4"):
        setup(target_blocks=4)
