"""Parts of an optimizer: clipping, leaves that start later or stay, and learning rates of layers and paths."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssl_jax.optim.leaves import map_paths, norm


def freeze_first(tx: optax.GradientTransformation, blocks: int) -> optax.GradientTransformation:
    """`tx` for all but a ViT's first `blocks` blocks and what is before them, which do not move.

    `tx` does not see the frozen leaves: they have no moments, and their gradients do not count where it clips. A mask
    token, which weights do not come with, is trained.
    """

    def label(path):
        layer = None if path.endswith("mask_token") else _layer(path)
        return "trained" if layer is None or layer > blocks else "frozen"

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, functools.partial(map_paths, label))


def clip_leaves(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient of each leaf to a norm of at most `max_norm`: DINO's clipping."""

    def clip(g):
        return g * jnp.minimum(1.0, max_norm / jnp.maximum(norm(g), 1e-12))

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def clip_parts(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient of each network to a norm of at most `max_norm`: DINOv2's clipping.

    Each entry at the top of the parameters is a network. A leaf there, such as a mask token, belongs to the backbone.
    """

    def clip(updates, _):
        entries = map_paths(lambda path: path.partition("/")[0] if "/" in path else "backbone", updates)
        squares: dict[str, Any] = {}
        for entry, g in zip(jax.tree.leaves(entries), jax.tree.leaves(updates), strict=True):
            squares[entry] = squares.get(entry, 0.0) + jnp.sum(jnp.square(g))
        ratios = {entry: jnp.minimum(1.0, max_norm / jnp.maximum(jnp.sqrt(x), 1e-12)) for entry, x in squares.items()}
        return jax.tree.map(lambda entry, g: ratios[entry] * g, entries, updates)

    return optax.stateless(clip)


def start_after(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """`tx` that starts after `steps` steps: it does not see them, and moves nothing in them.

    PyTorch's optimizers treat parameters without a gradient in this way: they make the state when the first gradient
    comes.
    """

    def init(params):
        return jnp.zeros((), jnp.int32), tx.init(params)

    def update(updates, state, params=None):
        count, before = state
        updates, after = tx.update(updates, before, params)
        begun = count >= steps
        updates = jax.tree.map(lambda u: jnp.where(begun, u, jnp.zeros_like(u)), updates)
        return updates, (count + 1, jax.tree.map(lambda a, b: jnp.where(begun, a, b), after, before))

    return optax.GradientTransformation(init, update)


def scale_layers(layer_decay: float, depth: int) -> optax.GradientTransformation:
    """Multiplies the updates of a ViT's block i (from 0) by layer_decay ** (depth - i).

    The updates of the patch embedding, tokens and positions, which are before the blocks, are multiplied by
    layer_decay ** (depth + 1). All other updates stay, such as those of a decoder's blocks.

    Source: the code of BEiT (arXiv:2106.08254), MAE and DINOv2.
    """

    def scale(path):
        layer = _layer(path)
        return 1.0 if layer is None else layer_decay ** (depth + 1 - layer)

    return scale_paths(scale)


def _layer(path: str) -> int | None:
    """The layer of a leaf of a ViT: i + 1 in block i, 0 before the blocks, None after them and in other networks."""
    found = re.match(
        r"(?:(?:backbone|low_rank)/(?:.*/)?)?"
        r"(?:blocks_(\d+)|(?:patch_embed|pos_embed|cls_token|reg_token|norm_pre|mask_token))(?:/|$)",
        path,
    )
    if found is None:
        return None
    return int(found[1]) + 1 if found[1] else 0


def scale_paths(scale: Callable[[str], float]) -> optax.GradientTransformation:
    return scale_leaves(functools.partial(map_paths, scale))


def scale_leaves(scales: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Multiplies the updates by `scales(updates)`, a tree with a number for each leaf."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, scale: scale * u, updates, scales(updates)))
