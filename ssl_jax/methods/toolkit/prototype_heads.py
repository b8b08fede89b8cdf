"""What SwAV, DeepCluster-v2 and SeLa-v2 share: the views, the forward pass of crops of two sizes, and prototypes.

Source: Caron et al. 2020, arXiv:2006.09882, and the authors' code.
"""

# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Params, Schedule, Traffic
from ssl_jax.methods.toolkit import banks, memories
from ssl_jax.methods.toolkit.banks import Bank
from ssl_jax.models.heads import MLP, torch_init, unit

# {"rows": [2, rows, dim], one for each of the two large crops; "seen": [rows]}
Memory = Mapping[str, Bank]


def views(local_views: int) -> tuple[str, ...]:
    """Two large crops, then the small ones."""
    return toolkit.with_local(("global", "global"), local_views)


def passes(local_views: int) -> int:
    """Passes of the student through BatchNorm: crops of one size pass together."""
    return 2 if local_views else 1


def networks(backbone: nn.Module, projector: tuple[int, ...]) -> toolkit.Networks:
    """The backbone and the authors' projector."""
    mlp = MLP(projector, hidden_bias=True, output_bias=True, kernel_init=torch_init)
    return {"backbone": backbone, "projector": mlp}


def forward(
    networks: toolkit.Networks,
    params: Params,
    batch_stats: toolkit.Variables,
    views: Sequence[Float[Array, "batch _ _ channels"]],
    *,
    axis_name: str | None,
    rng: Key[Array, ""],
) -> tuple[Float[Array, "views batch dim"], toolkit.Variables]:
    """-> (projections of the views as unit vectors, new batch_stats).

    Crops of one size pass through the backbone as one batch. Then all crops pass through the projector as one batch.
    """
    backbone, rest = ({name: networks[name] for name in names} for names in (("backbone",), ("projector",)))
    outputs, first_stats = toolkit.forward_views(
        backbone, params, toolkit.select(batch_stats, backbone), views, axis_name=axis_name, rng=rng, together=True
    )
    h = outputs["backbone"]
    outputs, last_stats = toolkit.forward(
        rest, params, toolkit.select(batch_stats, rest), h.reshape(-1, h.shape[-1]), axis_name=axis_name
    )
    return unit(outputs["projector"]).reshape(*h.shape[:2], -1), {**first_stats, **last_stats}


def create(rng: Key[Array, ""], count: int, dim: int) -> Float[Array, "count dim"]:
    """Prototypes in random directions."""
    return unit(jax.random.normal(rng, (count, dim)))


def scores(z: Float[Array, "*batch dim"], prototypes: Float[Array, "count dim"]) -> Float[Array, "*batch count"]:
    """Scalar products with the prototypes: cosines, where both are unit vectors."""
    return jnp.matmul(z, prototypes.T, precision="highest")


def constrain(params: Params) -> Params:
    """params["prototypes"], an array or several, scaled to unit vectors."""
    return {**params, "prototypes": jax.tree.map(unit, params["prototypes"])}


def steps_between(epochs: float, steps_per_epoch: int) -> int:
    """The number of steps in so many epochs, at least 1."""
    return max(1, round(epochs * steps_per_epoch))


# DeepCluster-v2 and SeLa-v2 have several heads, and a memory of all images.


def create_heads(rng: Key[Array, ""], counts: Sequence[int], dim: int) -> list[Float[Array, "_ dim"]]:
    """Prototypes of each head."""
    return [create(key, count, dim) for key, count in zip(jax.random.split(rng, len(counts)), counts, strict=True)]


def of_heads(
    one: Callable[..., tuple[Array, ...]], prototypes: Sequence[Float[Array, "_ dim"]]
) -> Sequence[tuple[Array, ...]]:
    """`one(number, its prototypes)` of each head.

    Heads with equally many prototypes are one loop, which compiles in the time of one head.
    """
    if len(prototypes) == 1 or len({rows.shape for rows in prototypes}) > 1:
        return [one(number, rows) for number, rows in enumerate(prototypes)]

    def of(head: tuple[Array, Array]) -> tuple[Array, ...]:
        return one(*head)

    found = cast(tuple[Array, ...], lax.map(of, (jnp.arange(len(prototypes)), jnp.stack(prototypes))))
    return [tuple(array[number] for array in found) for number in range(len(prototypes))]


def create_memory(rng: Key[Array, ""], num_images: int, dim: int) -> Memory:
    """A random row of each image for each of the two large crops, and no image seen.

    A large memory has a few rows more; see `memories.bank_rows`.
    """
    return {
        "rows": jnp.stack([memories.create_bank(key, num_images, dim) for key in jax.random.split(rng)]),
        "seen": jnp.zeros(memories.bank_rows(num_images), bool),
    }


def remember(
    memory: Memory, index: Int[Array, " batch"], z: Float[Array, "2 batch dim"], axis_name: str | None
) -> Memory:
    """The memory after `z` has replaced the rows of the images `index` of all devices."""
    halves = banks.split(memory["rows"])
    rows = [
        memories.update_bank(bank, index, new, axis_name, momentum=0.0) for bank, new in zip(halves, z, strict=True)
    ]
    seen = memories.mark_seen(memory["seen"], memories.gather(index, axis_name))
    return {"rows": banks.stack(rows), "seen": seen}


def classification(
    z: Float[Array, "views batch dim"],
    prototypes: Sequence[Float[Array, "_ dim"]],
    labels: Int[Array, "heads batch"],
    *,
    temperature: float,
    axis_name: str | None,
) -> Float[Array, ""]:
    """The mean over heads of the cross entropy of all crops with their image's label, -1 where it has none."""
    heads = [
        losses.pseudo_label_cross_entropy(scores(z, rows), label, temperature=temperature, axis_name=axis_name)
        for rows, label in zip(prototypes, labels, strict=True)
    ]
    return sum(heads[1:], heads[0]) / len(heads)


def check_heads(schedule: Schedule, counts: Sequence[int]) -> None:
    """Raises: ValueError for no head, or a head with fewer than 2 prototypes or more than there are images."""
    if not counts:
        raise ValueError("prototypes must have a number for each head, got none")
    if not 2 <= min(counts) <= max(counts) <= schedule.num_images:
        raise ValueError(f"prototypes={tuple(counts)} must be from 2 to the number of images, {schedule.num_images}")


def memory_traffic(schedule: Schedule, dim: int, local_views: int) -> Traffic:
    """Of a step of DeepCluster-v2 or SeLa-v2."""
    # For the memory, both large crops' projections and each image's index are gathered.
    rows, numbers = toolkit.row_bytes(schedule.batch_size, dim), toolkit.row_bytes(schedule.batch_size)
    return Traffic(passes=passes(local_views), gathered=2 * rows + numbers)
