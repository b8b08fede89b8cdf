"""What SwAV, DeepCluster-v2 and SeLa-v2 share: the views, the forward pass of crops of two sizes, and prototypes.

Source: Caron et al. 2020, arXiv:2006.09882, and the authors' code.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.methods import _common, _queue
from ssl_jax.models.heads import MLP, torch_init, unit


def views(local_views: int) -> tuple[str, ...]:
    """Two large crops, and small ones."""
    return _common.with_local(("global", "global"), local_views)


def networks(backbone: nn.Module, projector: tuple[int, ...]) -> dict[str, nn.Module]:
    """The backbone and the authors' projector."""
    mlp = MLP(projector, hidden_bias=True, output_bias=True, kernel_init=torch_init)
    return {"backbone": backbone, "projector": mlp}


def forward(
    networks: _common.Networks,
    params: _common.Variables,
    batch_stats: _common.Variables,
    views: Sequence[Float[Array, "batch _ _ channels"]],
    *,
    axis_name: str | None,
    rng: Key[Array, ""],
) -> tuple[Float[Array, "views batch dim"], _common.Variables]:
    """-> (the views' projections as unit vectors, new batch_stats).

    Crops of one size pass through the backbone as one batch, then all of them through the projector as one.
    """
    backbone, rest = ({name: networks[name] for name in names} for names in (("backbone",), ("projector",)))
    outputs, first_stats = _common.forward_views(
        backbone, params, _common.select(batch_stats, backbone), views, axis_name=axis_name, rng=rng, together=True
    )
    h = outputs["backbone"]
    outputs, last_stats = _common.forward(
        rest, params, _common.select(batch_stats, rest), h.reshape(-1, h.shape[-1]), axis_name=axis_name
    )
    return unit(outputs["projector"]).reshape(*h.shape[:2], -1), {**first_stats, **last_stats}


def create(rng: Key[Array, ""], count: int, dim: int) -> Float[Array, "count dim"]:
    """Prototypes in random directions."""
    return unit(jax.random.normal(rng, (count, dim)))


def scores(z: Float[Array, "*batch dim"], prototypes: Float[Array, "count dim"]) -> Float[Array, "*batch count"]:
    """Their cosines, both being unit vectors."""
    return jnp.matmul(z, prototypes.T, precision="highest")


def constrain(method: Any, params: Any) -> Any:
    """Prototypes as unit vectors: written `constrain = constrain` in a class that has params["prototypes"]."""
    return {**params, "prototypes": jax.tree.map(unit, params["prototypes"])}


def steps_between(epochs: float, steps_per_epoch: int) -> int:
    """Of what happens every so many epochs."""
    return max(1, round(epochs * steps_per_epoch))


def check_local_views(local_views: int) -> None:
    views(local_views)


# Of DeepCluster-v2 and SeLa-v2: several heads, and a memory of all images.


def create_heads(rng: Key[Array, ""], counts: Sequence[int], dim: int) -> list[Float[Array, "_ dim"]]:
    """Prototypes of each head."""
    return [create(key, count, dim) for key, count in zip(jax.random.split(rng, len(counts)), counts, strict=True)]


def create_memory(rng: Key[Array, ""], num_images: int, dim: int) -> dict[str, Array]:
    """A row of each image for each of the two large crops: {"rows": [2, num_images, dim], "seen": [num_images]}."""
    return {
        "rows": jnp.stack([_queue.create_bank(key, num_images, dim) for key in jax.random.split(rng)]),
        "seen": jnp.zeros(num_images, bool),
    }


def remember(
    memory: dict[str, Array], index: Int[Array, "batch"], z: Float[Array, "2 batch dim"], axis_name: str | None
) -> dict[str, Array]:
    """The memory with the rows of the images `index` of all devices replaced by `z`."""
    rows = [
        _queue.update_bank(bank, index, new, axis_name, momentum=0.0)
        for bank, new in zip(memory["rows"], z, strict=True)
    ]
    return {"rows": jnp.stack(rows), "seen": memory["seen"].at[_queue.gather(index, axis_name)].set(True)}


def classification(
    z: Float[Array, "views batch dim"],
    prototypes: Sequence[Float[Array, "_ dim"]],
    labels: Int[Array, "heads batch"],
    *,
    temperature: float,
    axis_name: str | None,
) -> Float[Array, ""]:
    """The mean over heads of the cross entropy of all crops with the image's label, -1 where it has none."""
    heads = [
        losses.pseudo_label_cross_entropy(scores(z, rows), label, temperature=temperature, axis_name=axis_name)
        for rows, label in zip(prototypes, labels, strict=True)
    ]
    return sum(heads[1:], heads[0]) / len(heads)


def check_heads(run: _common.Run, counts: Sequence[int]) -> None:
    """Raises: ValueError for no head, or a head with fewer than 2 prototypes or more than there are images."""
    if not counts:
        raise ValueError("prototypes must have a number for each head, got none")
    if not 2 <= min(counts) <= max(counts) <= run.num_images:
        raise ValueError(f"prototypes={tuple(counts)} must be from 2 to the number of images, {run.num_images}")
