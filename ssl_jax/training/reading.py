"""The images that a run reads, as config.data says."""

from typing import Any

from ssl_jax import config as configs
from ssl_jax.config import Config
from ssl_jax.data import indices, opening, pipeline, sources
from ssl_jax.data.normalization import Normalization


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
