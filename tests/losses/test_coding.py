import functools

import numpy as np
import pytest

from ssl_jax import losses
from tests.losses import checks

mec = functools.partial(losses.mec, distortion=3.0)
simdino = functools.partial(losses.simdino, eps=0.3, invariance=2.0)
plain = functools.partial(losses.simdino, eps=0.3, invariance=2.0, smooth=False)


def draw_pair(dim):
    return checks.draw(8, dim)


def draw_views(dim):
    """A student's three crops and the teacher's two."""
    arrays = checks.draw(8, dim, count=5)
    return np.stack(arrays[:3]), np.stack(arrays[3:])


def corinfomax(*arrays, axis_name=None):
    return losses.corinfomax(*arrays, attraction=3.0, memory=0.3, axis_name=axis_name)[0]


def draw_with_past(dim):
    """Two views, and a past of each."""
    root = np.random.default_rng(1).normal(size=(2, dim, 20)).astype(np.float32)
    return *checks.draw(8, dim), root[:, :, 0] / 4, root @ root.swapaxes(1, 2) / 20


CASES = {  # loss, drawing of arrays, axis of the batch
    "mec": (mec, draw_pair, 0),
    "simdino": (simdino, draw_views, 1),
    "simdino_plain": (plain, draw_views, 1),
    "corinfomax": (corinfomax, draw_with_past, 0),
}
# Dimensions fewer than the images, and more, where the smaller matrix is another.
DIMS = pytest.mark.parametrize("dim", [4, 12])


@DIMS
@pytest.mark.parametrize("name", CASES)
def test_over_devices_is_that_of_the_whole_batch(name, dim):
    loss, draw, axis = CASES[name]
    devices = (8,) if name == "simdino_plain" else (1, 2, 8)
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


# simdino


def reference_simdino(student, teacher, smooth):
    student, teacher = unit(student), unit(teacher)
    _, batch, dim = student.shape
    pairs = [np.sum(t * s, axis=1) for i, t in enumerate(teacher) for j, s in enumerate(student) if i != j]
    rates = []
    for view, t in zip(student[: len(teacher)], teacher, strict=True):
        z = (view + t) / 2 if smooth else view
        rates.append(np.linalg.slogdet(np.eye(dim) + dim / (batch * 0.3) * z.T @ z)[1] / 2)
    return -2.0 * np.mean(pairs) - (dim + batch) / (dim * batch) * np.mean(rates)


@DIMS
@pytest.mark.parametrize("name", ["simdino", "simdino_plain"])
def test_simdino_is_the_codes_formula(name, dim):
    reference = functools.partial(reference_simdino, smooth=name == "simdino")
    checks.equals_reference(CASES[name][0], reference, *draw_views(dim))


def test_simdino_at_known_embeddings():
    # Both crops alike. All images in one direction: a coding rate of log(1 + dim / eps) / 2; each in its own: dim times
    # log(1 + 1 / eps) / 2.
    eye = np.repeat(np.eye(4, dtype=np.float32)[None], 2, axis=0)
    same = np.repeat(eye[:, :1], 4, axis=1)
    factor = (4 + 4) / (4 * 4)
    np.testing.assert_allclose(losses.simdino(same, same, eps=0.5), -1 - factor * np.log(9) / 2, rtol=1e-5)
    np.testing.assert_allclose(losses.simdino(eye, eye, eps=0.5), -1 - factor * 4 * np.log(3) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((4, 3), (2, 4, 3)), "of one batch and dim"),
        (((3, 4, 3), (2, 4, 2)), "of one batch and dim"),
        (((1, 4, 3), (1, 4, 3)), "at least two views"),
        (((2, 4, 3), (3, 4, 3)), "those of the teacher"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_simdino_refuses(shapes, message):
    with pytest.raises(ValueError, match=message):
        losses.simdino(*map(np.ones, shapes))


# corinfomax


def reference_corinfomax(z1, z2, mean, covariance, keep=None):
    z1, z2 = unit(z1), unit(z2)
    loss = 3.0 * np.mean((z1 - z2) ** 2)
    for view, z in enumerate((z1, z2)):
        m = 0.3 * mean[view] + 0.7 * z.mean(0)
        r = 0.3 * covariance[view] + 0.7 * (z - m).T @ (z - m) / len(z)
        if keep is not None:
            keep.append((m, r))
        loss -= np.linalg.slogdet(r + 1e-8 * np.eye(len(r)))[1] / len(r)
    return loss


@DIMS
def test_corinfomax_is_the_codes_formula(dim):
    checks.equals_reference(corinfomax, reference_corinfomax, *draw_with_past(dim), argnums=(0, 1))


def test_corinfomax_keeps_mean_and_covariance_of_each_view():
    arrays, kept = draw_with_past(4), []
    reference_corinfomax(*(a.astype(np.float64) for a in arrays), keep=kept)
    _, mean, covariance = losses.corinfomax(*arrays, memory=0.3)
    for view, (m, r) in enumerate(kept):
        np.testing.assert_allclose(mean[view], m, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(covariance[view], r, rtol=1e-5, atol=1e-6)


def test_corinfomax_at_known_covariances():
    # Orthogonal images without a mean: R = I / dim. With memory 0 the past is nothing.
    z = np.concatenate([np.eye(4), -np.eye(4)]).astype(np.float32)
    past = np.zeros((2, 4), np.float32), np.stack([np.eye(4, dtype=np.float32)] * 2)
    np.testing.assert_allclose(losses.corinfomax(z, z, *past, memory=0.0)[0], 2 * np.log(4), rtol=1e-5)
    turned = losses.corinfomax(z, -z, *past, memory=0.0, attraction=5.0)[0]  # distances of 2 in one of 4 dimensions
    np.testing.assert_allclose(turned, 5.0 * 4 / 4 + 2 * np.log(4), rtol=1e-5)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((4, 3), (5, 3), (2, 3), (2, 3, 3)), "of one shape"),
        (((4, 3), (4, 3), (3,), (2, 3, 3)), "mean and covariance must be"),
        (((4, 3), (4, 3), (2, 3), (2, 3, 2)), "mean and covariance must be"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_corinfomax_refuses(shapes, message):
    with pytest.raises(ValueError, match=message):
        losses.corinfomax(*map(np.ones, shapes))
