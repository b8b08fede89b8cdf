"""A method's networks, applied as in training.

They are a dict of modules in the order in which data flow through them: {"backbone", "projector", ...}. A method's
params and state["batch_stats"] have the same names.
"""

# pyright: reportUnknownMemberType=false

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import ops
from ssl_jax.methods.contract import Params, State, Variables

Networks = Mapping[str, nn.Module]


def init(
    networks: Networks, rng: Key[Array, ""], x: Float[Array, "batch ..."]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Passes `x` through the networks, one after the other -> (params, batch_stats), by name."""
    params: dict[str, Any] = {}
    batch_stats: dict[str, Any] = {}
    for (name, module), rng_module in zip(networks.items(), jax.random.split(rng, len(networks)), strict=True):
        x, variables = module.init_with_output(rng_module, x)
        params[name], batch_stats[name] = variables["params"], variables.get("batch_stats", {})
    return params, batch_stats


def train_apply(
    module: nn.Module,
    params: Params,
    batch_stats: State,
    *inputs: Any,
    axis_name: str | None,
    rng: Key[Array, ""] | Sequence[Key[Array, ""]] | None = None,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Applies `module` in training mode -> (its output, its new BatchNorm statistics).

    rng: for the module's dropout, if it has any; one for each size of images that pass together.
    options: go to the module, or to its method named `method`.
    """
    keys = rng if isinstance(rng, Sequence) else [] if rng is None else [rng]
    applied: Any = module.apply(
        {"params": params, "batch_stats": batch_stats},
        *inputs,
        train=True,
        axis_name=axis_name,
        mutable=["batch_stats"],
        rngs={f"dropout{number or ''}": key for number, key in enumerate(keys)},
        **options,
    )
    output, updated = applied
    new = updated.get("batch_stats", {})
    # A network of the user's may normalize by a device's rows alone; ours have the statistics of all rows already.
    return output, new if axis_name is None else ops.average_varying(new, axis_name)


def init_map(
    backbone: nn.Module, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]
) -> tuple[dict[str, Any], dict[str, Any], Float[Array, "batch rows columns dim"]]:
    """As `init` of {"backbone": backbone} -> (params, batch_stats, feature map of the images).

    The feature map is what other networks are initialized with.
    """
    params, batch_stats = init({"backbone": backbone}, rng, images)
    variables = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
    found: Any = backbone.apply(variables, images, method="feature_map")
    return params, batch_stats, found


def forward_map(
    backbone: nn.Module,
    params: Params,
    batch_stats: State,
    images: Float[Array, "batch height width channels"],
    *,
    axis_name: str | None,
    rng: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "batch rows columns dim"], dict[str, Any]]:
    """Applies the backbone in training mode -> (its feature map, batch_stats with the backbone's new ones).

    params, batch_stats: by the networks' names, of which this reads "backbone".
    """
    features, new = train_apply(
        backbone,
        params["backbone"],
        batch_stats["backbone"],
        images,
        axis_name=axis_name,
        rng=rng,
        method="feature_map",
    )
    return features, {**batch_stats, "backbone": new}


def map_size(backbone: nn.Module, view: tuple[int, int, int]) -> tuple[int, int]:
    """(rows, columns) of the backbone's feature map of a view of this (height, width, channels)."""

    def feature_map(rng: Key[Array, ""], images: Float[Array, "1 height width channels"]) -> Any:
        return backbone.init_with_output(rng, images, method="feature_map")[0]

    shape = jax.eval_shape(feature_map, jax.random.key(0), jax.ShapeDtypeStruct((1, *view), jnp.float32)).shape
    return shape[1], shape[2]


def forward(
    networks: Networks,
    params: Params,
    batch_stats: State,
    x: Float[Array, "batch ..."],
    *,
    axis_name: str | None,
    rng: Key[Array, ""] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Passes `x` through the networks in training mode -> ({name: its output}, batch_stats with their new ones)."""
    outputs: dict[str, Any] = {}
    new_stats = dict(batch_stats)
    for name, module in networks.items():
        x, new_stats[name] = train_apply(module, params[name], batch_stats[name], x, axis_name=axis_name, rng=rng)
        outputs[name] = x
    return outputs, new_stats


def forward_views(
    networks: Networks,
    params: Params,
    batch_stats: State,
    views: Sequence[Float[Array, "batch _ _ channels"]],
    *,
    axis_name: str | None,
    together: bool,
    rng: Key[Array, ""] | None = None,
) -> tuple[dict[str, Float[Array, "views batch ..."]], dict[str, Any]]:
    """Passes each view through the networks -> ({name: [views, batch, ...]}, batch_stats with their new ones).

    together: neighboring views of one size pass as one batch, so that BatchNorm's statistics are of all of them. False:
      each view passes by itself and has its own statistics.
    """
    groups = [list(group) for _, group in itertools.groupby(views, jnp.shape)] if together else [[v] for v in views]
    parts: list[dict[str, Any]] = []
    new_stats = dict(batch_stats)
    for number, group in enumerate(groups):
        rng_group = None if rng is None else jax.random.fold_in(rng, number)
        # The views of an image lie side by side. Then the rows of all devices have the order that they have on one
        # device. Grouped BatchNorm and stochastic depth depend on a row's place, and so do not depend on the number of
        # devices.
        rows = jnp.stack(group, axis=1).reshape(-1, *group[0].shape[1:])
        outputs, new_stats = forward(networks, params, new_stats, rows, axis_name=axis_name, rng=rng_group)
        parts.append(jax.tree.map(functools.partial(_views_apart, views=len(group)), outputs))
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts), new_stats


def _views_apart(rows: Float[Array, "rows ..."], views: int) -> Float[Array, "views batch ..."]:
    """Rows in which the views of an image lie side by side -> one array for each view."""
    return rows.reshape(-1, views, *rows.shape[1:]).swapaxes(0, 1)


def with_local(views: Sequence[str], local_views: int) -> tuple[str, ...]:
    """Names of the views of multi-crop: the large ones, and `local_views` small ones that are drawn alike."""
    return (*views, *("local",) * local_views)


def select(variables: Variables, names: Iterable[str]) -> dict[str, Any]:
    """The entries of these networks."""
    return {name: variables[name] for name in names}
