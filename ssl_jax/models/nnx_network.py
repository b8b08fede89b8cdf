"""An `nnx.Module` as a Linen module."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict


def as_linen(network: nnx.Module) -> "NNXNetwork":
    """The network as a Linen module. Its initial parameters are the network's own, whatever the seed."""
    graph, params, stats, rest = nnx.split(network, nnx.Param, nnx.BatchStat, ...)
    return NNXNetwork(graph, (Constant(params), Constant(stats), Constant(rest)))


class Constant:
    """Holds arrays as a field of a Linen module. Flax hashes such fields; this one is hashed by identity."""

    def __init__(self, value: Any):
        self.value = value


class NNXNetwork(nn.Module):
    """An `nnx.Module` as a Linen module. Its initial parameters are the given ones, whatever the seed."""

    graph: Any
    values: tuple[Constant, Constant, Constant]  # of parameters, BatchNorm statistics, and all else

    @property
    def given_name(self) -> str:
        return type(nnx.merge(self.graph, *(constant.value for constant in self.values))).__name__

    @nn.compact
    def __call__(self, images: Any, train: bool = False, axis_name: str | None = None) -> Any:
        params, stats, rest = (constant.value for constant in self.values)
        own_params = _fill(params, lambda name, value: self.param(name, lambda _: value))
        kept = {name: self.variable("batch_stats", name, lambda v: v, value) for name, value in _named(stats).items()}
        own_stats = _fill(stats, lambda name, _: kept[name].value)
        # All variables are copies, as variables of another trace cannot be changed.
        network = nnx.merge(self.graph, own_params, own_stats, jax.tree.map(lambda leaf: leaf, rest))
        network.train() if train else network.eval()
        if train and self.has_rng("dropout"):
            nnx.reseed(network, **dict.fromkeys(("default", "dropout"), self.make_rng("dropout")))
        h = network(images)
        if train and not self.is_initializing():
            _, _, stats, _ = nnx.split(network, nnx.Param, nnx.BatchStat, ...)
            for name, value in _named(stats).items():
                kept[name].value = value
        return h


def _named(state: Any) -> dict[str, Any]:
    """{path joined by "_": array} of an nnx state."""
    flat = flatten_dict(nnx.to_pure_dict(state))
    return {"_".join(map(str, path)): value for path, value in flat.items()}


def _fill(state: Any, value_of: Callable[[str, Any], Any]) -> Any:
    """The state with value_of(name, value) in place of each array."""
    flat = flatten_dict(nnx.to_pure_dict(state))
    filled = unflatten_dict({path: value_of("_".join(map(str, path)), value) for path, value in flat.items()})
    copy = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(copy, filled)
    return copy
