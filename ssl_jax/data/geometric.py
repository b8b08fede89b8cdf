"""Crop, flips and turns of one image, [channels, height, width], on the device."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax.data import resample
from ssl_jax.data.augmentation import Augmentation
from ssl_jax.data.draws import Draws, own_key

Image = Float[Array, "channels height width"]
View = Float[Array, "channels new_height new_width"]
Flag = Bool[Array, ""] | bool


def place(
    key: Key[Array, ""], image: Image, draws: Draws, augmentation: Augmentation, *, cropped: bool
) -> tuple[View, Float[Array, "6"]]:
    """(the part of the image that a view shows, flipped and turned; its box, see `augment.make_augment`).

    cropped: the image is a crop already, and has the view's size.
    """
    mirrored: Flag = draws["flip"] < augmentation.flip
    upside_down: Flag = False
    if augmentation.flip_vertical:
        upside_down = random.uniform(own_key(key, "flip_vertical")) < augmentation.flip_vertical
    crop = _whole if cropped else _window if augmentation.shorter_side else _crop
    image, shares = crop(image, draws, augmentation, upside_down, mirrored)
    degrees = 0.0
    if augmentation.flip_vertical:
        # Upside down is mirrored and turned by 180 degrees.
        mirrored, degrees = jnp.logical_xor(mirrored, upside_down), degrees + 180.0 * upside_down
    if augmentation.quarter_turns:
        chosen, which = random.uniform(own_key(key, "quarter_turns"), (2,))
        quarters = jnp.where(chosen < augmentation.quarter_turns, 1 + jnp.floor(3.0 * which).astype(jnp.int32), 0)
        image, degrees = quarter_turned(image, quarters), degrees + 90.0 * quarters
    if augmentation.rotate:
        angle = augmentation.rotate * (2.0 * draws["rotate"] - 1.0)
        image, degrees = resample.turned(image, angle), degrees + angle
    return image, jnp.concatenate([shares, jnp.stack([jnp.float32(mirrored), jnp.float32(degrees)])])


def quarter_turned(image: Image, quarters: Int[Array, ""]) -> Image:
    """The square image turned counterclockwise by so many quarters, 0..3: numpy's rot90."""
    image = jnp.where(quarters >= 2, image[:, ::-1, ::-1], image)
    return jnp.where(quarters % 2 == 1, jnp.rot90(image, axes=(1, 2)), image)


def _crop(
    image: Image, draws: Draws, augmentation: Augmentation, upside_down: Flag, mirrored: Flag
) -> tuple[View, Float[Array, "4"]]:
    _, height, width = image.shape
    box = resample.random_box(draws["crop"], image_size=(height, width), crop=augmentation.crop)
    if augmentation.shift:
        box = resample.moved_box(box, augmentation.shift * draws["shift"], image_size=(height, width))
    top, left, box_height, box_width = box
    resize = functools.partial(resample.interpolation_matrix, interpolation=augmentation.interpolation)
    rows = resize(top, box_height, old=height, new=augmentation.size[0], reverse=upside_down)
    columns = resize(left, box_width, old=width, new=augmentation.size[1], reverse=mirrored)
    image = resample.separable(image, rows, columns)
    # The cubic kernel overshoots.
    return jnp.clip(image, 0.0, 1.0), box / np.array([height, width, height, width], np.float32)


def _window(
    image: Image, draws: Draws, augmentation: Augmentation, upside_down: Flag, mirrored: Flag
) -> tuple[View, Float[Array, "4"]]:
    crop, sides = augmentation.crop, image.shape[1:]
    resized = crop.resized(*sides)
    starts = jnp.floor(draws["crop"][0, 2:] * np.array(crop.room(*resized))).astype(jnp.int32)
    rows, columns = (
        resample.window_matrix(
            start,
            old=old,
            resized=new,
            padding=crop.padding,
            new=window,
            interpolation=crop.interpolation,
            reverse=reverse,
        )
        for start, old, new, window, reverse in zip(
            starts, sides, resized, crop.size, (upside_down, mirrored), strict=True
        )
    )
    image = resample.separable(image, rows, columns)
    shares = jnp.concatenate([(starts - crop.padding) / np.array(resized), np.array(crop.size) / np.array(resized)])
    return jnp.clip(image, 0.0, 1.0), shares.astype(jnp.float32)


def _whole(
    image: Image, draws: Draws, augmentation: Augmentation, upside_down: Flag, mirrored: Flag
) -> tuple[View, Float[Array, "4"]]:
    image = jnp.where(mirrored, image[:, :, ::-1], image)
    if augmentation.flip_vertical:
        image = jnp.where(upside_down, image[:, ::-1], image)
    return image, jnp.array([0.0, 0.0, 1.0, 1.0])
