"""A user's network as a backbone: any Linen module, or an `nnx.Module`, images -> h [batch, dim].

A Linen module's parameters keep their names. Its call may take `axis_name` and any of `train`, `training`,
`is_training`, `deterministic` and `use_running_average`. It may have `feature_map` or `tokens` (see abilities.py).
An `nnx.Module` is switched by its `train()` and `eval()`.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

# Names that networks give the switch between training and evaluation -> its value in training.
SWITCHES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
EXAMPLE = (64, 64)  # height and width of the image by which a network's `dim` is found, if no shape is given


def as_backbone(network: Any, image_shape: tuple[int, int, int] = (*EXAMPLE, 3)) -> nn.Module:
    """Makes the network fit for methods and `load_backbone`: it has `dim` and is called as (images, train, axis_name).

    Args:
      network: a Linen module, an `nnx.Module`, or a result of this function, which is returned unchanged.
      image_shape: (height, width, channels) of an image that the network takes.
    Raises: TypeError if it is not a network; ValueError if it does not give [batch, dim].
    """
    if isinstance(network, nnx.Module):
        graph, params, stats, rest = nnx.split(network, nnx.Param, nnx.BatchStat, ...)
        network = NNXNetwork(graph, (Constant(params), Constant(stats), Constant(rest)))
        takes = ("train", "axis_name")
    elif isinstance(network, nn.Module):
        takes = tuple(inspect.signature(type(network).__call__).parameters)
        if "dim" in dir(network) and {"train", "axis_name"} <= {*takes}:
            return network
    else:
        raise TypeError(f"a backbone is a flax.linen.Module or a flax.nnx.Module, got {network!r}")
    kind = Network
    for ability, subclass in (("tokens", TokenNetwork), ("feature_map", MapNetwork)):
        kind = subclass if hasattr(network, ability) else kind
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    try:
        made = kind(network, 0, takes)
        shape = jax.eval_shape(made.init_with_output, jax.random.key(0), images)[0].shape
    except TypeError as error:
        raise ValueError(f"{named(network)} cannot be called on images {list(images.shape)}: {error}") from error
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(
            f"{named(network)} makes {list(shape)} of images {list(images.shape)}; a backbone gives a vector for each "
            "image, [batch, dim]: take the mean over positions or tokens"
        )
    return kind(network, shape[1], takes)


def named(network: Any) -> str:
    """A network's name in messages and files: its class, and a Linen module's options that are not the defaults, as in
    "MyNet(width=64)"."""
    if isinstance(network, Network):
        return named(network.network)
    if isinstance(network, NNXNetwork):
        return network.graph_name
    if not isinstance(network, nn.Module):
        return type(network).__name__
    fields = [field for field in dataclasses.fields(type(network)) if field.name not in ("parent", "name")]
    values = {field.name: getattr(network, field.name) for field in fields}
    changed = [field.name for field in fields if values[field.name] is not field.default]
    options = ", ".join(f"{name}={getattr(values[name], '__qualname__', repr(values[name]))}" for name in changed)
    return f"{type(network).__name__}({options})"


class Network(nn.Module):
    """A user's Linen module with a backbone's `dim` and call. Its variables are those of `network`."""

    network: nn.Module
    dim: int
    takes: tuple[str, ...]  # arguments of the network's call

    def setup(self) -> None:
        nn.share_scope(self, self.network)

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch ..."]:  # as_backbone refuses what is not [batch, dim]
        return self.called(self.network, images, train, axis_name).astype(jnp.float32)

    def called(self, function: Callable[..., Any], images: Any, train: bool, axis_name: str | None, **more: Any) -> Any:
        options: dict[str, Any] = {name: value == train for name, value in SWITCHES.items() if name in self.takes}
        if "axis_name" in self.takes:
            options["axis_name"] = axis_name
        return function(images, **options, **more)


class MapNetwork(Network):
    """A `Network` with a feature map."""

    def feature_map(self, images: Any, train: bool = False, axis_name: str | None = None) -> Any:
        return self.called(self.network.feature_map, images, train, axis_name).astype(jnp.float32)


class TokenNetwork(Network):
    """A `Network` with tokens: `network.tokens`, and the fields that describe them."""

    def tokens(self, images: Any, train: bool = False, axis_name: str | None = None, **options: Any) -> Any:
        return self.called(self.network.tokens, images, train, axis_name, **options)

    patch_size = property(lambda self: self.network.patch_size)
    num_prefix = property(lambda self: self.network.num_prefix)
    class_token = property(lambda self: self.network.class_token)
    pool = property(lambda self: self.network.pool)


class Constant:
    """Holds arrays as a field of a Linen module. Flax hashes such fields; this one is hashed by identity."""

    def __init__(self, value: Any):
        self.value = value


class NNXNetwork(nn.Module):
    """An `nnx.Module` as a Linen module. Its initial parameters are the given ones, whatever the seed."""

    graph: Any
    values: tuple[Constant, Constant, Constant]  # of parameters, BatchNorm statistics, and all else

    @property
    def graph_name(self) -> str:
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
