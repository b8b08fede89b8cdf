"""A method whose weights are averaged over its steps."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import optim
from ssl_jax.methods.contract import Batch, Output, Params, State, Trainable

AVERAGE = "average"  # its name in the model state


@dataclasses.dataclass(frozen=True)
class Averaged:
    """`method`, with exponential moving averages of its parameters and BatchNorm statistics, which training ignores.

    The decay at step t (from 1) is min(decay, (1 + t) / (10 + t)), so that the first weights are soon forgotten: what
    TensorFlow's ExponentialMovingAverage does with num_updates, and timm's ModelEmaV3 with its warm-up.
    """

    method: Trainable
    decay: float

    @property
    def banks(self) -> Mapping[str, int]:
        return self.method.banks

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        return self.begin(*self.method.init(rng, images))

    def begin(self, params: Params, state: State) -> tuple[Params, State]:
        """(params, state) before the first step, of those of the method."""
        first = {"params": params, "batch_stats": state["batch_stats"]}
        # A copy, as a step donates its state's buffers.
        return params, {**state, AVERAGE: jax.tree.map(lambda x: jnp.array(x, copy=True), first)}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        output = self.method.loss(params, _own(state), batch, rng, axis_name=axis_name)
        return output._replace(state={**output.state, AVERAGE: state[AVERAGE]})

    def constrain(self, params: Params) -> Params:
        return self.method.constrain(params)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        new = self.method.update(params, _own(state), step)
        decay: Any = jnp.minimum(self.decay, (1.0 + step) / (10.0 + step))
        latest = {"params": params, "batch_stats": new["batch_stats"]}
        return {**new, AVERAGE: optim.ema(state[AVERAGE], latest, decay)}

    def averages(self, state: State) -> tuple[Params, State]:
        """(averaged params, state of the method with averaged statistics)"""
        found = state[AVERAGE]
        return found["params"], {**_own(state), "batch_stats": found["batch_stats"]}


def _own(state: State) -> State:
    return {name: part for name, part in state.items() if name != AVERAGE}
