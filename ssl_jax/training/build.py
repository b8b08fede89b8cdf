"""Builds what a run works with, from a config and from what a script gives in place of its sections."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax import config as configs
from ssl_jax import dist, models, optim, paths
from ssl_jax.config import Config
from ssl_jax.data import augment, indices, opening, pipeline, sources
from ssl_jax.data.augment import Augmentation, OwnAugmentation
from ssl_jax.data.masks import Mask
from ssl_jax.data.normalization import Normalization
from ssl_jax.keys import keys_of
from ssl_jax.methods import (
    METHODS,
    VQKD,
    BEiTV2,
    ClusterFit,
    DINOv3,
    DINOv3Distillation,
    DINOv3Teacher,
    Distill,
    FeatureTargets,
    Method,
    MethodFactory,
    Schedule,
    Teacher,
    Tokenizer,
)
from ssl_jax.methods.contract import MEMBERS
from ssl_jax.models import abilities
from ssl_jax.models.adapt import as_backbone
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.training.low_rank import LowRank
from ssl_jax.training.mixing import mix
from ssl_jax.training.state import TrainState, create_state
from ssl_jax.training.step import Preparing, TrainStep, standing_still
from ssl_jax.weights import Backbone, load_backbone
from ssl_jax.workdir import config_file

Views = Callable[[Any, Any], Any]  # (rng, batch of images) -> the batch with the method's views
OwnFunction = Callable[[Any, Any], Any]  # (rng, image [height, width, channels] in 0..1) -> view


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
    augment: Augmentation | OwnFunction | Mapping[str, Augmentation | OwnFunction] | None = None


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
    crops = augmentations(config, made.views, given)
    _check_upright(made, crops)
    tx, rate = optimizer(config, schedule.steps, made, given)

    def make_views(crops: Sequence[Augmentation | OwnAugmentation]) -> Views:
        return augment.make_augment(crops, normalization(config), masks=masks(config, made, crops))

    views = make_views(crops)
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
    example = view_shape(crops[0], data.channels)
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
        views = make_views(sized)
        step = dataclasses.replace(train_step, augment=views)
        each.append(dataclasses.replace(found, augmentations=sized, views=views, step=step))
    return dataclasses.replace(found, mixed=tuple(each), entry=functools.partial(mixed.entry, config.seed))


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


def source(config: Config) -> sources.Source:
    """The training split. Raises: ConfigError if it has fewer images than a batch."""
    found = whole_source(config)
    check_batch(config, found)
    return found


def whole_source(config: Config) -> sources.Source:
    """The training split, however few images it has."""
    data = config.data
    options = dict(split=data.split, path=data.path or None, **how_to_read(config))
    return configs.call(opening.load, options, "config.data", data.name)


def how_to_read(config: Config) -> dict[str, Any]:
    """Options of `opening.load` that say what is read of a file."""
    data = config.data
    return dict(channels=data.channels or None, bands=data.bands, pages=data.pages, window=data.window)


def keeps_in_memory(config: Config, num_images: int, *, windows: bool) -> bool:
    """Whether training keeps its images in memory. windows: whether they are windows of larger ones."""
    data = config.data
    return pipeline.keeps_in_memory(
        num_images,
        data.image_size,
        normalization(config).pixel_bytes,
        memory_bytes=data.memory_bytes,
        at_random=windows and data.random_windows,
    )


def index_shape(rows: int, num_images: int) -> tuple[int, ...]:
    """The shape of "index" in batches of so many rows."""
    return indices.device_shape(rows, num_images)


def check_batch(config: Config, source: sources.Source) -> None:
    """Raises: ConfigError if the source has fewer images than a batch."""
    if len(source) < config.batch_size:
        raise configs.ConfigError(
            f"{source.name} has {len(source)} images in split {config.data.split!r}, fewer than one batch; "
            f"use --config.batch_size={max(len(source) // 2, 1)} or smaller"
        )


def source_pair(config: Config) -> tuple[sources.Source, sources.Source]:
    """(training split, test split), for evaluation."""
    data = config.data
    splits = dict(train_split=data.split, test_split=data.test_split)
    options = dict(**splits, path=data.path or None, **how_to_read(config))
    return configs.call(opening.load_pair, options, "config.data", data.name)


def normalization(config: Config) -> Normalization:
    """How images become what the network is given. Raises: ConfigError for numbers that do not fit each other."""
    data = config.data
    options = dict(mean=data.mean, std=data.std, value_range=data.value_range, dtype=data.dtype, nodata=data.nodata)
    return configs.call(Normalization, options, "config.data")


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
        if kind in (ClusterFit, Distill, FeatureTargets, VQKD) and config.method.get("teacher"):
            facts = {"loaded": teacher(config, "teacher", config.method.get("teacher_model") or None)}
        if kind is DINOv3 and config.method.get("gram_teacher"):
            facts = {"loaded": teacher(config, "gram_teacher", module, **sizes(config, module))}
        if kind is BEiTV2 and config.method.get("tokenizer"):
            facts = {"loaded": tokenizer(config)}
        if kind is DINOv3Distillation:
            further = further_models(config).values()
            facts = {"further": tuple(configs.call(models.create, of, "config.method.students") for of in further)}
            facts |= {"loaded": dinov3_teacher(config)} if config.method.get("teacher") else {}
        return configs.build(METHODS, config.method, "config.method", module, schedule, **facts)
    made = configs.call(given.method, {}, "method", module, schedule)
    if not isinstance(made, Method):
        missing = [name for name in MEMBERS if not hasattr(made, name)]
        raise configs.ConfigError(
            f"method must make a ssl_jax.methods.Method of a backbone and a schedule; {type(made).__name__} has no "
            f"{', '.join(missing)}: inherit from ssl_jax.methods.Base"
        )
    return made


def sizes(config: Config, module: nn.Module) -> dict[str, Any]:
    """Options of `load_backbone` that fit weights to a run's network and its images."""
    return dict(
        image_size=getattr(module, "image_size", None) or config.data.image_size,
        patch_size=getattr(module, "patch_size", None),
        channels=config.data.channels,
    )


def teacher(config: Config, key: str, model: str | nn.Module | None, **options: Any) -> Teacher:
    """The teacher that this key of config.method names, of this architecture; options: of `load_backbone`.

    Raises: ConfigError if it cannot be loaded, or cannot see these images.
    """
    where = f"config.method.{key}"
    found: Backbone = configs.call(load_backbone, options, where, os.path.expanduser(config.method[key]), model)
    data = normalization(config)
    if not found.mean:
        raise configs.ConfigError(
            f"{where}: the weights do not say how their images were normalized; save them by weights.save_backbone, "
            "with mean and std of each channel"
        )
    if data.channels not in (1, len(found.mean)):
        raise configs.ConfigError(
            f"{where}: the teacher takes images of {len(found.mean)} channels, but these have {data.channels}; use "
            f"another teacher, or --config.data.channels={len(found.mean)} if the files have them"
        )
    # Of a gray image, each channel of the teacher is the gray.
    std, mean = np.asarray(found.std), np.asarray(found.mean)
    scale, offset = np.asarray(data.std) / std, (np.asarray(data.mean) - mean) / std
    return Teacher(found.model, jax.device_get(found.variables), tuple(scale.tolist()), tuple(offset.tolist()))


def tokenizer(config: Config) -> Tokenizer:
    """The tokenizer of the run that config.method.tokenizer names.

    Raises: ConfigError if that is no finished run of vqkd, or its encoder cannot see these images.
    """
    encoder, kept = finished(config, "tokenizer", "vqkd")
    head, codebook = kept["params"]["head"], kept["model_state"]["codebook"]
    return Tokenizer(encoder, jax.device_get(head), jax.device_get(codebook))


def dinov3_teacher(config: Config) -> DINOv3Teacher:
    """The teacher of the run that config.method.teacher names.

    Raises: ConfigError if that is no finished run of dinov3, or its network cannot see these images.
    """
    network, kept = finished(config, "teacher", "dinov3")
    learnt = kept["model_state"]["teacher"]["params"]
    return DINOv3Teacher(network, {name: jax.device_get(learnt[name]) for name in ("head", "patch_head")})


def further_models(config: Config) -> dict[str, dict[str, Any]]:
    """{name: its options for `models.create`} of the students beside config.model, in order.

    Raises: ConfigError for what names no network.
    """
    where = "config.method.students"
    found = [configs.call(models.described, {}, where, text) for text in config.method.get("students", ())]
    return {options["name"]: {"dtype": config.compute_dtype, **options} for options in found}


def finished(config: Config, key: str, method: str) -> tuple[Teacher, dict[str, Any]]:
    """(the network, the newest checkpoint) of the run of this method that a key of config.method names.

    Raises: ConfigError if it is another run, or has not ended, and as `teacher`.
    """
    where, directory = f"config.method.{key}", paths.path(os.path.expanduser(config.method[key]))
    run = config_file.saved(directory)
    if run is None or run.method.name != method:
        found = "holds no run" if run is None else f"is a run of {run.method.name}"
        raise configs.ConfigError(f"{where}: {directory} {found}; give the directory of a run of {method}")
    network = teacher(config, key, None)
    kept = Checkpoints(directory / "checkpoints").newest()
    if kept is None:
        raise configs.ConfigError(
            f"{where}: {directory} has no checkpoint, and backbone.safetensors has not all that the run has learnt"
        )
    return network, kept


def augmentations(
    config: Config,
    views: Sequence[str],
    given: Given = Given(),
) -> list[Augmentation | OwnAugmentation]:
    """One for each view that the method declares. Raises: ConfigError for missing and impossible ones.

    Logs a warning about those that the method does not take, as "local" with method.local_views=0.
    """
    own = given.augment
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


def _check_upright(method: Method, crops: Sequence[Augmentation | OwnAugmentation]) -> None:
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
