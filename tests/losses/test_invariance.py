import functools

import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses
from tests.losses import checks

BATCH, DIM, VIEWS, TARGETS = 8, 4, 3, 2
NEGATIVES = np.random.default_rng(1).integers(1, BATCH, (BATCH, 3)) + np.arange(BATCH)[:, None]
NEGATIVES = (NEGATIVES % BATCH).astype(np.int32)


def relic(online, target, negatives=None, axis_name=None):
    return losses.relic(online, target, negatives, temperature=0.5, invariance=0.7, axis_name=axis_name)


def draw_views():
    views = np.stack(checks.draw(BATCH, DIM, VIEWS + TARGETS))
    return views[:VIEWS], views[VIEWS:]


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x)))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(online, target, negatives=None, held=None):
    """`held`: online and target that the first term of the divergence, which has no gradient, is computed from."""
    total, held = 0.0, held or (online, target)
    (o, t), (held_o, held_t) = (tuple(map(unit, pair)) for pair in ((online, target), held))
    for view in range(VIEWS):
        for other in range(TARGETS):
            for i in range(BATCH):
                others = [j for j in range(BATCH) if j != i] if negatives is None else negatives[i]
                candidates = [i, *others]
                log_p = log_softmax(t[other][candidates] @ o[view][i] / 0.5)
                log_q = log_softmax(o[view][candidates] @ t[other][i] / 0.5)
                constant = log_softmax(held_t[other][candidates] @ held_o[view][i] / 0.5)
                entropy = np.sum(np.exp(constant) * constant)
                total += -log_p[0] + 0.7 * (entropy - np.sum(np.exp(log_p) * log_q))
    return total / (VIEWS * TARGETS * BATCH)


@pytest.mark.parametrize("negatives", [None, NEGATIVES], ids=["all", "few"])
def test_relic_is_the_cross_entropy_and_the_divergence_of_each_pair_of_views(negatives):
    held = tuple(view.astype(np.float64) for view in draw_views())
    arrays = draw_views() if negatives is None else (*draw_views(), negatives)
    checks.equals_reference(relic, functools.partial(reference, held=held), *arrays, argnums=(0, 1))


@pytest.mark.parametrize("negatives", [None, NEGATIVES], ids=["all", "few"])
def test_over_devices_is_that_of_the_whole_batch(negatives):
    arrays = draw_views() if negatives is None else (*draw_views(), negatives)
    axes = [1, 1, 0][: len(arrays)]
    checks.same_on_devices(relic, *arrays, axes=axes, argnums=(0, 1))


def test_bfloat16_is_computed_in_float32():
    checks.computed_in_float32((relic, draw_views(), (0, 1)), (relic, (*draw_views(), NEGATIVES), (0, 1)))


def test_is_finite():
    checks.finite_everywhere(relic, *draw_views(), NEGATIVES, scaled=(0, 1), axes=[1, 1, 0])


def test_equal_embeddings_are_told_apart_by_chance_and_diverge_nowhere():
    equal = jnp.ones((2, BATCH, DIM))
    np.testing.assert_allclose(losses.relic(equal, equal, NEGATIVES, invariance=100.0), np.log(4), rtol=1e-5)
    np.testing.assert_allclose(losses.relic(equal, equal, invariance=100.0), np.log(BATCH), rtol=1e-5)


def test_a_view_with_itself_does_not_diverge():
    (view, *_), _ = draw_views()
    both = [losses.relic(view[None], view[None], NEGATIVES, invariance=weight) for weight in (0.0, 100.0)]
    np.testing.assert_allclose(*both, rtol=1e-5)


@pytest.mark.parametrize(
    "online, target, negatives, message",
    [
        ((8, 4), (8, 4), None, r"must be \[views, batch, dim\]"),
        ((2, 8, 4), (2, 6, 4), None, "of one batch and dim"),
        ((2, 8, 4), (2, 8, 4), (6, 3), r"negatives must be \[batch, count\] with batch 8, got \(6, 3\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_relic_refuses_other_shapes(online, target, negatives, message):
    rows = None if negatives is None else np.ones(negatives, np.int32)
    with pytest.raises(ValueError, match=message):
        losses.relic(jnp.ones(online), jnp.ones(target), rows)
