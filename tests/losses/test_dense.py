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
