"""How processes agree to do the same at the same step, and hear each other's numbers, without waiting."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Num

from ssl_jax.dist.mesh import AXIS, shard_batch


class Agreement:
    """If one process wishes something, all processes learn it at the same step, without waiting for each other.

    The wishes of a step are sent beside the training and read `delay` steps later. By then the devices have done that
    step, and every process reads the same. A single process is granted its wishes at once. Repeat a wish until it is
    granted: then the wishes made meanwhile are forgotten.
    """

    def __init__(self, mesh: Mesh, *, delay: int):
        self._mesh, self._delay = mesh, delay
        self._on_the_way: collections.deque[jax.Array] = collections.deque()

    def __call__(self, *wishes: bool) -> tuple[bool, ...]:
        """Whether each wish is granted, the same in every process. Every process calls this at each step, with the same
        number of wishes."""
        if jax.process_count() == 1:
            return wishes
        self._on_the_way.append(greatest(np.array(wishes, np.int32), self._mesh))
        if len(self._on_the_way) <= self._delay:
            return (False,) * len(wishes)
        granted = tuple(bool(wish) for wish in np.asarray(self._on_the_way.popleft()))
        if any(granted):
            self._on_the_way.clear()
        return granted


def everyones(numbers: Sequence[float], mesh: Mesh) -> Float[Array, "processes numbers"]:
    """The numbers of every process, each >= 0, a row for each process. Every process calls this at the same step, with
    as many numbers. The result is not waited for: the devices send it after the steps that they were given before."""
    rows = np.zeros((jax.process_count(), len(numbers)), np.float32)
    rows[jax.process_index()] = numbers
    return greatest(rows, mesh)


def greatest(values: Num[np.ndarray, "..."], mesh: Mesh) -> Num[Array, "..."]:
    """The greatest of each value over the processes. It is not waited for."""
    return _greatest(mesh)(shard_batch(np.tile(values, (jax.local_device_count(), *[1] * values.ndim)), mesh))


@functools.cache
def _greatest(mesh: Mesh) -> Callable[[Any], Any]:
    sharded, replicated = PartitionSpec(AXIS), PartitionSpec()
    return jax.jit(
        jax.shard_map(lambda rows: lax.pmax(rows[0], AXIS), mesh=mesh, in_specs=sharded, out_specs=replicated)
    )
