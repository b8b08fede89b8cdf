import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import models, optim
from ssl_jax.data.augment import Augmentation
from ssl_jax.data.normalization import Normalization
from ssl_jax.data.sources import ArraySource
from ssl_jax.evaluation.finetuning import _Trainer, measure_finetuning
from ssl_jax.evaluation.finetuning_recipes import Recipe, augmented, mae_recipe
from ssl_jax.evaluation.tasks import Classes
from ssl_jax.models.vit import ViT
from ssl_jax.weights import Backbone

SIZE = (12, 12)
TASK = Classes(("down", "across"))
RECIPE = Recipe(Augmentation(size=SIZE, crop_area=(0.9, 1.0)), steps=20, batch_size=32, learning_rates=(1e-6, 1e-2))


def stripes(images, seed):
    """Noisy images of horizontal and of vertical stripes; some of the first are without a label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, images)
    wave = 60 * np.sign(np.sin(np.arange(12) * np.pi / 2 + 0.5))
    pattern = np.where(labels[:, None, None] == 1, wave[None, None, :], wave[None, :, None])
    x = np.clip(128 + pattern + rng.normal(0, 40, (images, *SIZE)), 0, 255).astype(np.uint8)
    labels[: images // 10] = -1
    return ArraySource(x, labels.astype(np.int32), class_names=("down", "across"))


def backbone(name="resnet8", **options):
    model = models.create(name, **options)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *SIZE, 1)))
    return Backbone(model, variables, (0.5,), (0.25,))


@pytest.fixture(scope="module")
def small():
    return backbone(stages=(1,))


def test_learns_with_the_rate_that_suits_the_held_out_labels(small):
    before = jax.tree.map(np.array, small.variables)
    tuned = measure_finetuning(
        small, stripes(300, 0), stripes(200, 1), recipe=RECIPE, image_size=SIZE, per_class=40, measured=(0, 20)
    )
    assert tuned.learning_rate == 1e-2
    assert tuned.accuracies.shape == (3, 2)
    assert tuned.class_means.shape == (3, 2) and np.all(np.abs(tuned.class_means - tuned.accuracies) < 5)
    assert np.all(np.abs(tuned.accuracies[:, 0] - 50) < 30) and np.all(tuned.accuracies[:, 1] > 90)
    jax.tree.map(np.testing.assert_array_equal, small.variables, before)


def test_is_the_same_every_time_and_depends_on_the_seed(small):
    recipe = dataclasses.replace(RECIPE, steps=5, learning_rates=(1e-2,))
    data = stripes(300, 0), stripes(500, 1)
    run = [
        measure_finetuning(small, *data, recipe=recipe, image_size=SIZE, per_class=40, seeds=s) for s in ((0,), (0, 1))
    ]
    (first,), (again, other) = (found.accuracies for found in run)
    np.testing.assert_array_equal(first, again)
    assert first != other


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_the_learning_rate_in_the_state_is_the_optimizers(small, name):
    recipe = dataclasses.replace(RECIPE, optimizer={"name": name, "weight_decay": 0.1, "warmup_steps": 2}, steps=5)
    trainer = _Trainer(small, recipe, TASK, SIZE, num_images=64, memory_bytes=2**20)
    state = trainer.first_state(0.03, seed=0)
    expected_tx, _ = optim.create(name, lr=0.03, weight_decay=0.1, warmup_steps=2, steps=5)

    @jax.jit
    def four_steps(params, opt_state):
        got, expected, expected_state = params, params, expected_tx.init(params)
        for number in range(4):
            grads = jax.tree.map(lambda p, number=number: jnp.cos(p + number), got)
            updates, opt_state = trainer.tx.update(grads, opt_state, got)
            got = optax.apply_updates(got, updates)
            updates, expected_state = expected_tx.update(grads, expected_state, expected)
            expected = optax.apply_updates(expected, updates)
        return got, expected

    got, expected = four_steps(state.params, state.opt_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


def test_a_vits_first_layers_learn_more_slowly():
    vit = backbone("vit_tiny_patch16_224", dim=16, heads=2, depth=2, patch_size=4, image_size=12)
    recipe = dataclasses.replace(RECIPE, optimizer={**RECIPE.optimizer, "warmup_steps": 0, "weight_decay": 0.0})
    trainer = _Trainer(vit, recipe, TASK, SIZE, num_images=64, memory_bytes=2**20)
    state = trainer.first_state(1.0, seed=0)
    ones = jax.tree.map(np.ones_like, state.params)
    updates, _ = jax.jit(trainer.tx.update)(ones, state.opt_state, state.params)
    sizes = {
        "pos_embed": updates["backbone"]["pos_embed"],
        "first": updates["backbone"]["blocks_0"]["norm1"]["bias"],
        "norm": updates["backbone"]["norm"]["bias"],
    }
    sizes = {name: float(jnp.mean(jnp.abs(update))) for name, update in sizes.items()}
    np.testing.assert_allclose(sizes["pos_embed"] / sizes["norm"], 0.75**3, rtol=0.05)
    np.testing.assert_allclose(sizes["first"] / sizes["norm"], 0.75**2, rtol=0.05)


def test_a_vit_that_was_trained_in_groups_is_fine_tuned_in_any_batch():
    vit = backbone(
        "vit_tiny_patch16_224", dim=16, heads=2, depth=1, patch_size=4, image_size=12,
        drop_path=0.5, drop_path_uniform=True, drop_path_group=64, microbatch=64,
    )  # fmt: skip
    model = _Trainer(vit, RECIPE, TASK, SIZE, num_images=64, memory_bytes=2**20).method.backbone
    assert (model.drop_path, model.drop_path_group, model.microbatch) == (0.5, 0, 0)


VIT = dict(dim=16, heads=2, depth=2, patch_size=4, image_size=12)


@pytest.mark.parametrize(
    "dim, expected",
    [(768, (100, 5e-4, 0.65, 0.1)), (1024, (50, 1e-3, 0.75, 0.2)), (1280, (50, 1e-3, 0.75, 0.3))],
)
def test_maes_recipe_is_of_its_size(dim, expected):
    recipe = mae_recipe(ViT(dim=dim, heads=16), 10_240, (224, 224))
    epochs, base_lr, layer_decay, drop_path = expected
    assert (recipe.steps, recipe.batch_size, recipe.learning_rates) == (10 * epochs, 1024, (4 * base_lr,))
    assert recipe.optimizer["warmup_steps"] == 50 and recipe.optimizer["layer_decay"] == layer_decay
    assert recipe.optimizer["final_lr"] * recipe.learning_rates[0] == pytest.approx(1e-6)
    assert recipe.model == {"drop_path": drop_path, "pool": "mean"}


def test_maes_recipe_begins_at_the_given_weights_with_a_norm_of_its_own():
    vit = backbone("vit_tiny_patch16_224", **VIT)
    recipe = mae_recipe(vit.model, 64, SIZE)
    trainer = _Trainer(vit, recipe, TASK, SIZE, num_images=64, memory_bytes=2**20)
    assert trainer.batch_size == 64
    params = jax.device_get(trainer.first_state(1.0, seed=0).params)
    given = vit.variables["params"]
    assert set(params["backbone"]) == {*given, "fc_norm"} - {"norm"}
    jax.tree.map(np.testing.assert_array_equal, params["backbone"]["blocks_1"], given["blocks_1"])
    (kernel,) = [leaf for leaf in jax.tree.leaves(params["classifier"]) if leaf.ndim > 1]
    assert kernel.shape == (16, 2) and 1e-5 < np.std(kernel) < 3e-5


def test_views_are_augmented_by_their_index_alone():
    recipe = Recipe(Augmentation(size=SIZE, crop_area=(0.9, 1.0)), rand_augment=9.0, erase=0.25)
    images = stripes(12, 0)
    batch = {"image": np.stack([images[i] for i in range(12)]), "index": np.arange(12)}
    augment, without = (
        jax.jit(augmented(r, Normalization((0.5,), (0.25,))))
        for r in (recipe, dataclasses.replace(recipe, rand_augment=0.0, erase=0.0))
    )
    made, plain = (made(jax.random.key(0), batch)["views"][0] for made in (augment, without))
    changed = np.any(np.abs(made - plain) > 0.02, axis=(1, 2, 3))
    assert 3 < changed.sum() < 12
    # What nothing was done to is rounded to 8 bits, and else as the crop left it.
    np.testing.assert_allclose(made[~changed], plain[~changed], atol=0.5 / 255 / 0.25 + 1e-5)
    backwards = jax.tree.map(lambda rows: rows[::-1], batch)
    again = augment(jax.random.key(0), backwards)["views"][0]
    np.testing.assert_allclose(again[::-1], made, atol=1e-5)


@pytest.mark.slow
def test_maes_recipe_trains():
    vit = backbone("vit_tiny_patch16_224", **VIT)
    recipe = dataclasses.replace(mae_recipe(vit.model, 64, SIZE), steps=3)
    tuned = measure_finetuning(vit, stripes(100, 0), stripes(60, 1), recipe=recipe, image_size=SIZE, per_class=None)
    assert tuned.accuracies.shape == tuned.class_means.shape == (1, 1)
    assert tuned.learning_rate == recipe.learning_rates[0]


def test_what_cannot_be_fine_tuned_is_refused(small):
    few = ArraySource(np.zeros((20, *SIZE), np.uint8), np.arange(20, dtype=np.int32) % 2)
    without = ArraySource(np.zeros((20, *SIZE), np.uint8))
    tune = {"recipe": RECIPE, "image_size": SIZE, "per_class": 4}
    with pytest.raises(ValueError, match="array has no labels, which fine-tuning needs"):
        measure_finetuning(small, few, without, **tune)
    with pytest.raises(
        ValueError, match="6 labelled images in batches of 32 give fewer than two for each of 8 devices"
    ):
        measure_finetuning(small, few, few, **tune)
    with pytest.raises(ValueError, match="learning_rates must be numbers above 0"):
        dataclasses.replace(RECIPE, learning_rates=(0.1, 0.0))
    with pytest.raises(ValueError, match=r"rand_augment must be in 0\.\.10 and erase in 0\.\.1, got 11"):
        dataclasses.replace(RECIPE, rand_augment=11.0)
    with pytest.raises(ValueError, match="steps and batch_size must be at least 1, got 0 and 32"):
        dataclasses.replace(RECIPE, steps=0)
