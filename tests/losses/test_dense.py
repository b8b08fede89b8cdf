import functools

import numpy as np
import pytest

from ssl_jax import losses
from tests.losses import checks


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# pixpro


def draw_maps():
    """Maps of 3 and of 2 positions, and which of them are near; of two images none."""
    rng = np.random.default_rng(0)
    prediction, target = (rng.normal(size=(8, count, 4)).astype(np.float32) for count in (3, 2))
    near = rng.uniform(size=(8, 3, 2)) < 0.5
    near[:2] = False
    return prediction, target, near


def reference_pixpro(prediction, target, near):
    p, t = unit(prediction), unit(target)
    of_images = []
    for image in range(len(p)):
        cosines = [p[image, s] @ t[image, o] for s, o in np.argwhere(near[image])]
        of_images.append(np.mean(cosines) if cosines else 0.0)
    return -2 * np.mean(of_images)


def test_pixpro_is_the_papers_formula():
    checks.equals_reference(losses.pixpro, reference_pixpro, *draw_maps(), argnums=(0, 1))


def test_pixpro_over_devices_is_that_of_the_whole_batch():
    checks.same_on_devices(losses.pixpro, *draw_maps(), argnums=(0, 1), devices=(1, 2, 8))


def test_pixpro_is_finite():
    checks.finite_everywhere(losses.pixpro, *draw_maps(), scaled=(0, 1))


def test_pixpro_of_bfloat16_is_computed_in_float32():
    checks.computed_in_float32((losses.pixpro, draw_maps(), (0, 1)))


@pytest.mark.parametrize(
    "shapes", [((4, 3, 2), (4, 5, 2), (4, 3, 3)), ((4, 3, 2), (4, 5, 1), (4, 3, 5)), ((4, 3),) * 3]
)
@pytest.mark.usefixtures("unchecked")
def test_pixpro_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match=r"prediction must be \[batch, positions, dim\], target"):
        losses.pixpro(*map(np.ones, shapes))


# detcon


def detcon(p1, p2, t1, t2, ids1, ids2, **options):
    return losses.detcon((p1, p2), (t1, t2), (ids1, ids2), temperature=0.5, **options)


def draw_segments(batch=8):
    """Three rows of each view; of some images a segment is repeated, or not in the other view."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(batch, 3, 4)).astype(np.float32) for _ in range(4)]
    return *arrays, *(rng.integers(0, 4, (batch, 3)).astype(np.int32) for _ in range(2))


def reference_detcon(p1, p2, t1, t2, ids1, ids2):
    total = 0.0
    for p, own, other, own_ids, other_ids in ((p1, t1, t2, ids1, ids2), (p2, t2, t1, ids2, ids1)):
        p, own, other = unit(p), unit(own), unit(other)
        for image, s in np.ndindex(*own_ids.shape):
            me = own_ids[image, s]
            scores, positives = [], []
            for i, k in np.ndindex(*own_ids.shape):
                scores.append(p[image, s] @ other[i, k] / 0.5)
                if i == image and other_ids[i, k] == me:
                    positives.append(scores[-1])
                if i != image or own_ids[i, k] != me:
                    scores.append(p[image, s] @ own[i, k] / 0.5)
            if positives:
                repeated = np.sum(own_ids[image] == me)
                total += (np.log(np.sum(np.exp(scores))) - np.mean(positives)) / repeated / own_ids.size
    return total


def test_detcon_is_the_authors_formula():
    checks.equals_reference(detcon, reference_detcon, *draw_segments(4), argnums=(0, 1, 2, 3))


def test_detcon_over_devices_is_that_of_the_whole_batch():
    checks.same_on_devices(detcon, *draw_segments(), argnums=(0, 1, 2, 3), devices=(1, 2, 8))


def test_detcon_in_chunks_is_the_same():
    chunked = functools.partial(detcon, chunk_size=5)
    whole = checks.value_and_grad(detcon, *draw_segments(), argnums=(0, 1, 2, 3))
    value, gradients = checks.value_and_grad(chunked, *draw_segments(), argnums=(0, 1, 2, 3))
    np.testing.assert_allclose(value, whole[0], rtol=1e-5)
    for found, expected in zip(gradients, whole[1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_detcon_is_finite():
    checks.finite_everywhere(detcon, *draw_segments(), scaled=(0, 1, 2, 3))


def test_detcon_of_bfloat16_is_computed_in_float32():
    checks.computed_in_float32((detcon, draw_segments(), (0, 1, 2, 3)))


def test_detcon_without_a_segment_in_both_views_is_0():
    p1, p2, t1, t2, ids1, ids2 = draw_segments()
    assert detcon(p1, p2, t1, t2, ids1, ids2 + 4) == 0.0


@pytest.mark.usefixtures("unchecked")
def test_detcon_refuses_other_shapes():
    z, ids = np.ones((4, 3, 2)), np.ones((4, 3), int)
    for predictions, numbers in (((z, z[:, :2]), (ids, ids)), ((z, z), (ids, ids[:, :2])), ((z[0], z[0]), (ids, ids))):
        with pytest.raises(ValueError, match=r"ids \[batch, segments\], got"):
            losses.detcon(predictions, (z, z), numbers)


# patch_kernel_alignment


def draw_features(batch=8):
    """Five positions of each image, of which two images leave some out, and one all but one."""
    rng = np.random.default_rng(0)
    prediction, target = (rng.normal(size=(batch, 5, dim)).astype(np.float32) for dim in (3, 4))
    valid = np.ones((batch, 5), bool)
    valid[0, :2] = valid[1, 3] = valid[2, 1:] = False
    return prediction, target, valid


def reference_alignment(prediction, target, valid):
    of_images = []
    for p, t, rows in zip(prediction, target, valid, strict=True):
        count = rows.sum()
        if count >= 2:
            h = np.eye(count) - 1 / count
            k, m = (h @ z[rows] @ z[rows].T @ h for z in (p, t))
            of_images.append(1 - np.sum(k * m) / np.linalg.norm(k) / np.linalg.norm(m))
    return np.mean(of_images)


def test_patch_kernel_alignment_is_the_papers_formula():
    checks.equals_reference(
        losses.patch_kernel_alignment, reference_alignment, *draw_features(), argnums=(0, 1), gradient_atol=1e-4
    )


def test_patch_kernel_alignment_over_devices_is_that_of_the_whole_batch():
    checks.same_on_devices(losses.patch_kernel_alignment, *draw_features(), argnums=(0, 1), devices=(1, 2, 8))


def test_patch_kernel_alignment_is_finite():
    checks.finite_everywhere(losses.patch_kernel_alignment, *draw_features(), scaled=(0, 1))


def test_patch_kernel_alignment_of_bfloat16_is_computed_in_float32():
    checks.computed_in_float32((losses.patch_kernel_alignment, draw_features(), (0, 1)))


def test_patch_kernel_alignment_does_not_see_rotations_scales_and_shifts():
    z, _, _ = draw_features()
    turned, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    same = (30 * z @ turned + 2.0).astype(np.float32)
    np.testing.assert_allclose(losses.patch_kernel_alignment(z, same), 0.0, atol=1e-5)
    np.testing.assert_allclose(losses.patch_kernel_alignment(z, np.ones_like(z)), 1.0)


@pytest.mark.usefixtures("unchecked")
def test_patch_kernel_alignment_refuses_other_shapes():
    z = np.ones((4, 3, 2))
    for arrays in ((z, z[:, :2]), (z[0], z[0]), (z, z, np.ones((4, 2), bool))):
        with pytest.raises(ValueError, match=r"valid \[batch, positions\], got"):
            losses.patch_kernel_alignment(*arrays)
