"""Builds what a run works with, from a config and from what a script gives in place of its sections."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ssl_jax import config as configs
from ssl_jax import dist, models, optim
from ssl_jax.config import Config
from ssl_jax.data.augment import Augmentation, OwnAugmentation
from ssl_jax.keys import keys_of
from ssl_jax.methods import (
    METHODS,
    BEiTV2,
    DINOv3,
    DINOv3Distillation,
    Method,
    MethodFactory,
    Schedule,
)
from ssl_jax.methods.contract import MEMBERS
from ssl_jax.methods.toolkit.teachers import Taught
from ssl_jax.models import abilities
from ssl_jax.models.adapt import as_backbone
from ssl_jax.training import augmenting, teachers
from ssl_jax.training.augmenting import GivenViews, Views
from ssl_jax.training.low_rank import LowRank
from ssl_jax.training.mixing import mix
from ssl_jax.training.state import TrainState, create_state
from ssl_jax.training.step import Preparing, TrainStep, standing_still


@dataclasses.dataclass(frozen=True)
class Given:
    """What a script gives in place of a config's sections. None: the config's section is used.

    backbone: a Linen or NNX module, see models/adapt.py. method: (backbone, schedule) -> the method.
    optimizer: takes the gradients as they are, without the config's clipping and schedules. augment: an `Augmentation`
    or a function (see `OwnAugmentation`) for every view, or {name of a view: one of these}.
    """

    backbone: Any = None
    method: MethodFactory | None = None
    optimizer: optax.GradientTransformation | None = None
    augment: GivenViews | None = None


@dataclasses.dataclass(frozen=True)
class Training:
    """What a run does with its batches.

    schedule: of the run. augmentations: one for each of the method's views. views: makes the views. learning_rate: step
    -> rate; None if the optimizer was given. create_state: () -> the state before the first step. step: for
    `dist.map_step`. prepare: for `dist.map_step`, too, with the method's `preparing_steps` batches before the first
    step; None if there are none. mixed: with config.mix one for each of its entries, with augmentations, views and step
    of its sizes. entry: step, counted from 0 -> the number of its entry.
    """

    method: Method
    schedule: Schedule
    augmentations: list[Augmentation | OwnAugmentation]
    views: Views
    learning_rate: Callable[[int], Any] | None
    create_state: Callable[[], TrainState]
    step: TrainStep
    prepare: TrainStep | None
    mixed: tuple["Training", ...] = ()
    entry: Callable[[int], int] = lambda step: 0

    @property
    def each(self) -> tuple["Training", ...]:
        """What steps are made with, by the number of their entry."""
        return self.mixed or (self,)

    def at(self, step: int) -> "Training":
        """What the step with this number, counted from 0, is made with."""
        return self.each[self.entry(step)]

    @property
    def unmixed(self) -> "Training":
        """Every step in the sizes of config.augment."""
        return dataclasses.replace(self, mixed=(), entry=lambda step: 0)


def schedule(config: Config, num_images: int, num_classes: int) -> Schedule:
    """The schedule of a run on `num_images` images. `num_classes`: 0 without labels."""
    steps_per_epoch = num_images // config.batch_size
    return Schedule(
        batch_size=config.batch_size,
        steps=config.steps or config.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        num_images=num_images,
        num_classes=num_classes,
    )


def training(config: Config, schedule: Schedule, given: Given = Given()) -> Training:
    """The `Training` of a run. Raises: ConfigError if the config, or what is given, does not allow it."""
    made, data = method(config, schedule, given), config.data
    trained = cast(Method, LowRank(made, config.lora_rank, config.lora_alpha)) if config.lora_rank else made
    crops = augmenting.augmentations(config, made.views, given.augment)
    augmenting.check_upright(made, crops)
    tx, rate = optimizer(config, schedule.steps, made, given)
    views = augmenting.make_views(config, made, crops)
    train_step = TrainStep(
        method=trained,
        tx=tx,
        augment=views,
        axis_name=dist.AXIS,
        log_every=config.log_every,
        last_step=schedule.steps,
        reduce_dtype=config.reduce_dtype,
    )
    prepare = None
    if made.preparing_steps:
        prepare = dataclasses.replace(
            train_step, method=Preparing(trained), tx=standing_still(tx), log_every=made.preparing_steps
        )
    example = augmenting.view_shape(crops[0], data.channels)
    found = Training(
        method=trained,
        schedule=schedule,
        augmentations=crops,
        views=views,
        learning_rate=rate and jax.jit(rate),  # or each of its operations is compiled by itself
        create_state=lambda: create_state(trained, tx, jnp.zeros((1, *example)), config.seed),
        step=train_step,
        prepare=prepare,
    )
    if not config.mix:
        return found
    mixed, entries = mix(config, made, crops)
    each: list[Training] = []
    for sized in entries:
        views = augmenting.make_views(config, made, sized)
        step = dataclasses.replace(train_step, augment=views)
        each.append(dataclasses.replace(found, augmentations=sized, views=views, step=step))
    return dataclasses.replace(found, mixed=tuple(each), entry=functools.partial(mixed.entry, config.seed))


def backbone(config: Config) -> nn.Module:
    return models.create(**model_options(config))


def model_options(config: Config) -> dict[str, Any]:
    """The name and options for `models.create`; they are stored with the weights."""
    return {**config.model, "dtype": config.compute_dtype}


def network(config: Config, given: Given = Given()) -> nn.Module:
    """The backbone's module, the config's or the given one. Raises: ConfigError for one that cannot be made."""
    if given.backbone is None:
        return configs.call(backbone, {}, "config.model", config)
    shape = (*config.data.image_size, config.data.channels)
    return configs.call(as_backbone, {}, "backbone", given.backbone, shape)


def method(config: Config, schedule: Schedule, given: Given = Given()) -> Method:
    """The method of a run. Raises: ConfigError for what the method refuses."""
    module = network(config, given)
    if given.method is None:
        facts, kind = {}, METHODS.get(config.method["name"])
        if isinstance(kind, type) and issubclass(kind, Taught) and config.method.get("teacher"):
            facts = {"loaded": teachers.teacher(config, "teacher", config.method.get("teacher_model") or None)}
        if kind is DINOv3 and config.method.get("gram_teacher"):
            facts = {"loaded": teachers.teacher(config, "gram_teacher", module, **teachers.sizes(config, module))}
        if kind is BEiTV2 and config.method.get("tokenizer"):
            facts = {"loaded": teachers.tokenizer(config)}
        if kind is DINOv3Distillation:
            further = teachers.further_models(config).values()
            facts = {"further": tuple(configs.call(models.create, of, "config.method.students") for of in further)}
            facts |= {"loaded": teachers.dinov3_teacher(config)} if config.method.get("teacher") else {}
        return configs.build(METHODS, config.method, "config.method", module, schedule, **facts)
    made = configs.call(given.method, {}, "method", module, schedule)
    if not isinstance(made, Method):
        missing = [name for name in MEMBERS if not hasattr(made, name)]
        raise configs.ConfigError(
            f"method must make a ssl_jax.methods.Method of a backbone and a schedule; {type(made).__name__} has no "
            f"{', '.join(missing)}: inherit from ssl_jax.methods.Base"
        )
    return made


def optimizer(
    config: Config,
    steps: int,
    method: Method,
    given: Given = Given(),
) -> tuple[optax.GradientTransformation, Callable[[int], Any] | None]:
    """(optimizer, step -> its learning rate). Raises: ConfigError for an unknown name or key, or a wrong value."""
    if given.optimizer is not None:
        frozen = {**method.frozen_steps, **method.still_steps}
        if frozen:
            logging.warning(
                "the given optimizer trains %s from the first step, but the method would keep them fixed at first",
                [*frozen],
            )
        return given.optimizer, None
    options = dict(config.optimizer)
    name = options.pop("name")
    if name not in optim.OPTIMIZERS:
        raise configs.ConfigError(
            f"config.optimizer.name={name!r} is unknown; {configs.nearest(name, list(optim.OPTIMIZERS))}"
        )
    facts = dict(
        steps=steps,
        depth=abilities.depth(method.backbone),
        frozen_steps=method.frozen_steps,
        still_steps=method.still_steps,
        constant_lr=method.constant_lr,
    )
    configs.check_names(options, [*keys_of(optim.create), *keys_of(optim.OPTIMIZERS[name])], "config.optimizer")
    return configs.call(optim.create, options, "config.optimizer", name, **facts)
