import functools

import numpy as np
import pytest

from ssl_jax import losses
from tests.losses import checks

mec = functools.partial(losses.mec, distortion=3.0)


def draw_pair(dim):
    return checks.draw(8, dim)


CASES = {  # loss, drawing of arrays, axis of the batch
    "mec": (mec, draw_pair, 0),
}
# Dimensions fewer than the images, and more, where the smaller matrix is another.
DIMS = pytest.mark.parametrize("dim", [4, 12])


@DIMS
@pytest.mark.parametrize("name", CASES)
def test_over_devices_is_that_of_the_whole_batch(name, dim):
    loss, draw, axis = CASES[name]
    devices = (1, 2, 8)
    arrays = draw(dim)
    split = [True, True, *[False] * (len(arrays) - 2)]
    checks.same_on_devices(loss, *arrays, split=split, axes=[axis] * len(arrays), devices=devices)


def test_bfloat16_is_computed_in_float32():
    checks.computed_in_float32(*[(loss, draw(4), (0, 1)) for loss, draw, _ in CASES.values()])


@DIMS
@pytest.mark.parametrize("name", CASES)
def test_is_finite(name, dim):
    loss, draw, axis = CASES[name]
    arrays = draw(dim)
    checks.finite_everywhere(loss, *arrays, scaled=(0, 1), axes=[axis] * len(arrays))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# mec


def reference_mec(prediction, target, distortion=3.0, order=4):
    p, t = unit(prediction), unit(target)
    batch, dim = p.shape
    c = dim / (batch * distortion)
    eigenvalues = np.linalg.eigvals(c * p @ t.T)
    series = sum((-1) ** (k + 1) / k * np.sum(eigenvalues**k) for k in range(1, order + 1))
    return -np.real(series) / (c * batch)


@DIMS
def test_mec_is_the_series_of_the_eigenvalues(dim):
    checks.equals_reference(mec, reference_mec, *draw_pair(dim))


@DIMS
def test_mec_at_a_large_distortion_is_the_log_of_the_determinant(dim):
    prediction, target = draw_pair(dim)
    c = dim / (8 * 100.0)
    _, log_det = np.linalg.slogdet(np.eye(8) + c * unit(prediction) @ unit(target).T)
    value = losses.mec(prediction, target, distortion=100.0)
    np.testing.assert_allclose(value, -log_det / (c * 8), rtol=1e-4)


def test_mec_of_one_term_is_the_negative_cosine():
    pair = draw_pair(4)
    np.testing.assert_allclose(losses.mec(*pair, order=1), losses.negative_cosine(*pair), rtol=1e-5)


def test_mec_is_least_where_every_image_has_a_direction_of_its_own():
    eye = np.eye(4, dtype=np.float32)
    same = np.repeat(eye[:1], 4, axis=0)
    # c = 1 / 2. Eigenvalues of c P T^T: four of 1/2; one of 2; four of -1/2.
    log_of = lambda x: x - x**2 / 2 + x**3 / 3 - x**4 / 4  # noqa: E731
    for p, t, expected in ((eye, eye, -2 * log_of(0.5)), (same, same, -log_of(2) / 2), (eye, -eye, -2 * log_of(-0.5))):
        np.testing.assert_allclose(losses.mec(p, t, distortion=2.0), expected, rtol=1e-5)


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4,)), ((4, 3), (4, 2))])
@pytest.mark.usefixtures("unchecked")
def test_mec_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="of one shape"):
        losses.mec(*map(np.ones, shapes))


def test_mec_refuses_no_terms():
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        losses.mec(*draw_pair(4), order=0)
