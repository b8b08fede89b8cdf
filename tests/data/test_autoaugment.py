import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ssl_jax.data import autoaugment
from ssl_jax.data.augment import Augmentation, random_view
from ssl_jax.data.autoaugment import POLICY, auto_augment
from ssl_jax.data.randaugment import OPERATIONS, operate
from tests.data.test_randaugment import COLOR

GRAY = (128, 128, 128)


def enhanced(kind, factor):
    return lambda image: getattr(ImageEnhance, kind)(image).enhance(factor)


# What Pillow does for a kind and magnitude of the policy, by the ranges of the paper's table 6; turns to the left.
PILLOW = {
    ("posterize", 5): lambda image: ImageOps.posterize(image, 6),
    ("posterize", 8): lambda image: ImageOps.posterize(image, 7),
    ("solarize", 3): lambda image: ImageOps.solarize(image, 76),
    ("solarize", 8): lambda image: ImageOps.solarize(image, 204),
    ("equalize", 2): ImageOps.equalize,
    ("equalize", 9): ImageOps.equalize,
    ("autocontrast", 5): ImageOps.autocontrast,
    ("invert", 4): ImageOps.invert,
    ("color", 0): enhanced("Color", 0.1),
    ("color", 8): enhanced("Color", 1.54),
    ("contrast", 8): enhanced("Contrast", 1.54),
    ("sharpness", 7): enhanced("Sharpness", 1.36),
    ("rotate", 9): lambda image: image.rotate(27.0, Image.Resampling.BICUBIC, fillcolor=GRAY),
    ("shear_x", 5): lambda image: image.transform(
        image.size, Image.Transform.AFFINE, (1, 0.15, 0, 0, 1, 0), Image.Resampling.BICUBIC, fillcolor=GRAY
    ),
}


@functools.cache
def made():
    image = jnp.asarray(COLOR, jnp.float32).transpose(2, 0, 1)
    kinds = jnp.array([OPERATIONS.index(name) for name, _ in PILLOW])
    levels = jnp.array([autoaugment.level(*case) for case in PILLOW])
    one = jax.vmap(lambda kind, level: operate(image, kind, level, 1.0, jnp.full(3, 128.0)))
    return dict(zip(PILLOW, np.asarray(jax.jit(one)(kinds, levels)).transpose(0, 2, 3, 1), strict=True))


@pytest.mark.parametrize("case", PILLOW, ids=str)
def test_a_magnitude_is_the_papers(case):
    expected = np.asarray(PILLOW[case](Image.fromarray(COLOR)), np.float32)
    found = made()[case]
    # A level, where a value is on the edge of rounding.
    assert np.max(np.abs(found - expected)) <= 1 and np.mean(found != expected) < 0.02


def test_every_operation_of_the_policy_is_known_and_drawn_as_often_as_the_policy_says():
    assert len(POLICY) == 25 and {name for pair in POLICY for name, _, _ in pair} == {name for name, _ in PILLOW}
    image = np.asarray(COLOR, np.float32).transpose(2, 0, 1) / 255
    keys = jax.random.split(jax.random.key(0), 1000)
    images = np.asarray(jax.jit(jax.vmap(auto_augment, (0, None)))(keys, image))
    assert images.min() >= 0 and images.max() <= 1
    np.testing.assert_allclose(255 * images, np.rint(255 * images), atol=1e-4)
    unchanged = np.mean([(1 - first[1]) * (1 - second[1]) for first, second in POLICY])
    found = np.mean(np.all(np.abs(images - image) < 1e-6, axis=(1, 2, 3)))
    assert abs(found - unchanged) < 4 * np.sqrt(unchanged * (1 - unchanged) / len(keys))
    # Inverted alone: (invert, sharpness left out), a share of the sub-policy that has it second.
    inverted = np.mean(np.all(np.abs(images - (1 - image)) < 1e-6, axis=(1, 2, 3)))
    assert abs(inverted - 0.6 * 0.6 / 25) < 4 * np.sqrt(0.0144 / len(keys))


@pytest.mark.parametrize("policy, channels", [("autoaugment", 1), ("randaugment", 3)])
def test_a_view_with_a_policy_keeps_its_crop_and_differs(policy, channels):
    image = jnp.float32(COLOR[:, :, :channels] / 255)
    keys = jax.random.split(jax.random.key(3), 16)

    def views(policy):
        augmentation = Augmentation((16, 16), crop_area=(0.5, 1.0), policy=policy)
        return jax.vmap(lambda key: random_view(key, image, augmentation=augmentation))(keys)

    plain, with_policy = jax.jit(lambda: (views(""), views(policy)))()
    np.testing.assert_array_equal(plain[1], with_policy[1])
    assert plain[0].shape == with_policy[0].shape == (16, 16, 16, channels)
    changed = np.abs(plain[0] - with_policy[0]).mean(axis=(1, 2, 3)) > 0.01
    assert np.mean(changed) > 0.3


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="policy must be one of autoaugment, randaugment, or empty, got 'trivial'"):
        Augmentation((8, 8), policy="trivial").check(3)
