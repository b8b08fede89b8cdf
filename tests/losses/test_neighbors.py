import functools

import numpy as np
import pytest

from ssl_jax import losses
from tests.losses import checks

# Those of mean_shift: prediction and target alike, and rows of which some are near.
mean_shift = functools.partial(losses.mean_shift, neighbors=3)


def draw(batch=8, dim=4, size=12):
    rows = np.random.default_rng(1).normal(size=(size, dim)).astype(np.float32)
    return *checks.draw(batch, dim, scale=3.0), 2.0 * rows


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(prediction, target, rows, neighbors=3):
    total = 0.0
    for p, t in zip(unit(prediction), unit(target), strict=True):
        nearest = sorted(unit(rows), key=lambda row: np.sum((row - t) ** 2))[:neighbors]
        total += np.mean([np.sum((p - row) ** 2) for row in nearest])
    return total / len(prediction)


def test_mean_shift_is_the_papers_formula():
    checks.equals_reference(mean_shift, reference, *draw(), argnums=(0,))


def test_mean_shift_has_a_gradient_for_the_prediction_alone():
    _, (of_prediction, of_target, of_rows) = checks.value_and_grad(mean_shift, *draw(), argnums=(0, 1, 2))
    assert np.any(of_prediction)
    assert not np.any(of_target) and not np.any(of_rows)


def test_mean_shift_over_devices_is_that_of_the_whole_batch():
    checks.same_on_devices(mean_shift, *draw(), split=[True, True, False], argnums=(0,), devices=(1, 2, 8))


def test_mean_shift_is_finite():
    checks.finite_everywhere(mean_shift, *draw(), scaled=(0, 1), argnums=(0,))


def test_mean_shift_of_bfloat16_is_computed_in_float32():
    checks.computed_in_float32((mean_shift, draw(), (0,)))


def test_mean_shift_with_one_neighbor_that_is_the_target_is_byols_loss():
    prediction, target, rows = draw()
    rows[-len(target) :] = unit(target)
    value = losses.mean_shift(prediction, target, rows, neighbors=1)
    np.testing.assert_allclose(value, 2.0 + 2.0 * losses.negative_cosine(prediction, target), rtol=1e-5)


@pytest.mark.parametrize("neighbors, expected", [(1, 0.0), (2, 1.0), (3, 2.0)])
def test_mean_shift_at_known_neighbors(neighbors, expected):
    # Distances of the prediction from the rows, from the target's nearest on: 0, 2, 4.
    x, y = np.eye(2, dtype=np.float32)
    rows = np.stack([-x, 3 * x, y])
    value = losses.mean_shift(x[None], (x + 0.5 * y)[None], rows, neighbors=neighbors)
    np.testing.assert_allclose(value, expected, atol=1e-6)


@pytest.mark.parametrize(
    "shapes, neighbors, message",
    [
        (((4, 3), (5, 3), (6, 3)), 1, "of one shape"),
        (((4, 3), (4, 3), (6, 2)), 1, "of the target's dim"),
        (((4, 3), (4, 3), (6,)), 1, "of the target's dim"),
        (((4, 3), (4, 3), (6, 3)), 7, "from 1 to the number of rows, 6, got 7"),
        (((4, 3), (4, 3), (6, 3)), 0, "from 1 to the number of rows, 6, got 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mean_shift_refuses(shapes, neighbors, message):
    with pytest.raises(ValueError, match=message):
        losses.mean_shift(*map(np.ones, shapes), neighbors=neighbors)


# all4one_features


def draw_four():
    return checks.draw(8, 3, count=4)


def reference_features(z1, z2, t1, t2):
    on, off = [], []
    for t, z in ((t1, z2), (t2, z1)):
        for i in range(t.shape[1]):
            for j in range(z.shape[1]):
                cosine = t[:, i] @ z[:, j] / np.linalg.norm(t[:, i]) / np.linalg.norm(z[:, j])
                (on if i == j else off).append((1 - cosine) ** 2 if i == j else cosine**2)
    return (np.sqrt(np.mean(on)) + np.sqrt(np.mean(off))) / 2


def test_all4one_features_is_the_authors_formula():
    checks.equals_reference(losses.all4one_features, reference_features, *draw_four())


def test_all4one_features_over_devices_is_that_of_the_whole_batch():
    checks.same_on_devices(losses.all4one_features, *draw_four(), devices=(1, 2, 8))


def test_all4one_features_is_finite():
    checks.finite_everywhere(losses.all4one_features, *draw_four())


def test_all4one_features_of_bfloat16_is_computed_in_float32():
    checks.computed_in_float32((losses.all4one_features, draw_four(), (0, 1, 2, 3)))


def test_all4one_features_at_known_columns():
    z = np.array([[1, 1], [1, -1], [1, 1], [1, -1]], np.float32)  # orthogonal columns
    for first, second, expected in ((z, z, 0.0), (z, 3 * z, 0.0), (z, -z, 1.0), (z, z[:, ::-1], 1.0)):
        value = losses.all4one_features(first, first, second, second)
        np.testing.assert_allclose(value, expected, atol=1e-5)
    same = np.ones((4, 2), np.float32)
    np.testing.assert_allclose(losses.all4one_features(same, same, same, same), 0.5, rtol=1e-5)


@pytest.mark.parametrize("shapes", [((4, 3), (4, 3), (4, 3), (4, 2)), ((4, 1),) * 4, ((4,),) * 4])
@pytest.mark.usefixtures("unchecked")
def test_all4one_features_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="of one shape with at least two dimensions"):
        losses.all4one_features(*map(np.ones, shapes))
