"""The leaves of a tree of parameters: what kind each is, by its path; and averages of such trees."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Kinds that `exempt` may name. All other leaves are of kind "weight".
KINDS = ("bias", "offset", "scale", "gain", "prototypes", "cls_token", "pos_embed", "mask_token")
VECTORS = ("bias", "offset", "scale")  # what papers mean by "biases and normalization"
_NAMED = (*KINDS[3:], "relative_position_bias_table")


def kinds(params: Any) -> Any:
    """The kind of each leaf, by its name and not by its rank: one of `KINDS`, or "weight".

    "scale": of a normalization or LayerScale, named "scale" or "gamma". "offset": a "bias" beside a "scale". "bias":
    any other "bias". "gain" (of prototypes), "prototypes", "cls_token", "pos_embed" and "mask_token" are leaves of that
    name; a ViT's registers are of kind "cls_token". A leaf of another name is a bias if it has at most one dimension,
    otherwise a weight. The authors' codes decide by the rank in this way.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    normalizations = {path[:-1] for path in paths if leaf_path(path[-1:]) == "scale"}

    def kind(path, p):
        name = leaf_path(path).rpartition("/")[2]
        if name in ("scale", "gamma"):
            return "scale"
        if name == "bias":
            return "offset" if path[:-1] in normalizations else "bias"
        if name == "reg_token":
            return "cls_token"
        if name in _NAMED:
            return name if name in KINDS else "weight"
        return "weight" if p.ndim > 1 else "bias"

    return jax.tree_util.tree_map_with_path(kind, params)


def all_but(exempt: Sequence[str]) -> Callable[[Any], Any]:
    """params -> True for each leaf that is of none of these kinds."""
    return lambda params: jax.tree.map(lambda kind: kind not in exempt, kinds(params))


def ema(average: Any, new: Any, decay: Any) -> Any:
    """decay * average + (1 - decay) * new, leaf by leaf, in float32. A decay of 1 freezes the average."""
    return jax.tree.map(lambda a, n: a + (1.0 - decay) * (n.astype(jnp.float32) - a), average, new)


def norm(leaf: Any) -> Any:
    return jnp.sqrt(jnp.sum(jnp.square(leaf)))


def map_paths(function: Callable[[str], Any], tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: function(leaf_path(path)), tree)


def leaf_path(path: Any) -> str:
    """ "backbone/conv1/kernel" """
    return "/".join(str(getattr(key, "key", key)) for key in path)
