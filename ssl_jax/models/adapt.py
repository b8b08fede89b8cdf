"""A user's network as a backbone: any Linen module, or an `nnx.Module`, images -> h [batch, dim].

A Linen module's parameters keep their names. Its call may take `axis_name` and any of `train`, `training`,
`is_training`, `deterministic` and `use_running_average`. It may have `feature_map` or `tokens` (see abilities.py).
An `nnx.Module` is switched by its `train()` and `eval()`.
"""

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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
    if _is_nnx(network):
        from ssl_jax.models.nnx_network import as_linen

        network = as_linen(network)
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
            f"{named(network)} gives {list(shape)} for images {list(images.shape)}; a backbone must "
            "give a vector for each image, [batch, dim]: take the mean over positions or tokens"
        )
    return kind(network, shape[1], takes)


def named(network: Any) -> str:
    """A network's name in messages and files: its class, and a Linen module's options that are not the defaults, as in
    "MyNet(width=64)"."""
    if not isinstance(network, nn.Module):
        return type(network).__name__
    if hasattr(network, "given_name"):
        return network.given_name
    fields = [field for field in dataclasses.fields(type(network)) if field.name not in ("parent", "name")]
    values = {field.name: getattr(network, field.name) for field in fields}
    changed = [field.name for field in fields if values[field.name] is not field.default]
    options = ", ".join(f"{name}={getattr(values[name], '__qualname__', repr(values[name]))}" for name in changed)
    return f"{type(network).__name__}({options})"


def _is_nnx(network: Any) -> bool:
    # Importing nnx takes a quarter of a second, and whoever has such a module has imported it.
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(network, nnx.Module)


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

    @property
    def given_name(self) -> str:
        return named(self.network)

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
