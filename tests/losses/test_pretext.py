import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses
from tests.losses import checks

LABELS = np.array([0, 2, -1, 1, 2, 2, -1, 0])


def logits(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


def one_by_one(x, labels, smoothing):
    """The mean over the labeled rows, from the definition."""
    rows = []
    for row, label in zip(x, labels, strict=True):
        if label >= 0:
            target = np.full(len(row), smoothing / len(row))
            target[label] += 1 - smoothing
            rows.append(-np.sum(target * log_softmax(row)))
    return np.mean(rows)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_is_the_mean_cross_entropy_of_the_labeled_rows(smoothing):
    loss = functools.partial(losses.classification, label_smoothing=smoothing) if smoothing else losses.classification
    reference = functools.partial(one_by_one, smoothing=smoothing)
    checks.equals_reference(loss, reference, logits(8, 3), LABELS, argnums=(0,))


def test_classification_of_probabilities():
    targets = np.random.default_rng(1).dirichlet(np.ones(3), size=8).astype(np.float32)
    checks.equals_reference(
        losses.classification,
        lambda x, targets: np.mean(-np.sum(targets * log_softmax(x), axis=1)),
        logits(8, 3),
        targets,
        argnums=(0,),
    )


def test_classification_over_devices_is_that_of_the_whole_batch():
    checks.same_on_devices(losses.classification, logits(8, 3), LABELS, argnums=(0,))


def test_classification_without_labels_is_0_and_by_chance_log_classes():
    value, gradients = checks.value_and_grad(losses.classification, logits(8, 3), np.full(8, -1), argnums=(0,))
    assert value == 0.0 and not np.any(gradients)
    chance, _ = checks.value_and_grad(losses.classification, np.zeros((8, 3), np.float32), LABELS, argnums=(0,))
    np.testing.assert_allclose(chance, math.log(3), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e4, 1e30])
def test_classification_is_finite_at_extreme_scales_and_in_bfloat16(scale):
    for dtype in (jnp.float32, jnp.bfloat16):
        x = (logits(8, 3) * np.float32(scale)).astype(dtype)
        value, (gradient,) = checks.value_and_grad(losses.classification, x, LABELS, argnums=(0,))
        assert value.dtype == jnp.float32 and np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    "x, labels, options",
    [((4, 3), (5,), {}), ((4, 3), (4, 2), {}), ((4,), (4,), {}), ((4, 3), (4,), {"label_smoothing": 1.0})],
)
@pytest.mark.usefixtures("unchecked")
def test_classification_refuses_what_does_not_fit(x, labels, options):
    with pytest.raises(ValueError, match=r"labels|label_smoothing"):
        losses.classification(np.zeros(x), np.zeros(labels, int if len(labels) == 1 else float), **options)


def test_colorization_weighs_positions():
    rng = np.random.default_rng(2)
    targets = rng.dirichlet(np.ones(5), size=(4, 6)).astype(np.float32)
    weights = rng.uniform(0, 2, size=(4, 6)).astype(np.float32)
    checks.equals_reference(
        losses.colorization,
        lambda x, targets, weights: np.mean(weights * -np.sum(targets * log_softmax(x), axis=-1)),
        logits(4, 6, 5),
        targets,
        weights,
        argnums=(0,),
    )
    checks.same_on_devices(
        losses.colorization, logits(8, 6, 5), *(np.concatenate([a, a]) for a in (targets, weights)), argnums=(0,)
    )


def count_one_by_one(whole, parts, others, margin):
    terms = []
    for w, p, o in zip(whole, parts, others, strict=True):
        s = sum(p)
        terms.append(np.sum((w - s) ** 2) + max(0.0, margin - np.sum((o - s) ** 2)))
    return np.mean(terms)


def test_counting_pulls_the_image_and_pushes_another_up_to_the_margin():
    whole, others = np.abs(logits(8, 3, seed=3)), np.abs(logits(8, 3, seed=4))
    parts = np.abs(logits(8, 4, 3, seed=5))
    distances = np.sum((others - parts.sum(1)) ** 2, axis=1)
    assert np.any(distances < 10) and np.any(distances > 10)  # both sides of the hinge
    checks.equals_reference(losses.counting, functools.partial(count_one_by_one, margin=10.0), whole, parts, others)
    checks.same_on_devices(losses.counting, whole, parts, others)
    zeros = [np.zeros_like(a) for a in (whole, parts, others)]
    assert checks.value_and_grad(losses.counting, *zeros, argnums=(0, 1, 2))[0] == 10.0
