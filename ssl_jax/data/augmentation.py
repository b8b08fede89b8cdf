"""The operations of a view, as the keys of a config: `Augmentation`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Array, Float, Key

from ssl_jax import keys
from ssl_jax.data import resample
from ssl_jax.data.autoaugment import FILL, auto_augment
from ssl_jax.data.crop import RandomCrop
from ssl_jax.data.randaugment import rand_augment
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, OneOf, Range

Image = Float[Array, "channels height width"]

# Whole policies, by name: (key, image in 0..1) -> image in 0..1.
POLICIES: Mapping[str, Callable[[Key[Array, ""], Image], Image]] = {
    "autoaugment": auto_augment,
    "randaugment": lambda key, image: rand_augment(key, image, fill=[FILL / 255.0] * len(image)),
}


@dataclass(frozen=True)
class Augmentation:
    """How one view is made: the operations of SimCLR and BYOL, as in torchvision, and some for images of any number of
    channels; in the order of the fields.

    An operation whose probability or strength is 0 costs nothing. `check` checks the fields; the constructor does not.

    Source of the operations and their order: Chen et al. 2020, arXiv:2002.05709, appendix A; solarize: Grill et al.
    2020, arXiv:2006.07733, appendix B; photometric: VISSL's ImgPilRandomPhotometric, for PIRL, Misra & van der Maaten
    2019, arXiv:1912.01991; policies: Cubuk et al. 2018, arXiv:1805.09501, and 2019, arXiv:1909.13719; gamma: TorchIO,
    Perez-Garcia et al. 2020, arXiv:2003.04696; channel_drop: SSL4EO-S12, Wang et al. 2022, arXiv:2211.07044, and
    ChannelViT, Bao et al. 2023, arXiv:2309.16108. Those of single channels and the quarter turns are ours.
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
    shift: Annotated[
        float,
        SHARE,
        "Above 0: the crop is the first view's, mirrored and turned as that, but moved down and to the right by up to",
        "this share of its sides, as far as the image reaches (CMAE, arXiv:2207.13532). Settings of the crop must be",
        "the first view's, which itself has no shift.",
    ] = 0.0
    interpolation: Annotated[
        str, OneOf(tuple(resample.KERNELS)), "Interpolation from the crop to size, antialiased."
    ] = "bilinear"
    flip: Annotated[float, SHARE, "Probability of mirroring left and right."] = 0.5
    flip_vertical: Annotated[float, SHARE, "Probability of mirroring top and bottom."] = 0.0
    quarter_turns: Annotated[
        float,
        SHARE,
        "Probability of turning the view by 90, 180 or 270 degrees, each as often; 0.75 makes all four orientations "
        "equally frequent. Nothing is interpolated. Of square views only.",
    ] = 0.0
    rotate: Annotated[
        float,
        Range(0.0, 180.0),
        "Most degrees that the view is turned to either side, uniform; nearest neighbors. What lies outside of the "
        "crop is black, the lowest value of each channel.",
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
    hue: Annotated[
        float,
        Range(0.0, 0.5),
        "x, for shifts of hue uniform in -x..x of the full circle. Of red, green and blue only; channel_mix is for "
        "other channels.",
    ] = 0.0
    gamma: Annotated[
        float, NOT_NEGATIVE, "x, for an exponent of the values log-uniform in exp(-x)..exp(x): value ** exponent."
    ] = 0.0
    channel_mix: Annotated[
        float,
        SHARE,
        "x: each channel moves towards another, at random, by a share uniform in 0..x of their difference.",
    ] = 0.0
    channel_gain: Annotated[float, NOT_NEGATIVE, "x, for a factor of each channel uniform in max(0, 1 - x)..1 + x."] = (
        0.0
    )
    channel_shift: Annotated[
        float, SHARE, "x, for a number uniform in -x..x that is added to a channel, another for each; values are 0..1."
    ] = 0.0
    jitter: Annotated[
        float,
        SHARE,
        "Probability that brightness, contrast, saturation and hue are changed, in random order, and then gamma and "
        "the channels by channel_mix, channel_gain and channel_shift; else none of them is.",
    ] = 0.8
    photometric: Annotated[
        float,
        SHARE,
        "Probability of these four, in this order: posterized to 4..8 bits, sharpness changed by a factor in 0.1..1.9,",
        "solarized from a threshold in 0..256, contrast stretched to the full range.",
    ] = 0.0
    grayscale: Annotated[
        float, SHARE, "Probability of taking the color away: every channel becomes the gray image."
    ] = 0.0
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
    noise: Annotated[
        float, NOT_NEGATIVE, "x, for Gaussian noise of a standard deviation uniform in 0..x; values are 0..1."
    ] = 0.0
    channel_drop: Annotated[
        float,
        SHARE,
        "Probability of dropping a channel, of each; one is always kept. A dropped channel has its mean (data.mean) "
        "everywhere: after the normalization 0, which adds nothing to the network's first layer.",
    ] = 0.0

    @property
    def crop(self) -> RandomCrop:
        return RandomCrop(
            size=self.size,
            area=self.crop_area,
            aspect=self.crop_aspect,
            interpolation=self.interpolation,
            shorter_side=self.shorter_side,
            padding=self.padding,
            shift=self.shift,
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
        if self.shift and self.shorter_side:
            raise ValueError(
                f"shift={self.shift} needs crops of random area; use shorter_side=0, got {self.shorter_side}"
            )
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
        if self.quarter_turns and self.size[0] != self.size[1]:
            raise ValueError(
                f"quarter_turns {self.quarter_turns} needs a square view, got size {self.size}: set it to 0; flip=0.5 "
                "with flip_vertical=0.5 turns half of the views by 180 degrees or mirrors them"
            )
        if self.hue and channels != 3:
            raise ValueError(
                f"hue {self.hue} turns the colors of red, green and blue, but images have {channels} "
                f"{'channel' if channels == 1 else 'channels'}: set hue to 0"
                + (f" and channel_mix to {self.hue}" if channels > 1 else ", and use brightness, contrast and gamma")
            )
