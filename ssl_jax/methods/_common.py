"""What the methods share: the facts of a run, and their networks, applied as in training.

A method's networks are a dict of modules in the order that data flow through them, {"backbone", "projector", ...}. Its
params and state["batch_stats"] have the same names; a teacher is a part of them that is kept in the state,
state["teacher"] = {"params": ..., "batch_stats": ...}.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Networks = Mapping[str, nn.Module]
Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """The facts of a run that schedules and chance levels depend on.

    batch_size: images a step over all devices. steps: optimizer steps of the whole run.
    steps_per_epoch, num_images, num_classes (0 without labels): of the data that it trains on.
    """

    batch_size: int
    steps: int
    steps_per_epoch: int
    num_images: int
    num_classes: int = 0


def init(networks: Networks, rng: Key[Array, ""], x: Any) -> tuple[Variables, Variables]:
    """`x` through the networks, one after the other -> (params, batch_stats), by name."""
    params, batch_stats = {}, {}
    for (name, module), rng_module in zip(networks.items(), jax.random.split(rng, len(networks)), strict=True):
        x, variables = module.init_with_output(rng_module, x)
        params[name], batch_stats[name] = variables["params"], variables.get("batch_stats", {})
    return params, batch_stats


def train_apply(
    module: nn.Module,
    params: Any,
    batch_stats: Any,
    *inputs: Any,
    axis_name: str | None,
    rng: Key[Array, ""] | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """`module` in training mode -> (its output, its new BatchNorm statistics). `rng`: of its dropout, if it has any."""
    output, updated = module.apply(
        {"params": params, "batch_stats": batch_stats},
        *inputs,
        train=True,
        axis_name=axis_name,
        mutable=["batch_stats"],
        rngs=None if rng is None else {"dropout": rng},
        **options,
    )
    return output, updated.get("batch_stats", {})


def forward(
    networks: Networks,
    params: Variables,
    batch_stats: Variables,
    x: Any,
    *,
    axis_name: str | None,
    rng: Key[Array, ""] | None = None,
) -> tuple[Variables, Variables]:
    """`x` through the networks in training mode -> ({name: its output}, new batch_stats)."""
    outputs, batch_stats = {}, dict(batch_stats)
    for name, module in networks.items():
        x, batch_stats[name] = train_apply(
            module, params[name], batch_stats[name], x, axis_name=axis_name, rng=rng
        )
        outputs[name] = x
    return outputs, batch_stats


def forward_views(
    networks: Networks,
    params: Variables,
    batch_stats: Variables,
    views: Sequence[Float[Array, "batch _ _ channels"]],
    *,
    axis_name: str | None,
    together: bool,
    rng: Key[Array, ""] | None = None,
) -> tuple[dict[str, Float[Array, "views batch ..."]], Variables]:
    """Each view through the networks -> ({name: [views, batch, ...]}, new batch_stats).

    `together`: neighboring views of one size pass as one batch, so that BatchNorm's statistics span them; else each
    view has its own.
    """
    groups = [list(group) for _, group in itertools.groupby(views, jnp.shape)] if together else [[v] for v in views]
    parts = []
    for number, group in enumerate(groups):
        rng_group = None if rng is None else jax.random.fold_in(rng, number)
        outputs, batch_stats = forward(
            networks, params, batch_stats, jnp.concatenate(group), axis_name=axis_name, rng=rng_group
        )
        parts.append({name: x.reshape(len(group), -1, *x.shape[1:]) for name, x in outputs.items()})
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts), batch_stats


def select(variables: Variables, networks: Networks) -> Variables:
    """The parts of `variables` that belong to `networks`."""
    return {name: variables[name] for name in networks}


def check_positive(method: Any, *names: str) -> None:
    """Raises: ValueError for the first of the method's fields `names` that is not above 0."""
    for name in names:
        if getattr(method, name) <= 0:
            raise ValueError(f"{name} must be above 0, got {getattr(method, name)}")


# Functions of methods that many have alike: written `features = features` in the class.


def features(method: Any, params: Any, state: Any, images: Any) -> Any:
    """h [batch, dim] of the backbone that is kept, in evaluation mode."""
    return method.backbone.apply(method.backbone_variables(params, state), images)


def online_backbone(method: Any, params: Any, state: Any) -> Variables:
    """Variables of the backbone that the optimizer trains."""
    return {"params": params["backbone"], "batch_stats": state["batch_stats"]["backbone"]}


def teacher_backbone(method: Any, params: Any, state: Any) -> Variables:
    """Variables of the teacher's backbone."""
    teacher = state["teacher"]
    return {"params": teacher["params"]["backbone"], "batch_stats": teacher["batch_stats"]["backbone"]}


def keep_state(method: Any, params: Any, state: Any, step: Any) -> Any:
    return state
