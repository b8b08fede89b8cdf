"""From a config to the things that a program works with. Below this, nothing sees a config object."""

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import optax
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import models, optim
from ssl_jax.data import sources
from ssl_jax.data.augment import Augmentation
from ssl_jax.data.masks import Mask
from ssl_jax.methods import METHODS, Run


def source(config: ConfigDict) -> sources.Source:
    """The training split. Raises: ConfigError where it has fewer images than a batch."""
    data = config.data
    options = dict(split=data.split, path=data.path or None, channels=data.channels)
    found = configs.call(sources.load, options, "config.data", data.name)
    check_batch(config, found)
    return found


def check_batch(config: ConfigDict, source: sources.Source) -> None:
    """Raises: ConfigError where the source has fewer images than a batch."""
    if len(source) < config.batch_size:
        raise configs.ConfigError(
            f"{source.name} has {len(source)} images in split {config.data.split!r}, fewer than one batch; "
            f"use --config.batch_size={max(len(source) // 2, 1)} or smaller"
        )


def source_pair(config: ConfigDict) -> tuple[sources.Source, sources.Source]:
    """(training, test) split, for evaluation."""
    data = config.data
    options = dict(train_split=data.split, test_split=data.test_split, path=data.path or None, channels=data.channels)
    return configs.call(sources.load_pair, options, "config.data", data.name)


def backbone(config: ConfigDict) -> nn.Module:
    return models.create(**model_options(config))


def model_options(config: ConfigDict) -> dict[str, Any]:
    """The name and options that `models.create` takes; they are stored with the weights."""
    return {**configs.plain(config.model), "dtype": config.compute_dtype}


def method(config: ConfigDict, run: Run) -> Any:
    module = configs.call(backbone, {}, "config.model", config)
    return configs.build(METHODS, config.method, "config.method", module, run)


def augmentations(config: ConfigDict, views: Sequence[str]) -> list[Augmentation]:
    """One for each view that the method declares. Raises: ConfigError for missing and impossible ones.

    One that the method does not take, as "local" with method.local_views=0, is warned of.
    """
    missing = set(views) - set(config.augment)
    if missing:
        raise configs.ConfigError(
            f"config.augment has {sorted(config.augment)}, but method {config.method.name} takes {sorted(set(views))}"
        )
    unused = sorted(set(config.augment) - set(views))
    if unused:
        logging.warning("config.augment's %s: not used by method %s, which takes %s", unused, config.method.name, views)
    made = {}
    for name in dict.fromkeys(views):
        made[name] = configs.call(Augmentation, configs.plain(config.augment[name]), f"config.augment.{name}")
        configs.call(made[name].check, {}, f"config.augment.{name}", config.data.channels)
    return [made[name] for name in views]


def masks(config: ConfigDict, method: Any) -> list[Mask | None]:
    """One for each of the method's views, None for those that it does not want masked."""
    masked = getattr(method, "masked", ())
    if bool(masked) != bool(config.mask):
        wants = f"wants config.mask for its views {masked}" if masked else "takes no config.mask"
        raise configs.ConfigError(f"method {config.method.name} {wants}, got {configs.plain(config.mask)}")
    if not masked:
        return [None] * len(method.views)
    options = configs.plain(config.mask)
    mask = configs.call(Mask, options, "config.mask", patch_size=method.backbone.patch_size)
    # A number of masked patches that is the same for all images is part of the network's shapes.
    ratio = getattr(method, "mask_ratio", None)
    if ratio is not None and (mask.ratio, mask.images) != ((ratio, ratio), 1.0):
        raise configs.ConfigError(
            f"method {config.method.name} with mask_ratio={ratio} masks that share of every image; it takes "
            f"config.mask.ratio=({ratio}, {ratio}) and images=1.0, got {mask.ratio}, {mask.images}"
        )
    for name in masked:
        configs.call(mask.grid, {}, f"config.mask of config.augment.{name}", config.augment[name].size)
    return [mask if name in masked else None for name in method.views]


def optimizer(
    config: ConfigDict, steps: int, method: Any
) -> tuple[optax.GradientTransformation, Callable[[int], float]]:
    """(optimizer, its learning-rate schedule: step -> lr)"""
    options = configs.plain(config.optimizer)
    name = options.pop("name")
    if name not in optim.OPTIMIZERS:
        raise configs.ConfigError(
            f"config.optimizer.name={name!r} is unknown; {configs.nearest(name, list(optim.OPTIMIZERS))}"
        )
    facts = dict(
        steps=steps,
        depth=getattr(method.backbone, "depth", 0),
        frozen_steps=getattr(method, "frozen_steps", {}),
        constant_lr=getattr(method, "constant_lr", ()),
    )
    taken = [*inspect.signature(optim.create).parameters, *inspect.signature(optim.OPTIMIZERS[name]).parameters]
    configs.check_names(options, [key for key in taken if key not in ("name", "options", *facts)], "config.optimizer")
    return configs.call(optim.create, options, "config.optimizer", name, **facts)
