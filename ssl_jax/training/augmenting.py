"""How a method's views are made of images: augmentations and masks, as config.augment and config.mask say."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import config as configs
from ssl_jax.config import Config
from ssl_jax.data import augment
from ssl_jax.data.augment import Augmentation, OwnAugmentation
from ssl_jax.data.masks import Mask
from ssl_jax.methods import Method
from ssl_jax.models import abilities
from ssl_jax.training.reading import normalization

Views = Callable[[Any, Any], Any]  # (rng, batch of images) -> the batch with the method's views
OwnFunction = Callable[[Any, Any], Any]  # (rng, image [height, width, channels] in 0..1) -> view
# For all views, or {name of a view: its own}.
GivenViews = Augmentation | OwnFunction | Mapping[str, Augmentation | OwnFunction]


def augmentations(
    config: Config,
    views: Sequence[str],
    own: GivenViews | None = None,
) -> list[Augmentation | OwnAugmentation]:
    """One for each view that the method declares. Raises: ConfigError for missing and impossible ones.

    own: in place of config.augment, see `build.Given`.
    Logs a warning about those that the method does not take, as "local" with method.local_views=0.
    """
    sections: Mapping[str, Any] = (
        config.augment if own is None else own if isinstance(own, Mapping) else dict.fromkeys(views, own)
    )
    if set(views) - set(sections):
        raise configs.ConfigError(
            f"config.augment has the sections {sorted(sections)}, but the method needs "
            f"one for each of its views {sorted(set(views))}"
        )
    if unused := sorted(set(sections) - set(views)):
        logging.warning(
            "config.augment has sections %s, which the method does not use; its views are %s", unused, tuple(views)
        )
    if own is None:
        _check_colors(config, dict.fromkeys(views))
    made = {name: _augmentation(config, name, sections[name]) for name in dict.fromkeys(views)}
    return [made[name] for name in views]


def _check_colors(config: Config, views: Iterable[str]) -> None:
    """Raises: ConfigError if views have hue and images have other than three channels, with the whole remedy."""
    channels = config.data.channels
    colored = {name: config.augment[name].get("hue", 0.0) for name in views}
    colored = {name: hue for name, hue in colored.items() if hue}
    if channels == 3 or not colored:
        return
    changes = {f"{name}.hue": 0.0 for name in colored}
    if channels > 1:
        changes |= {f"{name}.channel_mix": hue for name, hue in colored.items()}
    flags = " ".join(f"--config.augment.{key}={value}" for key, value in changes.items())
    raise configs.ConfigError(
        f"config.augment.{', '.join(colored)}: hue turns the colors of red, green and blue, but images have {channels} "
        f"{'channel' if channels == 1 else 'channels'}; use {flags}, or views for such images by "
        "--config NAME:SCALE:KIND with KIND satellite, xray or microscopy"
    )


def check_upright(method: Method, crops: Sequence[Augmentation | OwnAugmentation]) -> None:
    """Raises: ConfigError if views are turned of a method that is to tell how they are turned."""
    if not method.upright:
        return
    for name, crop in zip(method.views, crops, strict=True):
        if isinstance(crop, Augmentation) and (crop.quarter_turns or crop.flip_vertical):
            raise configs.ConfigError(
                f"method {type(method).__name__} tells how an image was turned, which views with quarter_turns="
                f"{crop.quarter_turns} and flip_vertical={crop.flip_vertical} hide; use "
                f"--config.augment.{name}.quarter_turns=0.0 --config.augment.{name}.flip_vertical=0.0, or for images "
                "without an upright another method"
            )


def _augmentation(config: Config, name: str, section: Any) -> Augmentation | OwnAugmentation:
    if callable(section):
        function: Any = section
        return OwnAugmentation(function, config.data.image_size)
    where = f"config.augment.{name}"
    made = section
    if not isinstance(section, Augmentation):
        if "size" not in section:
            raise configs.ConfigError(f"{where} has no size, (height, width) of the view in pixels")
        made = configs.call(Augmentation, section, where)
    configs.call(made.check, {}, where, config.data.channels)
    return made


def masks(config: Config, method: Method, crops: Sequence[Augmentation | OwnAugmentation]) -> list[Mask | None]:
    """The mask of each view, None if the method wants none there. Raises: ConfigError if config.mask does not fit."""
    masked = method.masked
    name = type(method).__name__
    if bool(masked) != bool(config.mask):
        wants = f"needs config.mask for its views {tuple(masked)}" if masked else "takes no config.mask"
        raise configs.ConfigError(f"method {name} {wants}, got {dict(config.mask)}")
    if not masked:
        return [None] * len(method.views)
    side = method.mask_side or abilities.masked_side(method.backbone)
    mask = configs.call(Mask, dict(config.mask), "config.mask", patch_size=side)
    # With a mask_ratio, the number of masked patches is part of the network's shapes: it is the same for all images.
    ratio = method.mask_ratio
    if ratio is not None and (mask.ratio, mask.images) != ((ratio, ratio), 1.0):
        raise configs.ConfigError(
            f"method {name} with mask_ratio={ratio} masks that share of every image; it takes "
            f"config.mask.ratio=({ratio}, {ratio}) and images=1.0, got {mask.ratio}, {mask.images}"
        )
    most = method.most_masked
    for view, crop in zip(method.views, crops, strict=True):
        if view not in masked:
            continue
        size = view_shape(crop, config.data.channels)[:2]
        configs.call(mask.grid, {}, f"config.mask of config.augment.{view}", size)
        patches = (size[0] // side) * (size[1] // side)
        if ratio is not None and mask.most(size) != (count := int(np.round(np.float32(patches) * np.float32(ratio)))):
            raise configs.ConfigError(
                f"mask_ratio={ratio} masks {count} of {patches} patches of {view}, but config.mask with "
                f"unit={mask.unit} masks {mask.most(size)}; use {mask.most(size)} / {patches} = "
                f"{mask.most(size) / patches} for config.method.mask_ratio and both of config.mask.ratio"
            )
        if most and (found := mask.most(size)) > most:
            raise configs.ConfigError(
                f"config.mask masks up to {found} patches of {view}, more than config.method.most_masked={most}; "
                f"use config.method.most_masked={found}, or 0"
            )
    return [mask if view in masked else None for view in method.views]


def make_views(config: Config, method: Method, crops: Sequence[Augmentation | OwnAugmentation]) -> Views:
    """What makes the method's views, with their masks. crops: its `augmentations`. Raises: ConfigError as `masks`."""
    return augment.make_augment(crops, normalization(config), masks=masks(config, method, crops))


def view_shape(augmentation: Augmentation | OwnAugmentation, channels: int) -> tuple[int, ...]:
    """(height, width, channels) of the views. Raises: ConfigError if a function does not give an image."""
    shape = (*augmentation.size, channels)
    if isinstance(augmentation, Augmentation):
        return shape
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    view = jax.eval_shape(augmentation.function, jax.random.key(0), image)
    if not hasattr(view, "shape") or len(view.shape) != 3:
        raise configs.ConfigError(
            f"augment(rng, image [height, width, channels]) must give a view [height, width, channels], got {view}"
        )
    return view.shape
