"""How processes agree to do the same at the same step."""

import collections

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

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
        sharded, replicated = PartitionSpec(AXIS), PartitionSpec()
        any_process = jax.shard_map(
            lambda wishes: lax.pmax(wishes[0], AXIS), mesh=mesh, in_specs=sharded, out_specs=replicated
        )
        self._any_process = jax.jit(any_process)

    def __call__(self, *wishes: bool) -> tuple[bool, ...]:
        """Whether each wish is granted, the same in every process. Every process calls this at each step, with the same
        number of wishes."""
        if jax.process_count() == 1:
            return wishes
        rows = np.tile(np.array(wishes, np.int32), (jax.local_device_count(), 1))
        self._on_the_way.append(self._any_process(shard_batch(rows, self._mesh)))
        if len(self._on_the_way) <= self._delay:
            return (False,) * len(wishes)
        granted = tuple(bool(wish) for wish in np.asarray(self._on_the_way.popleft()))
        if any(granted):
            self._on_the_way.clear()
        return granted
