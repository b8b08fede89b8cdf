"""Random views of uint8 images, made on the device: jitted and batched. Each row has its own random numbers.

The operations are written for one image, [channels, height, width]; `jax.vmap` maps them over the batch. A view of an
example depends only on rng, the example's index and the view's number, not on the rest of the batch.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Float, Int, Key, Num

from ssl_jax import keys
from ssl_jax.data import color, resample
from ssl_jax.data.autoaugment import FILL, auto_augment
from ssl_jax.data.crop import CROP_TRIES, RandomCrop
from ssl_jax.data.masks import Mask, random_masks
from ssl_jax.data.randaugment import rand_augment
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, OneOf, Range

Image = Float[Array, "channels height width"]
Draws = dict[str, Float[Array, "..."]]
# Shapes of a view's random numbers, uniform in [0, 1). All are drawn at once, needed or not: one call of the generator
# is cheapest, and turning an operation on or off does not change the draws of the others.
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
POLICIES: Mapping[str, Callable[[Key[Array, ""], Image], Image]] = {
    "autoaugment": auto_augment,
    "randaugment": lambda key, image: rand_augment(key, image, fill=[FILL / 255.0] * len(image)),
}


@dataclass(frozen=True)
class Augmentation:
    """How one view is made: the operations of SimCLR and BYOL, as in torchvision, in the order of the fields.

    An operation whose probability or strength is 0 costs nothing. `check` checks the fields; the constructor does not.

    Source of the operations and their order: Chen et al. 2020, arXiv:2002.05709, appendix A; solarize: Grill et al.
    2020, arXiv:2006.07733, appendix B; photometric: VISSL's ImgPilRandomPhotometric, for PIRL, Misra & van der Maaten
    2019, arXiv:1912.01991; policies: Cubuk et al. 2018, arXiv:1805.09501, and 2019, arXiv:1909.13719.
    """

    size: Annotated[tuple[int, int], COUNT, "(height, width) of the view in pixels."]
    crop_area: Annotated[
        tuple[float, float],
        Range(0.0, 1.0, above=True),
        "(least, most) share of the image's area that a crop has; uniform.",
    ] = (0.08, 1.0)
    crop_aspect: Annotated[
        tuple[float, float],
        POSITIVE,
        "(least, most) width / height of a crop; log-uniform.",
    ] = (3 / 4, 4 / 3)
    shorter_side: Annotated[
        int,
        NOT_NEGATIVE,
        "Above 0: crops have no random area and aspect. The image is resized until its shorter side has this many",
        "pixels, and a window of size is taken at a random place of it.",
    ] = 0
    padding: Annotated[
        int, NOT_NEGATIVE, "Black pixels that are put on each side of the image resized to shorter_side."
    ] = 0
    interpolation: Annotated[
        str, OneOf(tuple(resample.KERNELS)), "Interpolation from the crop to size, antialiased."
    ] = "bilinear"
    flip: Annotated[float, SHARE, "Probability of mirroring left and right."] = 0.5
    rotate: Annotated[
        float,
        Range(0.0, 180.0),
        "Most degrees that the view is turned to either side, uniform; nearest neighbors, on black.",
    ] = 0.0
    policy: Annotated[
        str,
        OneOf(("", *POLICIES)),
        "Policy of operations. autoaugment: see data/autoaugment.py. randaugment: data/randaugment.py with its",
        "defaults, on gray. Empty: none.",
    ] = ""
    brightness: Annotated[float, NOT_NEGATIVE, "x, for factors of brightness uniform in max(0, 1 - x)..1 + x."] = 0.0
    contrast: Annotated[float, NOT_NEGATIVE, "x, for factors of contrast uniform in max(0, 1 - x)..1 + x."] = 0.0
    saturation: Annotated[float, NOT_NEGATIVE, "x, for factors of saturation uniform in max(0, 1 - x)..1 + x."] = 0.0
    hue: Annotated[float, Range(0.0, 0.5), "x, for shifts of hue uniform in -x..x of the full circle."] = 0.0
    jitter: Annotated[
        float,
        SHARE,
        "Probability that brightness, contrast, saturation and hue are changed, in random order; else none of them is.",
    ] = 0.8
    photometric: Annotated[
        float,
        SHARE,
        "Probability of these four, in this order: posterized to 4..8 bits, sharpness changed by a factor in 0.1..1.9,",
        "solarized from a threshold in 0..256, contrast stretched to the full range.",
    ] = 0.0
    grayscale: Annotated[float, SHARE, "Probability of taking the color away."] = 0.0
    blur: Annotated[float, SHARE, "Probability of a Gaussian blur."] = 0.0
    blur_sigma: Annotated[
        tuple[float, float], POSITIVE, "(least, most) standard deviation of the blur in pixels of size; uniform."
    ] = (0.1, 2.0)
    blur_kernel: Annotated[
        int,
        NOT_NEGATIVE,
        "Taps of the blur, an odd number; 0: about a tenth of the shorter side, as in SimCLR's code.",
    ] = 0
    solarize: Annotated[float, SHARE, "Probability of inverting the values from solarize_threshold on."] = 0.0
    solarize_threshold: Annotated[float, SHARE, "Least value in 0..1 that solarize inverts."] = 0.5

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
        # SimCLR's code halves height // 10 to get a radius, and takes that many pixels on either side.
        return self.blur_kernel or 2 * (min(self.size) // 20) + 1

    def check(self, channels: int) -> None:
        """Raises: ValueError for a value out of its range, or an operation that images of `channels` cannot have."""
        keys.check_fields(self)
        keys.check_order(self, "crop_area", "crop_aspect", "blur_sigma")
        if self.padding and not self.shorter_side:
            raise ValueError(f"padding needs shorter_side, got padding={self.padding}, shorter_side=0")
        if self.shorter_side and max(self.size) > self.shorter_side + 2 * self.padding:
            raise ValueError(
                f"a window of {self.size} is larger than shorter_side={self.shorter_side} with padding={self.padding} "
                f"on both sides; use shorter_side={max(self.size) - 2 * self.padding} or more"
            )
        # An edge is reflected once, so a kernel cannot reach further than the other edge.
        most = 2 * min(self.size) - 1
        if self.blur_kernel and not (self.blur_kernel % 2 and self.blur_kernel <= most):
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


@dataclass(frozen=True)
class OwnAugmentation:
    """How a user's function makes one view.

    function: (rng, image) -> view, of one example, jittable. image: float32 [*size, channels] in 0..1, whole, as
    data/crop.py's `center_crop` gives it. The view is float32 in 0..1, of any size, and is normalized afterwards.
    size: (height, width) of the image.
    """

    function: Callable[[Key[Array, ""], Float[Array, "height width channels"]], Float[Array, "_ _ channels"]]
    size: tuple[int, int]

    @property
    def crop(self) -> RandomCrop:
        """The whole image."""
        height, width = self.size
        return RandomCrop(size=self.size, area=(1.0, 1.0), aspect=(width / height, width / height))

    def check(self, channels: int) -> None:
        """Any image will do."""


def own_view(
    key: Key[Array, ""], image: Num[Array | np.ndarray, "height width channels"], *, augmentation: OwnAugmentation
) -> tuple[Float[Array, "new_height new_width channels"], Float[Array, "5"]]:
    """Like `random_view`. The box is that of the whole image, whichever part of it the function uses."""
    return augmentation.function(key, _unit_range(image)), jnp.array([0.0, 0.0, 1.0, 1.0, 0.0])


def make_augment(
    augmentations: Sequence[Augmentation | OwnAugmentation],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    masks: Sequence[Mask | None] = (),
) -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
    """The function `augment(rng, batch) -> batch`. Each of `augmentations` makes one view of every image.

    `augment` is pure, and works on a whole batch or on one device's rows of it. `rng` is the key of the step. `batch`
    has "index" [batch], and either
      "image": uint8 [batch, height, width, channels], which `augment` crops; or
      "crops": a tuple of uint8 [batch, *size, channels], one for each view, which the host has cropped; with
      "boxes": a tuple of float32 [batch, 4].
    The returned batch has, in their place,
      "views": a tuple of float32 [batch, *size, channels], normalized by the channels' `mean` and `std`;
      "boxes": a tuple of float32 [batch, 5]: where each view lies in its image. Top, left, height and width are shares
        of the image's sides; the last number is 1 if the view is mirrored, else 0;
      "masks": a tuple of bool [batch, patches], True where a patch is masked: one for each view whose entry of `masks`
        is not None.

    When traced, `augment` raises ValueError if an augmentation does not fit the images (see `Augmentation.check`).
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
            if isinstance(augmentation, OwnAugmentation):
                one = functools.partial(own_view, augmentation=augmentation)
            else:
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
    """(images - mean) / std in float32. Images are uint8, which is scaled to 0..1 first, or floats in 0..1.

    Raises: ValueError if `mean` and `std` do not have one number for each channel.
    """
    if not len(mean) == len(std) == images.shape[-1]:
        raise ValueError(f"images of {images.shape[-1]} channels need as many means and deviations, got {mean}, {std}")
    return (_unit_range(images) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def _unit_range(images: Num[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    """The values in float32; uint8's 0..255 is scaled to 0..1."""
    floats = jnp.asarray(images, jnp.float32)
    return floats / 255.0 if images.dtype == np.uint8 else floats


def random_view(
    key: Key[Array, ""],
    image: Num[Array | np.ndarray, "height width channels"],
    *,
    augmentation: Augmentation,
    cropped: bool = False,
) -> tuple[Float[Array, "new_height new_width channels"], Float[Array, "5"]]:
    """(a random view of the image, in 0..1; its box in the image, see `make_augment`).

    cropped: the image is a crop already, and has the view's size.
    """
    draws = _draw(key)
    image = _unit_range(image).transpose(2, 0, 1)
    image, box = (_flip if cropped else _crop_and_flip)(image, draws, augmentation)
    if augmentation.rotate:
        image = resample.turned(image, augmentation.rotate * (2.0 * draws["rotate"] - 1.0))
    if augmentation.policy:
        # A policy has its own key, so that the draws of the other operations are the same with and without it.
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
    """A key for view `number` of each example, made from the example's index."""
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
        # Each place computes all of them and keeps one. Branches that depend on data would run one image at a time.
        adjusted = image
        for number, name in enumerate(names):
            amount = _amount(name, getattr(augmentation, name), draws[name])
            chosen = applied & (order[place] == number)
            adjusted = jnp.where(chosen, ADJUSTMENTS[name](image, amount), adjusted)
        image = adjusted
    return image


def _amount(name: str, strength: float, draw: Float[Array, ""]) -> Float[Array, ""]:
    """The factor of an adjustment; for hue, the shift."""
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
