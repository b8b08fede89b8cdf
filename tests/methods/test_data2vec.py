import functools

import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
RNG = np.random.default_rng(0)
MASK = RNG.random((4, 16)) < 0.6
X = RNG.normal(size=(4, 16, 16, 1)).astype(np.float32)


def make(depth=3, **options):
    vit = dict(dim=16, depth=depth, heads=2, patch_size=4, image_size=16, pool="norm_mean")
    return METHODS["data2vec"](models.create("vit_tiny_patch16_224", **vit), RUN, **{"target_blocks": 2, **options})


@functools.cache
def setup():
    """(params, state, what is made of them in a step and beside it)"""
    method, growing = make(), make(decay=0.5, final_decay=0.9, decay_steps=10)
    params, state = drawn.draw(method, X[:1])

    @jax.jit
    def run(params, state, batch, rng, steps, more_steps):
        def loss(teacher):
            output = method.loss(params, {**state, "teacher": teacher}, batch, rng)
            return output.loss, output

        def move(method, steps):
            return jax.vmap(lambda step: method.update(params, state, step)["teacher"]["params"])(steps)

        (x,), (mask,) = batch["views"], batch["masks"]
        backbone = {"params": params["backbone"]}
        tokens = method.backbone.apply(backbone, x, tokens=True, mask=mask, mask_token=params["mask_token"])
        teacher = {"params": state["teacher"]["params"]["backbone"]}
        # Before the LayerNorm, which capture_intermediates shows.
        _, seen = method.backbone.apply(teacher, x, capture_intermediates=True)
        return {
            "loss": jax.value_and_grad(loss, has_aux=True)(state["teacher"]),
            "prediction": method.head.apply({"params": params["head"]}, tokens[:, 1:]),
            "blocks": [seen["intermediates"][f"blocks_{i}"]["__call__"][0][:, 1:] for i in (1, 2)],
            "targets": method.targets(state["teacher"], x),
            "moved": (move(method, steps), move(growing, more_steps)),
        }

    batch = {"views": (X,), "masks": (MASK,)}
    steps = np.array([0, 1, 90]), np.array([0, 5, 10, 50])
    return params, state, jax.device_get(run(params, state, batch, jax.random.key(2), *steps))


def normalize(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_targets_are_the_teachers_last_blocks_normalized_each_and_their_mean_again():
    made = setup()[-1]
    mean = np.mean(normalize(np.asarray(made["blocks"], np.float64)), axis=0)
    np.testing.assert_allclose(made["targets"], normalize(mean), atol=1e-4)


def test_the_decay_is_constant_unless_a_config_says_otherwise():
    params, state, made = setup()
    leaf = lambda tree: tree["backbone"]["patch_embed"]["proj"]["kernel"]  # noqa: E731
    old, new = leaf(state["teacher"]["params"]), leaf(params)
    for moved in leaf(made["moved"][0]):  # at steps 0, 1 and 90
        np.testing.assert_allclose(moved - old, 2e-4 * (new - old), rtol=1e-2, atol=1e-7)


def test_the_teachers_decay_grows_and_stays():
    params, state, made = setup()

    def check(moved, old, new):
        for got, decay in zip(moved, (0.5, 0.7, 0.9, 0.9), strict=True):  # at steps 0, 5, 10 and 50
            np.testing.assert_allclose(got, decay * old + (1 - decay) * new, rtol=1e-5, atol=1e-6)

    jax.tree.map(check, made["moved"][1], state["teacher"]["params"], {"backbone": params["backbone"]})


def test_the_backbone_and_the_head_begin_as_beits():
    params, state = jax.device_get(make(depth=2).init(jax.random.key(1), X[:1]))
    for kernel in (params["backbone"]["patch_embed"]["proj"]["kernel"], params["head"]["kernel"]):
        assert 0.015 < np.abs(kernel).max() <= 0.02
    for block in range(2):
        largest = np.abs(params["backbone"][f"blocks_{block}"]["attn"]["proj"]["kernel"]).max()
        np.testing.assert_allclose(largest, 0.02 / np.sqrt(2 * (block + 1)), rtol=0.1)
    jax.tree.map(np.testing.assert_array_equal, state["teacher"]["params"], {"backbone": params["backbone"]})


def test_loss_counts_hidden_patches_and_its_gradient_stops_at_the_teacher():
    made = setup()[-1]
    (loss, output), of_teacher = made["loss"]
    target = made["targets"].astype(np.float64)
    d = np.abs(made["prediction"] - target)[MASK]
    assert np.any(d < 2) and np.any(d > 2)
    np.testing.assert_allclose(loss, np.mean(np.where(d < 2, d * d / 4, d - 1)), rtol=1e-4)
    np.testing.assert_allclose(output.metrics["target_variance"], target.var(axis=(0, 1)).mean(), rtol=1e-4)
    assert not any(np.any(g) for g in jax.tree.leaves(of_teacher))


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"target_blocks must be in 1\.\.model\.depth=3, got 4"):
        make(target_blocks=4)
