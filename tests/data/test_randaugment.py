import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ssl_jax.data.randaugment import OPERATIONS, operate, rand_augment, random_erase

HEIGHT, WIDTH = 20, 24
FILL = (124, 116, 104)
RNG = np.random.default_rng(0)
WAVES = np.sin(np.arange(HEIGHT)[:, None, None] / 3) * np.cos(np.arange(WIDTH)[None, :, None] / 4 + np.arange(3))
COLOR = np.rint(120 + 60 * WAVES + RNG.uniform(-30, 30, WAVES.shape)).astype(np.uint8)


def blend(name, factor):
    return lambda image: getattr(ImageEnhance, name)(image).enhance(factor)


def affine(*matrix):
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC,
                                         fillcolor=FILL)  # fmt: skip


# At strength 0.9, and towards more: what Pillow does.
PILLOW = {
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "posterize": lambda image: ImageOps.posterize(image, 1),  # 4 - int(0.9 * 4) bits
    "solarize": lambda image: ImageOps.solarize(image, 26),  # 256 - int(0.9 * 256)
    "solarize_add": lambda image: image.point(lambda v: min(v + 99, 255) if v < 128 else v),  # int(0.9 * 110)
    "contrast": blend("Contrast", 1.81),
    "brightness": blend("Brightness", 1.81),
    "color": blend("Color", 1.81),
    "sharpness": blend("Sharpness", 1.81),
    "rotate": lambda image: image.rotate(27.0, Image.Resampling.BICUBIC, fillcolor=FILL),
    "shear_x": affine(1, 0.27, 0, 0, 1, 0),
    "shear_y": affine(1, 0, 0, 0.27, 1, 0),
    "translate_x": affine(1, 0, 0.405 * WIDTH, 0, 1, 0),
    "translate_y": affine(1, 0, 0, 0, 1, 0.405 * HEIGHT),
}


@functools.cache
def every_operation(sign):
    """Of COLOR, in one compiled program."""
    made = _every_operation(COLOR.transpose(2, 0, 1).astype(np.float32), sign)
    return dict(zip(OPERATIONS, np.asarray(made).transpose(0, 2, 3, 1), strict=True))


@jax.jit
def _every_operation(image, sign):
    one = functools.partial(operate, image, level=0.9, sign=sign, fill=jnp.asarray(FILL, jnp.float32))
    return jax.vmap(lambda number: one(number))(jnp.arange(len(OPERATIONS)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_is_pillows(name):
    expected = np.asarray(PILLOW[name](Image.fromarray(COLOR)), np.float32)
    found = every_operation(1.0)[name]
    assert np.mean(np.abs(expected - COLOR)) > 3  # it does something
    # A level, where a value is on the edge of rounding.
    assert np.max(np.abs(found - expected)) <= 1 and np.mean(found != expected) < 0.02
    np.testing.assert_array_equal(found, np.rint(found))


def test_the_other_way():
    found = every_operation(-1.0)
    image = Image.fromarray(COLOR)
    for name, expected in {
        "rotate": image.rotate(-27.0, Image.Resampling.BICUBIC, fillcolor=FILL),
        "translate_x": affine(1, 0, -0.405 * WIDTH, 0, 1, 0)(image),
        "color": blend("Color", 0.19)(image),
    }.items():
        assert np.mean(np.abs(found[name] - np.asarray(expected, np.float32)) > 1) < 0.001, name
    np.testing.assert_array_equal(found["invert"], 255 - COLOR)


def test_an_image_of_one_value_stays_where_there_is_nothing_to_stretch():
    flat = np.full((3, HEIGHT, WIDTH), 77.0, np.float32)
    made = dict(zip(OPERATIONS, np.asarray(_every_operation(flat, 1.0)), strict=True))
    for name in ("autocontrast", "equalize", "color", "sharpness", "contrast"):
        np.testing.assert_array_equal(made[name], flat)


@jax.jit
def augmented(seeds, image):
    """The image augmented with the key of each seed."""
    one = functools.partial(rand_augment, image=image, fill=[value / 255 for value in FILL])
    return jax.vmap(lambda seed: one(jax.random.key(seed)))(seeds)


def test_each_image_has_its_own_and_a_quarter_have_none():
    image = COLOR[:8, :8].transpose(2, 0, 1).astype(np.float32) / 255
    seeds = np.arange(400, dtype=np.uint32)
    made = np.asarray(augmented(seeds, image))
    assert made.min() >= 0 and made.max() <= 1
    np.testing.assert_allclose(255 * made, np.rint(255 * made), atol=1e-4)
    same = np.all(np.abs(made - image) < 1e-6, axis=(1, 2, 3))
    assert abs(np.mean(same) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)  # two layers, each left out by half
    np.testing.assert_array_equal(augmented(seeds[::-1], image)[::-1], made)  # whatever the others are


def test_an_erased_rectangle_is_noise():
    @jax.jit
    def erase(key, ones):
        keys = jax.random.split(key, 600)
        return jax.vmap(lambda key: random_erase(key, ones, probability=0.25))(keys)

    made = np.asarray(erase(jax.random.key(1), np.full((3, 40, 40), 5.0, np.float32)))
    changed = np.any(made != 5.0, axis=1)
    erased = changed.any(axis=(1, 2))
    assert abs(np.mean(erased) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 600)
    shares = changed[erased].mean(axis=(1, 2))
    assert shares.min() > 0.015 and 0.25 < shares.max() < 0.35
    for mask in changed[erased][:20]:  # a rectangle has as many as its sides multiply to
        assert mask.sum() == mask.any(axis=0).sum() * mask.any(axis=1).sum()
    noise = made.transpose(0, 2, 3, 1)[changed]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
