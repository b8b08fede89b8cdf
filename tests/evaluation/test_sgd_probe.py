import dataclasses

import jax
import numpy as np
import pytest

from ssl_jax.evaluation import sgd_probe as module
from ssl_jax.evaluation.labels import draw_labels
from ssl_jax.evaluation.probe_recipes import RECIPES, ProbeRecipe
from ssl_jax.evaluation.sgd_probe import batch_order, sgd_probe, training


def clusters(images, *, classes=4, dim=6, noise=1.0, seed=0):
    """Features of overlapping clusters with their labels; float32."""
    centers = np.random.default_rng(99).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images, dtype=np.int32) % classes)
    return (centers[labels] + noise * rng.normal(size=(images, dim)) + 0.5).astype(np.float32), labels


# A recipe, a number of heads and a number of images are a program: tests share them.
TRAIN, TEST = clusters(150, seed=1), clusters(200, seed=2)
SHORT = ProbeRecipe(lrs=(3.0,), batch_size=32, epochs=3)
CHOICE = dataclasses.replace(SHORT, lrs=(1e-3, 1.0), weight_decays=(0.0, 5.0, 1e30), scaling="batch_norm")
ALL = np.arange(150)
UNMOVED = (1e-30, 0.0)  # a head of this learning rate keeps its initial weights


def recipe(**changes):
    return dataclasses.replace(SHORT, **changes)


def numpy_heads(passes, labels, recipe, lr, weight_decay, start):
    """One head trained by torch's rules, in float64: (kernel, bias), the running mean and variance."""
    images, dim = passes.shape[1:]
    batch_size = min(recipe.batch_size, images)
    params, steps = [np.array(leaf, np.float64) for leaf in start], images // batch_size * recipe.epochs
    momenta, mean, variance, step = [0.0, 0.0], np.zeros(dim), np.ones(dim), 0
    for epoch in range(recipe.epochs):
        for rows in batch_order(images, batch_size, 0, epoch):
            x, y = passes[epoch % len(passes)][rows].astype(np.float64), labels[rows]
            if recipe.scaling == "batch_norm":
                mean, variance = 0.9 * mean + 0.1 * x.mean(axis=0), 0.9 * variance + 0.1 * x.var(axis=0, ddof=1)
                x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-6)
            logits = x @ params[0] + params[1]
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            residuals = (p - np.eye(p.shape[1])[y]) / len(y)
            now = epoch * (steps // recipe.epochs) if recipe.constant_within_epochs else step
            warmup = recipe.warmup_epochs * steps // recipe.epochs
            if recipe.drops:
                rate = 0.1 ** sum(now >= drop * steps for drop in recipe.drops)
            elif now < warmup:
                rate = now / warmup
            else:
                rate = 0.5 * (1 + np.cos(np.pi * (now - warmup) / (steps - warmup)))
            rate *= lr * batch_size / 256
            for i, gradient in enumerate((x.T @ residuals, residuals.sum(axis=0))):
                vector = i == 1
                if not (vector and recipe.optimizer == "lars"):
                    decayed, norm = gradient + weight_decay * params[i], np.linalg.norm(params[i])
                    below = np.linalg.norm(decayed)
                    if recipe.optimizer == "larc":
                        below = np.linalg.norm(gradient) + weight_decay * norm
                    gradient = decayed * 0.001 * norm / below if recipe.optimizer != "sgd" and norm > 0 else decayed
                momenta[i] = 0.9 * momenta[i] + gradient
                params[i] = params[i] - rate * (gradient + 0.9 * momenta[i] if recipe.nesterov else momenta[i])
            step += 1
    return params, mean, variance


@pytest.mark.parametrize(
    "changes",
    [
        {"nesterov": True, "constant_within_epochs": True},
        {"drops": (1 / 3, 2 / 3)},
        {"optimizer": "lars", "warmup_epochs": 1, "scaling": "batch_norm", "lrs": (100.0,)},
        {"optimizer": "larc", "lrs": (100.0,)},
    ],
    ids=lambda changes: changes.get("optimizer", "sgd") + "".join(f"-{name}" for name in changes),
)
def test_equals_numpy(changes):
    made = recipe(**changes)
    passes = np.stack([TRAIN[0], clusters(150, seed=3)[0]])
    grid = [(made.lrs[0], 0.0), (made.lrs[0] / 10, 0.01)]
    found = jax.device_get(training(passes, TRAIN[1], num_classes=4, recipe=made).train(ALL, [*grid, UNMOVED]))
    initial = found.params["kernel"][2], np.zeros(4)
    assert 0.005 < np.std(initial[0]) < 0.02
    for i, (lr, weight_decay) in enumerate(grid):
        (kernel, bias), mean, variance = numpy_heads(passes, TRAIN[1], made, lr, weight_decay, initial)
        np.testing.assert_allclose(found.params["kernel"][i], kernel, rtol=2e-4, atol=2e-6)
        np.testing.assert_allclose(found.params["bias"][i], bias, rtol=2e-4, atol=2e-6)
        assert np.abs(kernel - initial[0]).max() > 1e-4
    if made.scaling == "batch_norm":
        np.testing.assert_allclose(found.shared["mean"], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.shared["variance"], variance, rtol=1e-4)


@pytest.mark.parametrize("scaling", ["layer_norm", "unit_layer_norm"])
def test_adamw_after_layer_norm_equals_numpy(scaling):
    """LeJEPA's: torch's AdamW, which decays every parameter, the norm's too."""
    made = recipe(optimizer="adamw", scaling=scaling, warmup_epochs=1, final_share=0.1)
    grid = [(0.1, 0.3), (0.2, 0.0)]
    training_of = training(TRAIN[0][None], TRAIN[1], num_classes=4, recipe=made)
    found = jax.device_get(training_of.train(ALL, [*grid, UNMOVED]))
    for head, (lr, weight_decay) in enumerate(grid):
        kernel = np.float64(found.params["kernel"][2])
        params = {"norm_scale": np.ones(6), "norm_bias": np.zeros(6), "kernel": kernel, "bias": np.zeros(4)}
        first, second, step = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0), 0
        for epoch in range(3):
            for rows in batch_order(150, 32, 0, epoch):
                x, y = TRAIN[0][rows].astype(np.float64), TRAIN[1][rows]
                x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
                normed = x * params["norm_scale"] + params["norm_bias"]
                length = np.linalg.norm(normed, axis=1, keepdims=True) if scaling == "unit_layer_norm" else 1.0
                seen = normed / length
                logits = seen @ params["kernel"] + params["bias"]
                p = np.exp(logits - logits.max(axis=1, keepdims=True))
                residuals = (p / p.sum(axis=1, keepdims=True) - np.eye(4)[y]) / 32
                back = residuals @ params["kernel"].T
                if scaling == "unit_layer_norm":
                    back = (back - seen * np.sum(seen * back, axis=1, keepdims=True)) / length
                gradients = {"norm_scale": (back * x).sum(axis=0), "norm_bias": back.sum(axis=0)}
                gradients |= {"kernel": seen.T @ residuals, "bias": residuals.sum(axis=0)}
                # 4 steps of warm-up, then half a cosine over 8 to a tenth; lr is of 256 images.
                share = step / 4 if step < 4 else 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (step - 4) / 8))
                rate, step = lr * 32 / 256 * share, step + 1
                for name, gradient in gradients.items():
                    first[name] = 0.9 * first[name] + 0.1 * gradient
                    second[name] = 0.999 * second[name] + 0.001 * gradient**2
                    moved = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
                    params[name] = params[name] - rate * (moved + weight_decay * params[name])
        for name, leaf in params.items():
            np.testing.assert_allclose(found.params[name][head], leaf, rtol=1e-3, atol=1e-5)
        assert np.abs(params["norm_scale"] - 1).max() > 0.005


def test_batches_are_a_function_of_seed_and_epoch():
    order = batch_order(100, 30, 5, 2)
    assert order.shape == (3, 30)
    assert len(set(order.ravel())) == 90
    np.testing.assert_array_equal(order, batch_order(100, 30, 5, 2))
    for other in (batch_order(100, 30, 6, 2), batch_order(100, 30, 5, 3)):
        assert np.any(order != other)


SECOND_OF_SGD = [pytest.param(name, marks=pytest.mark.slow) for name in ("simclr", "moco_v2")]


@pytest.mark.parametrize("name", [*SECOND_OF_SGD, "simsiam", "dinov2", "msn", "mae"])
def test_recipes_separate_what_is_separable(name):
    """At the paper's learning rate, if not its batch size; in directions of length 10, as steps are few."""
    labels = np.arange(400, dtype=np.int32) % 4
    features = 10 * np.eye(6, dtype=np.float32)[labels] + np.float32(0.1)
    paper = RECIPES[name]
    lrs = tuple(lr * paper.batch_size / 100 for lr in paper.lrs)
    made = dataclasses.replace(paper, lrs=lrs, batch_size=100)
    probe = sgd_probe(features, labels, features[:100], labels[:100], num_classes=4, recipe=made)
    assert probe.accuracy == 100
    assert (probe.batch_size, probe.steps) == (100, 4 * paper.epochs)
    assert probe.lr in made.lrs
    assert (probe.held_out is None) == (len(made.lrs) == 1)  # there is nothing to choose
    np.testing.assert_allclose(probe.peak_lr, probe.lr * 100 / 256)


def probe_of_choice(test_labels=TEST[1]):
    return sgd_probe(*TRAIN, TEST[0], test_labels, num_classes=4, recipe=CHOICE, seed=3)


def logits_of(heads, features):
    """By the running mean and variance."""
    x = (features - heads.shared["mean"]) / np.sqrt(heads.shared["variance"] + 1e-6)
    return np.einsum("nd,hdc->hnc", x, heads.params["kernel"]) + heads.params["bias"][:, None]


def test_the_held_out_fifth_chooses():
    """Recomputed from heads trained on the other four fifths. Those of a weight decay of 1e30 have diverged."""
    probe = probe_of_choice()
    index, held_out = draw_labels(TRAIN[1], 4, None, 3)
    fitted, held_out = index[~held_out], index[held_out]
    grid, options = CHOICE.grid, {"num_classes": 4, "recipe": CHOICE, "seed": 3}
    heads = training(TRAIN[0][None, fitted], TRAIN[1][fitted], **options).train(np.arange(len(fitted)), grid)
    heads = jax.device_get(heads)
    logits = logits_of(heads, TRAIN[0][held_out])
    diverged = np.isnan(logits).any(axis=(1, 2))
    np.testing.assert_array_equal(diverged, [False, False, True] * 2)
    expected = 100 * np.mean(logits.argmax(axis=2) == TRAIN[1][held_out], axis=1)
    np.testing.assert_allclose(probe.held_out, np.where(diverged, np.nan, expected).reshape(2, 3))
    best = np.argmax(np.where(diverged, -1, expected))
    assert (probe.lr, probe.weight_decay) == grid[best] == (1.0, 5.0)
    assert np.sum(expected == expected[best]) == 1
    alone = jax.device_get(training(TRAIN[0][None], TRAIN[1], **options).train(ALL, [grid[best]]))
    np.testing.assert_array_equal(probe.predictions, logits_of(alone, TEST[0])[0].argmax(axis=1))


def test_test_labels_only_count_the_hits():
    probe, other = probe_of_choice(), probe_of_choice((TEST[1] + 1) % 4)
    np.testing.assert_array_equal(probe.predictions, other.predictions)
    assert probe.accuracy > 60 > other.accuracy
    np.testing.assert_allclose(probe.accuracy, 100 * np.mean(probe.predictions == TEST[1]))


def test_scores_are_summed_over_chunks(monkeypatch):
    whole = probe_of_choice()
    monkeypatch.setattr(module, "ROWS", 20)  # of the 30 held-out images and the 200 of the test
    chunks = probe_of_choice()
    np.testing.assert_array_equal(chunks.predictions, whole.predictions)
    np.testing.assert_allclose(chunks.held_out, whole.held_out)


def test_batch_norm_forgives_features_of_any_scale():
    """MAE's reason for it: columns of scales far apart, which a plain head does not learn from."""
    scales = np.float32(10) ** np.linspace(-4, 2, 6, dtype=np.float32)
    made = recipe(lrs=(0.5,), epochs=60)
    plain, scaled = (
        sgd_probe(TRAIN[0] * scales, TRAIN[1], TEST[0] * scales, TEST[1], num_classes=4, recipe=r).accuracy
        for r in (made, dataclasses.replace(made, scaling="batch_norm"))
    )
    unscaled = sgd_probe(*TRAIN, *TEST, num_classes=4, recipe=dataclasses.replace(made, scaling="batch_norm")).accuracy
    assert scaled > plain + 5
    assert abs(scaled - unscaled) <= 2  # eps = 1e-6 is all that the columns of 1e-4 feel
    with pytest.raises(ValueError, match="diverged; give a recipe with lower lrs"):
        sgd_probe(TRAIN[0] * np.float32(1e25), TRAIN[1], *TEST, num_classes=4, recipe=made)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train_features": np.zeros((0, 150, 6), np.float32)}, "with at least one pass"),
        (
            {"train_features": np.stack([TRAIN[0], TRAIN[0] * np.float32(np.nan)])},
            "150 of 150 rows of features are not",
        ),
        ({"train_labels": TRAIN[1] - 1}, "labels are negative"),
        ({"test_features": TEST[0][:, 1:]}, "6 and 5 dimensions"),
        ({"num_classes": 3}, "label 3 is too large for num_classes=3"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors_name_what_is_wrong(change, message):
    names = ("train_features", "train_labels", "test_features", "test_labels")
    arguments = {**dict(zip(names, (*TRAIN, *TEST), strict=True)), "num_classes": 4, "recipe": SHORT}
    with pytest.raises(ValueError, match=message):
        sgd_probe(**{**arguments, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lrs": ()}, "lrs must be above 0"),
        ({"lrs": (0.0,)}, "lrs must be above 0"),
        ({"weight_decays": (-1.0,)}, "weight_decays at least 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"warmup_epochs": 4}, "warmup_epochs 4 from 0 to epochs"),
        ({"optimizer": "adam"}, "got 'adam' and"),
        ({"scaling": "pca"}, "and 'pca'"),
        ({"optimizer": "lars", "nesterov": True}, "needs optimizer='sgd', got 'lars'"),
        ({"final_share": 1.0}, r"final_share must be in \[0, 1\)"),
        ({"drops": (60.0,)}, r"drops must be in \(0, 1\)"),
        ({"drops": (0.5,), "warmup_epochs": 1}, "need warmup_epochs=0"),
    ],
)
def test_recipes_refuse_what_is_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        recipe(**change)
