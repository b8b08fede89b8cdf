"""From a config to the things that a program works with. Below this, nothing sees a config object."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_jax import config as configs
from ssl_jax import models, optim, parallel, step
from ssl_jax.data import augment, sources
from ssl_jax.data.augment import Augmentation
from ssl_jax.data.masks import Mask
from ssl_jax.methods import METHODS, Run

# What of optim.create is not the config's to choose.
OPTIMIZER_FACTS = ("steps", "depth", "frozen_steps", "still_steps", "constant_lr")


def defaults(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """What the config's sections take, and its value where the config has none: {"method": {"temperature": ...}}.

    A value that is None by default is a placeholder of the number that it may be.
    """
    found = {}
    for section, table in (("method", METHODS), ("model", models.MODELS), ("optimizer", optim.OPTIMIZERS)):
        if config.get(section, {}).get("name") in table:
            found[section] = _parameters(table[config[section].name])
    if "model" in found:
        del found["model"]["dtype"]  # config.compute_dtype
    if "optimizer" in found:
        found["optimizer"] |= {k: v for k, v in _parameters(optim.create).items() if k not in OPTIMIZER_FACTS}
    return (
        found | {"mask": _parameters(Mask)} | {f"augment.{name}": _parameters(Augmentation) for name in config.augment}
    )


def _parameters(made: Callable[..., Any]) -> dict[str, Any]:
    """Those that have a number, a string or some of them as default."""
    found = {}
    for name, parameter in inspect.signature(made).parameters.items():
        value, kinds = parameter.default, str(parameter.annotation)
        if value is None and kinds in ("int | None", "float | None"):
            found[name] = placeholder(int if kinds == "int | None" else float)
        elif isinstance(value, (bool, int, float, str, tuple)):
            found[name] = value
    return found


@dataclasses.dataclass(frozen=True)
class Training:
    """What a run does with its batches.

    augmentations: one for each of the method's views. views: (rng, batch) -> the batch with the views made. schedule:
    step -> learning rate. create_state: () -> the state before the first step. step: for `parallel.map_step`; as is
    prepare, for `preparation` batches before the first step, None for a method that needs none.
    """

    method: Any
    augmentations: list[Augmentation]
    views: Callable[[Any, Any], Any]
    schedule: Callable[[int], float]
    create_state: Callable[[], step.TrainState]
    step: step.TrainStep
    prepare: step.TrainStep | None
    preparation: int


def facts(config: ConfigDict, num_images: int, num_classes: int) -> Run:
    """Of a run on that many images; `num_classes`: 0 without labels."""
    steps_per_epoch = num_images // config.batch_size
    return Run(
        batch_size=config.batch_size,
        steps=config.steps or config.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        num_images=num_images,
        num_classes=num_classes,
    )


def training(config: ConfigDict, run: Run) -> Training:
    made, data = method(config, run), config.data
    crops = augmentations(config, made.views)
    tx, schedule = optimizer(config, run.steps, made)
    views = augment.make_augment(crops, mean=data.mean, std=data.std, masks=masks(config, made))
    example = (1, *crops[0].size, data.channels)
    train_step = step.TrainStep(method=made, tx=tx, augment=views, axis_name=parallel.AXIS, log_every=config.log_every)
    prepare, preparation = None, 0
    if hasattr(made, "prepare"):
        preparation = run.steps_per_epoch
        prepare = dataclasses.replace(
            train_step, method=step.Preparing(made, preparation), tx=step.standing_still(tx), log_every=preparation
        )
    return Training(
        method=made,
        augmentations=crops,
        views=views,
        schedule=schedule,
        create_state=lambda: step.create_state(made, tx, jnp.zeros(example), config.seed),
        step=train_step,
        prepare=prepare,
        preparation=preparation,
    )


def source(config: ConfigDict) -> sources.Source:
    """The training split. Raises: ConfigError where it has fewer images than a batch."""
    found = whole_source(config)
    check_batch(config, found)
    return found


def whole_source(config: ConfigDict) -> sources.Source:
    """The training split, however few images it has."""
    data = config.data
    options = dict(split=data.split, path=data.path or None, channels=data.channels)
    return configs.call(sources.load, options, "config.data", data.name)


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
    most = getattr(method, "most_masked", 0)
    for name in masked:
        configs.call(mask.grid, {}, f"config.mask of config.augment.{name}", config.augment[name].size)
        if most and (found := mask.most(config.augment[name].size)) > most:
            raise configs.ConfigError(
                f"config.mask masks up to {found} patches of {name}, more than config.method.most_masked={most}; "
                f"use config.method.most_masked={found}, or 0"
            )
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
        still_steps=getattr(method, "still_steps", {}),
        constant_lr=getattr(method, "constant_lr", ()),
    )
    taken = [*inspect.signature(optim.create).parameters, *inspect.signature(optim.OPTIMIZERS[name]).parameters]
    configs.check_names(
        options, [key for key in taken if key not in ("name", "options", *OPTIMIZER_FACTS)], "config.optimizer"
    )
    return configs.call(optim.create, options, "config.optimizer", name, **facts)
