"""Random views of uint8 images, made on the device: jitted, batched, each row by random numbers of its own.

The operations are written for one image, [channels, height, width], and mapped over the batch by `jax.vmap`. What an
example becomes is a function of (rng, its index, the number of the view) alone, whatever else is in the batch.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Float, Int, Key, Num

from ssl_jax.data import color, resample
from ssl_jax.data.autoaugment import FILL, auto_augment
from ssl_jax.data.crop import CROP_TRIES, RandomCrop
from ssl_jax.data.masks import Mask, random_masks
from ssl_jax.data.randaugment import rand_augment

Image = Float[Array, "channels height width"]
Draws = dict[str, Float[Array, "..."]]
# The random numbers, uniform in [0, 1), of a view: their shapes. They are drawn all at once, needed or not: one call of
# the generator is cheapest, and turning an operation on or off leaves the draws of the others as they are.
DRAWS = {
    "crop": (CROP_TRIES, 4),
    "flip": (),
    "jitter": (),
    "order": (4,),
    "brightness": (),
    "contrast": (),
    "saturation": (),
    "hue": (),
    "grayscale": (),
    "blur": (),
    "blur_sigma": (),
    "solarize": (),
    "rotate": (),
    "photometric": (),
    "bits": (),
    "sharpness": (),
    "threshold": (),
}


# Whole policies, by name: (key, image in 0..1) -> image in 0..1.
POLICIES = {
    "autoaugment": auto_augment,
    "randaugment": lambda key, image: rand_augment(key, image, fill=[FILL / 255.0] * len(image)),
}


@dataclass(frozen=True)
class Augmentation:
    """How one view is made: the operations of SimCLR and BYOL, in the order of the fields, as torchvision has them.

    An operation whose probability or strength is 0 costs nothing. Source of the operations and their order:
    Chen et al. 2020, arXiv:2002.05709, appendix A; solarize: Grill et al. 2020, arXiv:2006.07733, appendix B;
    photometric: VISSL's ImgPilRandomPhotometric, for PIRL, Misra & van der Maaten 2019, arXiv:1912.01991; policies:
    Cubuk et al. 2018, arXiv:1805.09501, and 2019, arXiv:1909.13719.

    Attributes:
      size: (height, width) of the view.
      crop_area: (least, most) share of the image's area that a crop has, in (0, 1], uniform.
      crop_aspect: (least, most) width / height of a crop, log-uniform.
      shorter_side: where above 0, no random area and aspect: the image is resized so that its shorter side has this
        many pixels, and a window of `size` at a random place of it is taken.
      padding: black pixels that are put around the image resized to `shorter_side`.
      interpolation: "bilinear" or "bicubic", antialiased, from the crop to `size`.
      flip: probability of mirroring left and right.
      rotate: degrees by which the view is turned at most to either side, uniform; nearest neighbors, on black.
      policy: "autoaugment" (see data/autoaugment.py) or "randaugment" (data/randaugment.py, at its defaults, on gray);
        none by default.
      brightness, contrast, saturation: factors are uniform in max(0, 1 - x)..1 + x.
      hue: shifts are uniform in -x..x of the full circle; at most 0.5.
      jitter: probability that those four are applied, in random order; else none is.
      photometric: probability that the view is posterized to 4..8 bits, its sharpness changed by a factor in 0.1..1.9,
        solarized from a threshold in 0..256 on, and its contrast stretched to the full range, in this order.
      grayscale: probability of taking the color away.
      blur: probability of a Gaussian blur.
      blur_sigma: (least, most) standard deviation in pixels of `size`, uniform.
      blur_kernel: its taps, odd; 0 for about a tenth of the shorter side, as SimCLR's code has it.
      solarize: probability of inverting the values from `solarize_threshold`, in 0..1, on.
    """

    size: tuple[int, int]
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    shorter_side: int = 0
    padding: int = 0
    interpolation: str = "bilinear"
    flip: float = 0.5
    rotate: float = 0.0
    policy: str = ""
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 0.8
    photometric: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int = 0
    solarize: float = 0.0
    solarize_threshold: float = 0.5

    @property
    def crop(self) -> RandomCrop:
        return RandomCrop(
            size=self.size,
            area=self.crop_area,
            aspect=self.crop_aspect,
            interpolation=self.interpolation,
            shorter_side=self.shorter_side,
            padding=self.padding,
        )

    @property
    def blur_taps(self) -> int:
        # SimCLR's code halves height // 10 to a radius, and takes that many pixels to either side.
        return self.blur_kernel or 2 * (min(self.size) // 20) + 1

    def check(self, channels: int) -> None:
        """Raises: ValueError for a number out of its range, or an operation that images of `channels` cannot have."""
        for name in ("flip", "jitter", "photometric", "grayscale", "blur", "solarize", "solarize_threshold"):
            self._check_range(name, 0.0, 1.0)
        self._check_range("rotate", 0.0, 180.0)
        for name in ("brightness", "contrast", "saturation"):
            self._check_range(name, 0.0, np.inf)
        self._check_range("hue", 0.0, 0.5)
        for name, most in (("crop_area", 1.0), ("crop_aspect", np.inf), ("blur_sigma", np.inf)):
            value = getattr(self, name)
            if not (len(value) == 2 and 0.0 < value[0] <= value[1] <= most):
                raise ValueError(f"{name} must be (least, most) with 0 < least <= most <= {most:g}, got {value}")
        if not (len(self.size) == 2 and min(self.size) > 0):
            raise ValueError(f"size must be (height, width) in pixels, got {self.size}")
        if min(self.shorter_side, self.padding) < 0 or (self.padding and not self.shorter_side):
            raise ValueError(
                f"shorter_side and padding must be at least 0, and padding needs shorter_side; got {self.shorter_side} "
                f"and {self.padding}"
            )
        if self.shorter_side and max(self.size) > self.shorter_side + 2 * self.padding:
            raise ValueError(
                f"a window of {self.size} is larger than shorter_side={self.shorter_side} with padding={self.padding} "
                f"on both sides; use shorter_side={max(self.size) - 2 * self.padding} or more"
            )
        if self.interpolation not in resample.KERNELS:
            raise ValueError(f"interpolation must be one of {', '.join(resample.KERNELS)}, got {self.interpolation!r}")
        if self.policy and self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, or empty, got {self.policy!r}")
        # An edge is reflected once, so a kernel cannot reach further than the other edge.
        most = 2 * min(self.size) - 1
        if not (self.blur_kernel == 0 or (self.blur_kernel % 2 == 1 and 0 < self.blur_kernel <= most)):
            raise ValueError(
                f"blur_kernel must be odd, at most {most} at size {self.size}, or 0, got {self.blur_kernel}"
            )
        if self.blur > 0.0 and self.blur_taps == 1:
            raise ValueError(
                f"blur {self.blur} by a kernel of 1 pixel does nothing at size {self.size}; set blur_kernel to 3"
            )
        if channels != 3:
            for name in ("saturation", "hue", "grayscale"):
                if getattr(self, name) > 0.0:
                    raise ValueError(
                        f"{name} {getattr(self, name)} needs red, green and blue, but images have {channels} "
                        f"{'channel' if channels == 1 else 'channels'}: set it to 0, and use brightness and contrast"
                    )

    def _check_range(self, name: str, low: float, high: float) -> None:
        if not low <= getattr(self, name) <= high:
            raise ValueError(f"{name} must be in {low:g}..{high:g}, got {getattr(self, name)}")


def make_augment(
    augmentations: Sequence[Augmentation],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    masks: Sequence[Mask | None] = (),
) -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
    """The function `augment(rng, batch) -> batch` that makes one view of every image by each of `augmentations`.

    It is pure, and works on all of a batch or on one device's share of it. Its `batch` has "index" [batch] and either
    "image", uint8 [batch, height, width, channels], which it crops, or "crops", a tuple with uint8 [batch, *size,
    channels] for each view, which the host has cropped, with "boxes", a tuple of float32 [batch, 4]. In their place it
    returns "views": a tuple of float32 [batch, *size, channels], normalized by the channels' `mean` and `std`; and
    "boxes": a tuple of float32 [batch, 5], where each view lies in its image: top, left, height and width as shares of
    the image's sides, and 1 where it is mirrored, else 0; and "masks": a tuple of bool [batch, patches], True where a
    patch is masked, one for each view whose entry of `masks` is not None. `rng` is the step's.

    It raises ValueError, when traced, if an augmentation does not fit the images (see `Augmentation.check`).
    """
    augmentations = tuple(augmentations)
    masks = tuple(masks) or (None,) * len(augmentations)

    def augment(rng: Key[Array, ""], batch: dict[str, Any]) -> dict[str, Any]:
        batch = dict(batch)
        cropped = "crops" in batch
        images = batch.pop("crops") if cropped else (batch.pop("image"),) * len(augmentations)
        host_boxes = batch.pop("boxes") if cropped else (None,) * len(augmentations)
        views, boxes = [], []
        for number, (augmentation, image, box) in enumerate(zip(augmentations, images, host_boxes, strict=True)):
            augmentation.check(image.shape[-1])
            one = functools.partial(random_view, augmentation=augmentation, cropped=cropped)
            view, new_box = jax.vmap(one)(_keys(rng, batch["index"], number), image)
            views.append(normalize(view, mean, std))
            boxes.append(new_box if box is None else new_box.at[:, :4].set(box))
        made = [
            random_masks(_keys(rng, batch["index"], len(views) + number), augmentations[number].size, mask)
            for number, mask in enumerate(masks)
            if mask is not None
        ]
        return batch | {"views": tuple(views), "boxes": tuple(boxes), "masks": tuple(made)}

    return augment


def normalize(
    images: Num[Array | np.ndarray, "batch height width channels"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "batch height width channels"]:
    """(images - mean) / std in float32, of uint8 images taken to 0..1, or of floats in 0..1.

    Raises: ValueError if `mean` and `std` do not have one number for each channel.
    """
    if not len(mean) == len(std) == images.shape[-1]:
        raise ValueError(f"images of {images.shape[-1]} channels need as many means and deviations, got {mean}, {std}")
    return (_unit_range(images) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def _unit_range(images: Num[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    """float32, uint8's 0..255 taken to 0..1."""
    floats = jnp.asarray(images, jnp.float32)
    return floats / 255.0 if images.dtype == np.uint8 else floats


def random_view(
    key: Key[Array, ""],
    image: Num[Array | np.ndarray, "height width channels"],
    *,
    augmentation: Augmentation,
    cropped: bool = False,
) -> tuple[Float[Array, "new_height new_width channels"], Float[Array, "5"]]:
    """One random view, in 0..1, of an image, and its box (see `make_augment`) in it.

    `cropped` says that the image is of the view's size because it is a crop.
    """
    draws = _draw(key)
    image = _unit_range(image).transpose(2, 0, 1)
    image, box = (_flip if cropped else _crop_and_flip)(image, draws, augmentation)
    if augmentation.rotate:
        image = resample.turned(image, augmentation.rotate * (2.0 * draws["rotate"] - 1.0))
    if augmentation.policy:
        # By a key of its own, so that the draws of the others are the same with it.
        image = POLICIES[augmentation.policy](random.fold_in(key, 1), image)
    image = _jitter(image, draws, augmentation)
    if augmentation.photometric:
        image = jnp.where(draws["photometric"] < augmentation.photometric, _photometric(image, draws), image)
    if augmentation.grayscale:
        image = jnp.where(draws["grayscale"] < augmentation.grayscale, color.luma(image), image)
    if augmentation.blur:
        image = _blur(image, draws, augmentation)
    if augmentation.solarize:
        solarized = color.solarize(image, augmentation.solarize_threshold)
        image = jnp.where(draws["solarize"] < augmentation.solarize, solarized, image)
    return image.transpose(1, 2, 0), box


def _keys(rng: Key[Array, ""], index: Int[Array | np.ndarray, "batch"], number: int) -> Key[Array, "batch"]:
    """For view `number` of each example, by the example's index."""
    return jax.vmap(lambda i: random.fold_in(random.fold_in(rng, i), number))(index)


def _draw(key: Key[Array, ""]) -> Draws:
    ends = np.cumsum([math.prod(shape) for shape in DRAWS.values()])
    parts = jnp.split(random.uniform(key, (ends[-1],)), ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(DRAWS.items(), parts, strict=True)}


def _crop_and_flip(
    image: Image, draws: Draws, augmentation: Augmentation
) -> tuple[Float[Array, "channels new_height new_width"], Float[Array, "5"]]:
    _, height, width = image.shape
    if augmentation.shorter_side:
        return _window_and_flip(image, draws, augmentation)
    box = resample.random_box(draws["crop"], image_size=(height, width), crop=augmentation.crop)
    top, left, box_height, box_width = box
    resize = functools.partial(resample.interpolation_matrix, interpolation=augmentation.interpolation)
    flipped = draws["flip"] < augmentation.flip
    rows = resize(top, box_height, old=height, new=augmentation.size[0])
    columns = resize(left, box_width, old=width, new=augmentation.size[1], reverse=flipped)
    image = resample.separable(image, rows, columns)
    shares = box / np.array([height, width, height, width], np.float32)
    return jnp.clip(image, 0.0, 1.0), jnp.append(shares, flipped)  # the cubic kernel overshoots


def _window_and_flip(
    image: Image, draws: Draws, augmentation: Augmentation
) -> tuple[Float[Array, "channels new_height new_width"], Float[Array, "5"]]:
    crop, sides = augmentation.crop, image.shape[1:]
    resized = crop.resized(*sides)
    starts = jnp.floor(draws["crop"][0, 2:] * np.array(crop.room(*resized))).astype(jnp.int32)
    flipped = draws["flip"] < augmentation.flip
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
        for start, old, new, window, reverse in zip(starts, sides, resized, crop.size, (False, flipped), strict=True)
    )
    image = resample.separable(image, rows, columns)
    shares = jnp.concatenate([(starts - crop.padding) / np.array(resized), np.array(crop.size) / np.array(resized)])
    return jnp.clip(image, 0.0, 1.0), jnp.append(shares.astype(jnp.float32), flipped)


def _flip(image: Image, draws: Draws, augmentation: Augmentation) -> tuple[Image, Float[Array, "5"]]:
    flipped = draws["flip"] < augmentation.flip
    whole = jnp.append(jnp.array([0.0, 0.0, 1.0, 1.0]), flipped)
    return jnp.where(flipped, image[:, :, ::-1], image), whole


ADJUSTMENTS = {
    "brightness": color.adjust_brightness,
    "contrast": color.adjust_contrast,
    "saturation": color.adjust_saturation,
    "hue": color.adjust_hue,
}


def _jitter(image: Image, draws: Draws, augmentation: Augmentation) -> Image:
    names = [name for name in ADJUSTMENTS if getattr(augmentation, name)]
    if not names or not augmentation.jitter:
        return image
    order = jnp.argsort(draws["order"][: len(names)])
    applied = draws["jitter"] < augmentation.jitter
    for place in range(len(names)):
        # All of them at each place, and one is kept: branches that depend on data would run one image at a time.
        adjusted = image
        for number, name in enumerate(names):
            amount = _amount(name, getattr(augmentation, name), draws[name])
            chosen = applied & (order[place] == number)
            adjusted = jnp.where(chosen, ADJUSTMENTS[name](image, amount), adjusted)
        image = adjusted
    return image


def _amount(name: str, strength: float, draw: Float[Array, ""]) -> Float[Array, ""]:
    """The factor or, of the hue, the shift."""
    low, high = (-strength, strength) if name == "hue" else (max(0.0, 1.0 - strength), 1.0 + strength)
    return low + (high - low) * draw


def _photometric(image: Image, draws: Draws) -> Image:
    image = color.posterize(image, 4.0 + jnp.floor(5.0 * draws["bits"]))
    image = color.adjust_sharpness(image, 0.1 + 1.8 * draws["sharpness"])
    image = color.solarize(image, jnp.floor(257.0 * draws["threshold"]) / 255.0)
    return color.autocontrast(image)


def _blur(image: Image, draws: Draws, augmentation: Augmentation) -> Image:
    low, high = augmentation.blur_sigma
    sigma = low + (high - low) * draws["blur_sigma"]
    blurred = draws["blur"] < augmentation.blur
    rows, columns = (
        jnp.where(blurred, resample.blur_matrix(sigma, taps=augmentation.blur_taps, size=size), jnp.eye(size))
        for size in augmentation.size
    )
    return resample.separable(image, rows, columns)
