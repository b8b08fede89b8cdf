"""Calls of networks, methods and losses are compiled whole, as users run them.

A test calls them outside of jit. There JAX compiles each operation by itself, some 300 programs for the first step of a
small network, which takes ten times as long as one program of all.
"""

import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ssl_jax import losses
from ssl_jax.methods import METHODS

_ARRAY = object()
# Each program takes some tens of the 65,530 regions of memory that Linux gives a process; without one left XLA crashes.
MOST_REGIONS = 30_000


def whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under jit: arrays are traced, everything else in its arguments is static and must be hashable.

    Inside of another jit it is called as it is.
    """

    @functools.wraps(function)
    def call(*args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
        if not any(is_array) or any(type(leaf).__name__ == "DynamicJaxprTracer" for leaf in leaves):
            return function(*args, **kwargs)
        # With their types: 1 == 1.0 == True.
        static = tuple((_ARRAY, None) if a else (type(leaf), leaf) for leaf, a in zip(leaves, is_array, strict=True))
        return _compile(function, tree, static)(*(leaf for leaf, a in zip(leaves, is_array, strict=True) if a))

    return call


@functools.cache
def _compile(function, tree, static):
    def of_arrays(*arrays):
        remaining = iter(arrays)
        leaves = [next(remaining) if kind is _ARRAY else leaf for kind, leaf in static]
        args, kwargs = jax.tree.unflatten(tree, leaves)
        return function(*args, **kwargs)

    return jax.jit(of_arrays)


def install() -> None:
    for name in ("init", "apply", "init_with_output"):
        setattr(nn.Module, name, whole(getattr(nn.Module, name)))
    for cls in METHODS.values():
        for name in ("init", "loss", "features"):
            if hasattr(cls, name):
                setattr(cls, name, whole(getattr(cls, name)))
    for name in losses.__all__:
        setattr(losses, name, whole(getattr(losses, name)))


def release() -> None:
    """Forgets all compiled programs if they hold many regions of memory. Nothing is known of them outside of Linux."""
    regions = Path("/proc/self/maps")
    if regions.exists() and regions.read_bytes().count(b"\n") > MOST_REGIONS:
        _compile.cache_clear()
        jax.clear_caches()
        gc.collect()
