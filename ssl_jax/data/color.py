"""Color operations on one image [channels, height, width] of float values in 0..1, with torchvision's results.

Factors and thresholds may be traced: `jax.vmap` gives each image of a batch its own. Channels come first, so that an
operation runs over rows of one channel. With three interleaved channels, the vector units of a CPU would stay idle.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Image = Float[Array, "channels height width"]
ColorImage = Float[Array, "3 height width"]
Scalar = Float[Array, ""] | float

LUMA = (0.299, 0.587, 0.114)  # of red, green, blue; ITU-R BT.601


def luma(image: Image) -> Float[Array, "1 height width"]:
    """The gray image: .299 R + .587 G + .114 B of three channels; the mean of any other number of channels."""
    if len(image) != 3:
        return jnp.mean(image, axis=0, keepdims=True)
    red, green, blue = image
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[None]


def adjust_brightness(image: Image, factor: Scalar) -> Image:
    """Multiplies by `factor` >= 0."""
    return _blend(image, 0.0, factor)


def adjust_contrast(image: Image, factor: Scalar) -> Image:
    """Moves away from the mean of the gray image: 0 gives that mean, 1 the image, above 1 more contrast."""
    return _blend(image, jnp.mean(luma(image)), factor)


def adjust_saturation(image: Image, factor: Scalar) -> Image:
    """Moves away from the gray image: 0 gives the gray image, 1 the image, above 1 stronger colors."""
    return _blend(image, luma(image), factor)


def _blend(image: Image, other: Float[Array, "..."] | float, factor: Scalar) -> Image:
    return jnp.clip(factor * image + (1.0 - factor) * other, 0.0, 1.0)


# RGB of a fully saturated hue h in 0..6 is clip(OFFSET + SLOPE * |h - CENTER|, 0, 1): a trapezoid for each channel. The
# three are arrays over the channels, so `adjust_hue` is one vectorized loop: on a CPU many times faster than stacking.
CENTER, OFFSET, SLOPE = np.array([[3, 2, 4], [-1, 2, 2], [1, -1, -1]], np.float32)[:, :, None, None]


def adjust_hue(image: ColorImage, shift: Scalar) -> ColorImage:
    """Turns the hue (of HSV) by `shift` of the full circle, -0.5..0.5; value and saturation do not change."""
    red, green, blue = image
    low, high = jnp.min(image, axis=0), jnp.max(image, axis=0)
    chroma = high - low
    scale = 1.0 / jnp.where(chroma == 0.0, 1.0, chroma)
    # The channels are compared with each other, not with `high`: XLA may compute a channel twice, once inside `high`,
    # and round the two differently. Then no channel is the highest, and the hue is far off. Where two channels are
    # equal, both terms agree.
    hue = jnp.where(green >= blue, 2.0 + (blue - red) * scale, 4.0 + (red - green) * scale)
    hue = jnp.where((red >= green) & (red >= blue), (green - blue) * scale, hue) + 6.0 * shift
    hue = hue - 6.0 * jnp.floor(hue / 6.0)
    return low + chroma * jnp.clip(OFFSET + SLOPE * jnp.abs(hue - CENTER), 0.0, 1.0)


def adjust_gamma(image: Image, exponent: Scalar) -> Image:
    """The values to the power of `exponent` > 0: below 1 the dark ones become brighter, above 1 darker."""
    return jnp.clip(image, 0.0, 1.0) ** exponent


def mix_channels(image: Image, share: Float[Array, " channels"], other: Int[Array, " channels"]) -> Image:
    """Moves each channel by its `share` of the difference towards the channel of number `other`."""
    return image + share[:, None, None] * (image[other] - image)


def solarize(image: Image, threshold: Scalar) -> Image:
    """Inverts the values from `threshold` on."""
    return jnp.where(image >= threshold, 1.0 - image, image)


def posterize(image: Image, bits: Scalar) -> Image:
    """Keeps the highest `bits` of a value's 8 bits."""
    step = 2.0 ** (8.0 - bits)
    return jnp.floor(jnp.round(image * 255.0) / step) * step / 255.0


def adjust_sharpness(image: Image, factor: Scalar) -> Image:
    """Moves away from the smoothed image: 0 gives the smoothed image, 1 the image, above 1 sharper edges.

    A pixel is smoothed with its eight neighbors; its own weight is five times theirs, as in Pillow and torchvision.
    Pixels at the border do not change.
    """
    smooth = image
    for axis in (1, 2):
        smooth = jnp.roll(smooth, 1, axis) + smooth + jnp.roll(smooth, -1, axis)
    smooth = (smooth + 4.0 * image) / 13.0
    _, height, width = image.shape
    row, column = np.arange(height)[:, None], np.arange(width)
    inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return _blend(image, jnp.where(inner, smooth, image), factor)


def autocontrast(image: Image) -> Image:
    """Stretches each channel's values to 0..1; a channel of one value does not change."""
    low, high = (f(image, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1.0), image)
