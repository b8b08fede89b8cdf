"""The keys that every config has, each defined once: type, default, range, meaning.

A run uses a `Config`. Configs are written and changed as a ConfigDict; `parse` turns that into a `Config` once, and
nothing below sees a ConfigDict. The sections model, method, augment, mask, mix and optimizer have the keys of what
they name: see training/config_keys.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from ml_collections import ConfigDict

from ssl_jax import keys
from ssl_jax.config.errors import ConfigError, check_names, require
from ssl_jax.config.files import plain
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SEED, OneOf, Range

Section = Mapping[str, Any]  # "name", and the keys of what it names


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images: config.data."""

    name: Annotated[str, "Name of a TFDS data set, emoji_google, emoji_twitter, or folder for images of your own."] = (
        "fashion_mnist"
    )
    path: Annotated[
        str,
        "With data.name=folder, your images: a folder, a list, arrays or records (docs/data.md). Otherwise the "
        "directory in which TFDS keeps its data, or that of the packages of emoji.",
    ] = ""
    split: Annotated[
        str,
        "Split to train on. TFDS's slices work, such as train[:25%]; a folder may have train/ and test/.",
    ] = "train"
    test_split: Annotated[str, "Split to evaluate on. In a folder without splits, a fifth of each class."] = "test"
    image_size: Annotated[tuple[int, int], "(height, width) of images in memory, and of those that are evaluated."] = (
        28,
        28,
    )
    channels: Annotated[
        int,
        NOT_NEGATIVE,
        "Channels of the images. With 1 (gray) or 3 (red, green, blue) photos are converted as they are read; another "
        "number is what the images must have. 0: as the images have, found at the start.",
    ] = 1
    bands: Annotated[
        tuple[int, ...],
        NOT_NEGATIVE,
        "Indices, from 0, of the bands of each file that are used, in this order; (): all.",
    ] = ()
    pages: Annotated[
        str,
        OneOf(("", "bands", "images")),
        "What the pages of a file are, where it does not say: bands of one image, or images. Empty: such a file is "
        "left out.",
    ] = ""
    window: Annotated[
        int,
        NOT_NEGATIVE,
        "Side, in pixels, of the windows that large images are cut into; each window counts as an image. 0: whole "
        "images.",
    ] = 0
    random_windows: Annotated[
        bool,
        "Whether training draws each window's place anew, which reads it from its file each time. If not, windows lie "
        "on a grid, as they always do in evaluation, and are kept in memory if they fit.",
    ] = True
    dtype: Annotated[
        str,
        OneOf(("", "uint8", "uint16", "int16", "float32")),
        "Type of the images. Images of a type that it holds are converted, others are left out. Empty: found.",
    ] = "uint8"
    value_range: Annotated[
        tuple[float, ...],
        "Values that become 0 and 1: (low, high), or low and high of each channel, one channel after the other. Values "
        "outside become 0 or 1. (): for uint8 (0, 255), for other types the least and the greatest value of each "
        "channel, found at the start.",
    ] = ()
    percentiles: Annotated[
        tuple[float, float],
        Range(0.0, 100.0),
        "Percentiles of each channel that are taken for low and high where value_range is found.",
    ] = (0.0, 100.0)
    nodata: Annotated[
        tuple[float, ...],
        "Values that stand for no measurement, beside NaN. Such pixels are given the mean of their channel. (): those "
        "that the files name, where mean and std are found.",
    ] = ()
    mean: Annotated[
        tuple[float, ...],
        "Mean of each channel, of values in 0..1: images are normalized by it. (): found at the start.",
    ] = (0.2860,)
    std: Annotated[
        tuple[float, ...], POSITIVE, "Standard deviation of each channel, of values in 0..1. (): found at the start."
    ] = (0.3530,)
    memory_bytes: Annotated[
        int,
        NOT_NEGATIVE,
        "Limit in bytes. A data set that takes no more when decoded at image_size is kept in memory, "
        "and the device crops it. A larger one is decoded and cropped on the host for each batch. 0: "
        "none is kept, so crops are taken from whole images.",
    ] = 2**31
    threads: Annotated[
        int,
        NOT_NEGATIVE,
        "Threads that decode images. 0: one for each core that the process may use, and at least 4.",
    ] = 0
    prefetch: Annotated[int, COUNT, "Batches prepared ahead of the device."] = 2


@dataclasses.dataclass(frozen=True)
class OnlineKNNConfig:
    """The kNN classifier during training, on images of the training split: config.online_knn."""

    bank: Annotated[int, COUNT, "Number of images among which neighbors are sought."] = 8000
    queries: Annotated[int, COUNT, "Number of images to classify."] = 2000
    k: Annotated[int, COUNT, "Number of neighbors that vote."] = 20
    temperature: Annotated[float, POSITIVE, "Temperature of the neighbors' weights."] = 0.07


@dataclasses.dataclass(frozen=True)
class Config:
    """A run's config, checked. A section is a read-only mapping: the name of a thing, and its options."""

    data: DataConfig
    online_knn: OnlineKNNConfig
    model: Section
    method: Section
    augment: Mapping[str, Section]
    mask: Section
    mix: Section
    optimizer: Section
    begin: Annotated[
        str | None,
        "Weights that the backbone and its teacher begin with: the directory of a run, or a file of load_backbone's.",
        "They must be of config.model's architecture; patches, positions and channels of other sizes are fitted.",
        "Empty: the initialization. None: this config is for given weights, and a run without them is refused.",
    ] = ""
    begin_prefix: Annotated[
        str,
        "Prefix of the backbone's tensors in a file with several networks, with its dot, such as teacher.backbone.",
    ] = ""
    lora_rank: Annotated[
        int,
        NOT_NEGATIVE,
        "Low-rank adaptation (LoRA): the weights of begin stay as they are, and of the backbone only products of two",
        "matrices of this rank are trained, each added to a kernel of attention or an MLP. 0: the weights are trained.",
    ] = 0
    lora_alpha: Annotated[float, POSITIVE, "The products of lora_rank are multiplied by this over lora_rank."] = 16.0
    seed: Annotated[
        int, SEED, "Seed of initialization, order, crops and augmentation. The same seed gives the same run."
    ] = 0
    batch_size: Annotated[
        int, COUNT, "Images per step over all devices and processes. The views of an image are not counted."
    ] = 256
    epochs: Annotated[int, NOT_NEGATIVE, "Passes over the images; steps counts instead where it is above 0."] = 0
    steps: Annotated[int, NOT_NEGATIVE, "Optimizer steps of the run; 0: config.epochs sets them."] = 0
    compute_dtype: Annotated[
        str,
        OneOf(("float32", "bfloat16")),
        "Type in which the networks compute. Parameters, statistics, losses and the sum that a ViT's "
        "branches are added to are float32.",
    ] = "float32"
    shard_state: Annotated[
        bool,
        "Shards weights, optimizer, teacher and queues over the devices, and gathers what is used. "
        "Results are the same, with less memory and more traffic. A run may go on with another value.",
    ] = False
    reduce_dtype: Annotated[
        str,
        OneOf(("float32", "bfloat16")),
        "Type in which gradients are sent between devices and summed over them. bfloat16 sends half as much, and "
        "rounds each sum to 8 bits. One device sends none.",
    ] = "float32"
    log_every: Annotated[
        int, COUNT, "Steps between lines of metrics.jsonl; the first and the last step have one, too."
    ] = 50
    checkpoint_every: Annotated[int, COUNT, "Steps between checkpoints."] = 500
    checkpoint_minutes: Annotated[
        float,
        NOT_NEGATIVE,
        "Minutes without a checkpoint after which one is written, besides those of checkpoint_every; "
        "a kill costs no more. 0: by steps only. A run may go on with another value.",
    ] = 10.0
    evaluate_every: Annotated[
        int, NOT_NEGATIVE, "Steps between online kNN evaluations, a multiple of log_every; 0: never."
    ] = 500
    stop_after_skipped: Annotated[
        int, COUNT, "A step whose loss or gradient is not finite is skipped; this many in a row end the run."
    ] = 10


SUBSECTIONS = {"data": DataConfig, "online_knn": OnlineKNNConfig}
NAMED_SECTIONS = ("model", "method", "augment", "mask", "mix", "optimizer")
OPTIMIZER_DEFAULTS = dict(name="adamw", lr=0.0, weight_decay=0.0, warmup_steps=0, final_lr=0.0)


def base_config() -> ConfigDict:
    """The keys that every config has, at their defaults. `get_config` fills in model, method, augment, optimizer."""
    values: dict[str, Any] = {name: key.default for name, key in keys.keys_of(Config).items()}
    values |= {name: dict(_defaults(kind)) for name, kind in SUBSECTIONS.items()}
    values |= dict(
        model=dict(name="resnet8"),
        method=dict(name=""),
        augment=dict[str, Any](),
        mask=dict[str, Any](),
        mix=dict[str, Any](),
        optimizer=dict(OPTIMIZER_DEFAULTS),
    )
    return ConfigDict(values)


def _defaults(kind: type) -> dict[str, Any]:
    return {name: key.default for name, key in keys.keys_of(kind).items()}


def parse(config: ConfigDict) -> Config:
    """The config as a run uses it. Raises: ConfigError for the first value that no run can have."""
    template = base_config()
    require("study" not in config, f"the config is of a study, {config.get('study')!r}; run it with ssl_jax study")
    for name in template:
        require(name in config, f"config.{name} is missing; start from ssl_jax.config.base_config()")
    check_names(config, list(template), "config")
    values: dict[str, Any] = {}
    for name, kind in SUBSECTIONS.items():
        check_names(config[name], list(template[name]), f"config.{name}")
        values[name] = kind(**_checked(kind, plain(config[name]), f"config.{name}."))
    values |= _checked(Config, {name: plain(config[name]) for name in keys.keys_of(Config)}, "config.")
    values |= {name: plain(config[name]) for name in NAMED_SECTIONS}
    parsed = Config(**values)
    _check_relations(parsed)
    return parsed


def _checked(kind: type, values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    for name, key in keys.keys_of(kind).items():
        require(name in values, f"{where}{name} is missing; start from ssl_jax.config.base_config()")
        try:
            key.check(values[name])
        except ValueError as error:
            raise ConfigError(f"{where}{error}") from error
    return values


def _check_relations(config: Config) -> None:
    data, optimizer = config.data, config.optimizer
    require(
        config.evaluate_every % config.log_every == 0,
        f"config.evaluate_every={config.evaluate_every} is not a multiple of "
        f"config.log_every={config.log_every}; use "
        f"{-(-config.evaluate_every // config.log_every) * config.log_every}",
    )
    require(config.steps or config.epochs, "config.steps and config.epochs are both 0; set one of them")
    require(
        min(data.image_size) >= 1,
        f"config.data.image_size must be (height, width) in pixels, got {tuple(data.image_size)}",
    )
    for name in ("mean", "std"):
        values = getattr(data, name)
        require(
            len(values) in (0, data.channels) or not data.channels,
            f"config.data.{name} has {len(values)} values for config.data.channels={data.channels}; "
            "give one for each channel",
        )
    require(optimizer["lr"] > 0, f"config.optimizer.lr must be above 0, got {optimizer['lr']}")
    for name in ("weight_decay", "warmup_steps"):
        require(optimizer[name] >= 0, f"config.optimizer.{name} must be at least 0, got {optimizer[name]}")


def check_devices(batch_size: int, devices: int) -> None:
    """Raises: ConfigError if the batch does not divide over the devices."""
    if batch_size % devices:
        near = sorted({max(batch_size // devices, 1) * devices, -(-batch_size // devices) * devices})
        remedy = " or ".join(str(size) for size in near)
        raise ConfigError(f"config.batch_size={batch_size} does not divide over {devices} devices; use {remedy}")
