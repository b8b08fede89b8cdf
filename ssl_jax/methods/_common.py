"""What the methods share: the facts of a run, and their networks, applied as in training.

A method's networks are a dict of modules in the order that data flow through them, {"backbone", "projector", ...}. Its
params and state["batch_stats"] have the same names; a teacher is a part of them that is kept in the state,
state["teacher"] = {"params": ..., "batch_stats": ...}.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, Num

from ssl_jax import optim
from ssl_jax.losses._common import mean_where, num_rows

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


def init_map(
    backbone: nn.Module, rng: Key[Array, ""], images: Any
) -> tuple[Variables, Variables, Float[Array, "batch height width dim"]]:
    """A backbone by the name "backbone" -> (params, batch_stats, its feature map of the images), for what is built on
    the map."""
    params, batch_stats = init({"backbone": backbone}, rng, images)
    variables = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
    return params, batch_stats, backbone.apply(variables, images, pool=False)


def forward_map(
    backbone: nn.Module,
    params: Variables,
    batch_stats: Variables,
    images: Any,
    *,
    axis_name: str | None,
    rng: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "batch height width dim"], Variables]:
    """The backbone in training mode -> (its feature map, batch_stats with its new ones)."""
    features, new = train_apply(
        backbone, params["backbone"], batch_stats["backbone"], images, axis_name=axis_name, rng=rng, pool=False
    )
    return features, {**batch_stats, "backbone": new}


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
        x, batch_stats[name] = train_apply(module, params[name], batch_stats[name], x, axis_name=axis_name, rng=rng)
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
        # An image's views side by side, so that the rows of all devices are those of one device, in its order: what
        # depends on a row's place (grouped BatchNorm, stochastic depth) is the same on any number of them.
        rows = jnp.stack(group, axis=1).reshape(-1, *group[0].shape[1:])
        outputs, batch_stats = forward(networks, params, batch_stats, rows, axis_name=axis_name, rng=rng_group)
        parts.append(jax.tree.map(lambda x: x.reshape(-1, len(group), *x.shape[1:]).swapaxes(0, 1), outputs))  # noqa: B023
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts), batch_stats


def with_local(views: Sequence[str], local_views: int) -> tuple[str, ...]:
    """Names of the views of multi-crop: the large ones, and `local_views` small ones that are made alike.

    Raises: ValueError for fewer than none.
    """
    if local_views < 0:
        raise ValueError(f"local_views must be at least 0, got {local_views}")
    return (*views, *("local",) * local_views)


def select(variables: Variables, names: Iterable[str]) -> Variables:
    """The parts of `variables` of these networks."""
    return {name: variables[name] for name in names}


def make_teacher(networks: Networks, params: Variables, batch_stats: Variables) -> Variables:
    """A copy of `networks` for the state, to be moved by `move_teacher`."""
    copy = jax.tree.map(jnp.copy, {"params": select(params, networks), "batch_stats": select(batch_stats, networks)})
    return copy


def forward_teacher(
    networks: Networks,
    teacher: Variables,
    views: Sequence[Float[Array, "batch _ _ channels"]],
    *,
    axis_name: str | None,
    together: bool,
    shuffle: Key[Array, ""] | None = None,
) -> tuple[dict[str, Float[Array, "views batch ..."]], Variables]:
    """As `forward_views`, without gradient -> (outputs, the teacher with new BatchNorm statistics).

    BatchNorm uses its batch's statistics, as in training; stochastic depth is off. `shuffle`: the rows of the global
    batch go through the networks in a random order, and are put back.
    """
    networks = {name: without_drop_path(module) for name, module in networks.items()}
    order = None
    if shuffle is not None:
        order = jax.random.permutation(shuffle, num_rows(views[0], axis_name))
        views = [take_rows(x, order, axis_name) for x in views]
    outputs, batch_stats = forward_views(
        networks, teacher["params"], teacher["batch_stats"], views, axis_name=axis_name, together=together
    )
    if order is not None:
        back = jnp.argsort(order)
        outputs = {name: jax.vmap(lambda x: take_rows(x, back, axis_name))(x) for name, x in outputs.items()}
    return lax.stop_gradient(outputs), {**teacher, "batch_stats": lax.stop_gradient(batch_stats)}


def move_teacher(teacher: Variables, params: Variables, decay: Any) -> Variables:
    """After the optimizer: the teacher's weights averaged with those that the next step starts from."""
    return {**teacher, "params": optim.ema(teacher["params"], select(params, teacher["params"]), decay)}


def neighbors(rows: Num[Array, "batch ..."]) -> Num[Array, "batch ..."]:
    """Rows 1, 0, 3, 2, ...: of each another image, on the same device, the same one on any number of devices.

    Raises: ValueError for an odd number of rows.
    """
    if len(rows) % 2:
        raise ValueError(
            f"this method pairs the images of a device, which has {len(rows)}; use an even number for each"
        )
    return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)


def accuracy(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], axis_name: str | None) -> Any:
    """The share of the rows with a label (not -1) whose largest logit is that of their class."""
    right = jnp.argmax(logits, axis=-1) == labels
    return mean_where(right.astype(jnp.float32), labels >= 0, axis_name)


def without_drop_path(module: nn.Module) -> nn.Module:
    return module.clone(drop_path=0.0) if hasattr(module, "drop_path") else module


def take_rows(x: Any, order: Any, axis_name: str | None) -> Any:
    """This device's share of the global batch's rows in the given order."""
    if axis_name is None:
        return x[order]
    mine = lax.dynamic_slice_in_dim(order, lax.axis_index(axis_name) * len(x), len(x))
    return lax.all_gather(x, axis_name, tiled=True)[mine]


def check_share(method: Any, *names: str) -> None:
    """Raises: ValueError for the first of the method's fields `names` that is not in 0..1."""
    for name in names:
        if not 0.0 <= getattr(method, name) <= 1.0:
            raise ValueError(f"{name} must be in 0..1, got {getattr(method, name)}")


def check_queue(run: Run, queue_size: int, name: str = "queue_size", *, of_negatives: bool = True) -> None:
    """Raises: ValueError for a queue that batches do not fill evenly, or, of negatives, longer than the data set."""
    if queue_size % run.batch_size:
        nearest = max(round(queue_size / run.batch_size), 1) * run.batch_size
        raise ValueError(f"{name}={queue_size} is no multiple of batch_size={run.batch_size}; use {nearest}")
    if of_negatives and queue_size > run.num_images:
        most = run.num_images // run.batch_size * run.batch_size
        raise ValueError(
            f"{name}={queue_size} is longer than the data set of {run.num_images} images, so that a key's own image "
            f"would be among its negatives; use {most} or less"
        )


def check_positive(method: Any, *names: str) -> None:
    """Raises: ValueError for the first of the method's fields `names` that is not above 0."""
    for name in names:
        if getattr(method, name) <= 0:
            raise ValueError(f"{name} must be above 0, got {getattr(method, name)}")


def check_predictor(method: Any) -> None:
    """Raises: ValueError for a predictor whose output is not as wide as the projector's, which it is to equal."""
    if method.predictor[-1] != method.projector[-1]:
        raise ValueError(
            f"predictor={method.predictor} ends in {method.predictor[-1]} dimensions, not in the projector's "
            f"{method.projector[-1]}; use {(*method.predictor[:-1], method.projector[-1])}"
        )


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
