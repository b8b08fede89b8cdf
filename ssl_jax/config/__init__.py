"""Configs: where they come from, what keys they have, and their check.

A config is a Python file of ml_collections; the package's own are found by name, "simclr:tiny". `parse` turns it into
the frozen `Config` that a run uses. A mistake that the config alone shows stops a program before any work. The error
names the key, its value and the remedy.
"""

from ssl_jax.config.errors import ConfigError, check_names, nearest, require
from ssl_jax.config.files import (
    EXECUTION,
    SHIPPED,
    differences,
    digest,
    dumps,
    flatten,
    get_config,
    loads,
    plain,
    shipped,
)
from ssl_jax.config.schema import Config, DataConfig, OnlineKNNConfig, Section, base_config, check_devices, parse
from ssl_jax.config.sections import build, call

__all__ = [
    "EXECUTION",
    "SHIPPED",
    "Config",
    "ConfigError",
    "DataConfig",
    "OnlineKNNConfig",
    "Section",
    "base_config",
    "build",
    "call",
    "check_devices",
    "check_names",
    "differences",
    "digest",
    "dumps",
    "flatten",
    "get_config",
    "loads",
    "nearest",
    "parse",
    "plain",
    "require",
    "shipped",
]
