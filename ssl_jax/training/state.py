"""What a training step changes, and what a checkpoint holds."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax.methods.contract import Trainable


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes, and all that a checkpoint holds. The counts are int32 scalars."""

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
    params, model_state = method.init(rng_init, images)
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
    Raises: ValueError for another architecture.
    """
    given = [variables["params"], variables.get("batch_stats", {})]

    def placed(tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        return {name: fitting(part) if name == "backbone" else placed(part) for name, part in tree.items()}

    def fitting(part: Any) -> Any:
        for candidate in given:
            if jax.tree.map(jnp.shape, candidate) == jax.tree.map(jnp.shape, part):
                return jax.tree.map(np.array, candidate)  # a copy for each place: a step donates its state's buffers
        raise ValueError("the weights to begin with are of another architecture than the method's backbone")

    return state.replace(params=placed(state.params), model_state=placed(state.model_state))
