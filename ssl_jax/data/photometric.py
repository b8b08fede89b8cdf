"""How a view's values are changed: one image, [channels, height, width] in 0..1, on the device."""

import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Bool, Float, Key

from ssl_jax.data import color, resample
from ssl_jax.data.augmentation import POLICIES, Augmentation
from ssl_jax.data.draws import Draws, own_key

Image = Float[Array, "channels height width"]


def change(key: Key[Array, ""], image: Image, draws: Draws, augmentation: Augmentation) -> Image:
    """All photometric operations of `augmentation`, in the order of its fields."""
    if augmentation.policy:
        image = POLICIES[augmentation.policy](own_key(key, "policy"), image)
    image = jitter(image, draws, augmentation)
    image = jitter_channels(key, image, draws, augmentation)
    if augmentation.photometric:
        image = jnp.where(draws["photometric"] < augmentation.photometric, _photometric(image, draws), image)
    if augmentation.grayscale:
        image = jnp.where(draws["grayscale"] < augmentation.grayscale, color.luma(image), image)
    if augmentation.blur:
        image = _blur(image, draws, augmentation)
    if augmentation.solarize:
        solarized = color.solarize(image, augmentation.solarize_threshold)
        image = jnp.where(draws["solarize"] < augmentation.solarize, solarized, image)
    if augmentation.noise:
        key_strength, key_noise = random.split(own_key(key, "noise"))
        strength = augmentation.noise * random.uniform(key_strength)
        image = jnp.clip(image + strength * random.normal(key_noise, image.shape), 0.0, 1.0)
    return image


ADJUSTMENTS = {
    "brightness": color.adjust_brightness,
    "contrast": color.adjust_contrast,
    "saturation": color.adjust_saturation,
    "hue": color.adjust_hue,
}


def jitter(image: Image, draws: Draws, augmentation: Augmentation) -> Image:
    """Changes brightness, contrast, saturation and hue, in random order, or none of them."""
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
    return _between(-strength, strength, draw) if name == "hue" else _factor(strength, draw)


def _factor(strength: float, draw: Float[Array, "..."]) -> Float[Array, "..."]:
    return _between(max(0.0, 1.0 - strength), 1.0 + strength, draw)


def _between(low: float, high: float, draw: Float[Array, "..."]) -> Float[Array, "..."]:
    return low + (high - low) * draw


def jitter_channels(key: Key[Array, ""], image: Image, draws: Draws, augmentation: Augmentation) -> Image:
    """Gamma, channel_mix, channel_gain and channel_shift, where `jitter` changes the image, too."""
    changed, channels = image, len(image)
    if augmentation.gamma:
        exponent = jnp.exp(_between(-augmentation.gamma, augmentation.gamma, random.uniform(own_key(key, "gamma"))))
        changed = color.adjust_gamma(changed, exponent)
    if augmentation.channel_mix and channels > 1:
        share, which = random.uniform(own_key(key, "channel_mix"), (2, channels))
        other = jnp.floor((channels - 1) * which).astype(jnp.int32)
        other += other >= jnp.arange(channels)  # any channel but itself
        changed = color.mix_channels(changed, augmentation.channel_mix * share, other)
    if augmentation.channel_gain:
        draw = random.uniform(own_key(key, "channel_gain"), (channels, 1, 1))
        changed = jnp.clip(changed * _factor(augmentation.channel_gain, draw), 0.0, 1.0)
    if augmentation.channel_shift:
        draw = random.uniform(own_key(key, "channel_shift"), (channels, 1, 1))
        shift = _between(-augmentation.channel_shift, augmentation.channel_shift, draw)
        changed = jnp.clip(changed + shift, 0.0, 1.0)
    if changed is image or not augmentation.jitter:
        return image
    return jnp.where(draws["jitter"] < augmentation.jitter, changed, image)


def kept_channels(key: Key[Array, ""], channels: int, *, probability: float) -> Bool[Array, " channels"]:
    """Which channels of a view are kept: each is dropped with this probability, but one of them always stays."""
    draw = random.uniform(own_key(key, "channel_drop"), (channels,))
    return (draw >= probability) | (jnp.arange(channels) == jnp.argmax(draw))


def _photometric(image: Image, draws: Draws) -> Image:
    image = color.posterize(image, 4.0 + jnp.floor(5.0 * draws["bits"]))
    image = color.adjust_sharpness(image, 0.1 + 1.8 * draws["sharpness"])
    image = color.solarize(image, jnp.floor(257.0 * draws["threshold"]) / 255.0)
    return color.autocontrast(image)


def _blur(image: Image, draws: Draws, augmentation: Augmentation) -> Image:
    sigma = _between(*augmentation.blur_sigma, draws["blur_sigma"])
    blurred = draws["blur"] < augmentation.blur
    rows, columns = (
        jnp.where(blurred, resample.blur_matrix(sigma, taps=augmentation.blur_taps, size=size), jnp.eye(size))
        for size in augmentation.size
    )
    return resample.separable(image, rows, columns)
