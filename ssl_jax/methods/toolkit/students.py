"""Networks that give features of whole images and of their places in one pass, as students in training."""

# pyright: reportUnknownMemberType=false

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax.methods.contract import Params, State
from ssl_jax.methods.toolkit import teachers
from ssl_jax.methods.toolkit.networks import train_apply
from ssl_jax.models import abilities, maps


def check(backbone: nn.Module) -> None:
    """Raises: ValueError for a network that does not give its features and those of places in one pass."""
    if abilities.has_tokens(backbone):
        if backbone.class_token and backbone.pool == "cls":
            return
        raise ValueError(
            "a ViT is distilled by its class token and patches; leave model.class_token=True and model.pool='cls', got "
            f"{backbone.class_token}, {backbone.pool!r}"
        )
    gives_both = abilities.has_features_and_map(backbone)
    if not gives_both and not (abilities.has_feature_map(backbone) and abilities.mean_of_map_is_h(backbone)):
        raise ValueError(
            f"a student needs features of places, and features of the whole image that are their mean; a "
            f"{type(backbone).__name__} has not; use a ViT, a ConvNeXt or a ResNet"
        )


def encode(
    backbone: nn.Module,
    params: Params,
    batch_stats: State,
    views: Sequence[Float[Array, "batch _ _ channels"]],
    *,
    axis_name: str | None,
    rng: Key[Array, ""],
) -> tuple[Float[Array, "views batch dim"], Float[Array, "first batch rows columns dim"], State]:
    """(class tokens of all views, features of the first ones' places, new batch_stats), in training mode.

    Views of one size pass as one batch. A network without a class token has its features in place of it. first: the
    number of views of the first one's size.
    """
    tokens: list[Float[Array, "views batch dim"]] = []
    places: list[Float[Array, "views batch _ _ dim"]] = []
    for number, (_, same_size) in enumerate(itertools.groupby(views, jnp.shape)):
        group = list(same_size)
        # The views of an image lie side by side, as `forward_views` has them, and for its reason.
        images = jnp.stack(group, axis=1).reshape(-1, *group[0].shape[1:])
        found, batch_stats = train_apply(
            backbone,
            params,
            batch_stats,
            images,
            axis_name=axis_name,
            rng=jax.random.fold_in(rng, number),
            method=maps.method_of_both(backbone),
        )
        h, x = (y.reshape(-1, len(group), *y.shape[1:]).swapaxes(0, 1) for y in maps.both(backbone, found, images))
        tokens.append(h)
        places.append(x)
    return jnp.concatenate(tokens), places[0], batch_stats


def on_grid(
    places: Float[Array, "views batch _ _ dim"], grid: tuple[int, ...]
) -> Float[Array, "views batch patches dim"]:
    """Features of places, resized to this grid (rows, columns), row by row."""
    views, batch, *_, dim = places.shape
    flat = teachers.resized(places.reshape(-1, *places.shape[2:]), (views * batch, *grid, dim))
    return flat.reshape(views, batch, -1, dim)
