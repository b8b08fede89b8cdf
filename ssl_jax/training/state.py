"""What a training step takes and changes, and what a checkpoint holds of it."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax.config.errors import ConfigError, require
from ssl_jax.methods.contract import Trainable


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes, and a method's constants. A checkpoint holds all but these. Counts are int32 scalars."""

    step: Any  # optimizer steps done, skipped ones included
    params: Any
    model_state: Any
    opt_state: Any
    rng: Any  # the key that each step folds its number into
    skipped: Any  # updates left out because the loss or a gradient was not finite
    skipped_in_a_row: Any


def create_state(method: Trainable, tx: optax.GradientTransformation, images: Any, seed: int) -> TrainState:
    """The state before the first step. `images`: [batch, height, width, channels] of the shape of a view."""
    rng_init, rng = jax.random.split(jax.random.key(seed))
    return begun(*method.init(rng_init, images), tx, rng)


def begun(params: Any, model_state: Any, tx: optax.GradientTransformation, rng: Any) -> TrainState:
    """The state before the first step, of what a method begins with."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        model_state=model_state,
        opt_state=tx.init(params),
        rng=rng,
        skipped=jnp.zeros_like(zero),
        skipped_in_a_row=jnp.zeros_like(zero),
    )


def with_backbone(state: TrainState, variables: Mapping[str, Any]) -> TrainState:
    """The state before the first step, with given weights for the backbone and for teachers' copies of it.

    Args:
      variables: {"params", "batch_stats"} of a backbone of the same architecture. Every method keeps those of ResNets
        and ViTs under the name "backbone".
    Raises: ConfigError for another architecture, and for a method that has no network named "backbone".
    """
    given = [variables["params"], variables.get("batch_stats", {})]
    places = 0

    def placed(tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        return {name: fitting(part) if name == "backbone" else placed(part) for name, part in tree.items()}

    def fitting(part: Any) -> Any:
        nonlocal places
        places += 1
        for candidate in given:
            if jax.tree.map(jnp.shape, candidate) == jax.tree.map(jnp.shape, part):
                # A copy for each place: a step donates its state's buffers.
                return jax.tree.map(lambda x: jnp.array(x, copy=True), candidate)
        raise ConfigError(
            "the weights to begin with have another architecture than the method's "
            "backbone; give weights of the same architecture"
        )

    state = state.replace(params=placed(state.params), model_state=placed(state.model_state))
    require(places, "this method has no network to begin with given weights; leave config.begin empty")
    return state


def without_constants(state: TrainState, constants: Collection[str]) -> TrainState:
    """The state without these entries of its model state: what a checkpoint holds."""
    kept = {name: part for name, part in state.model_state.items() if name not in constants}
    return state.replace(model_state=kept)


def with_constants(state: TrainState, constants: Mapping[str, Any]) -> TrainState:
    """The state of a checkpoint, with these entries of the model state, which no checkpoint holds."""
    return state.replace(model_state={**state.model_state, **constants})


def digest(tree: Any) -> str:
    """SHA-256 of a tree of arrays: of each leaf's path, type, shape and numbers."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        found.update(array.view(np.uint8).data if array.size else b"")
    return found.hexdigest()
