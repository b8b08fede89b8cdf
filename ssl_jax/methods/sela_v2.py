"""SeLa-v2."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import banks, memories, prototype_heads, transport
from ssl_jax.ops import shards


@dataclasses.dataclass(frozen=True)
class SeLaV2(Base):
    """Classifies all crops of an image by a label. Labels share the whole data set out equally among the prototypes.

    This is SeLa with SwAV's networks, crops and optimizer. Optimal transport (toolkit/transport.py) gives the labels,
    from a memory that has a row of each image for each of the two large crops. The heads take these crops in turn. The
    prototypes of each head are parameters, and are scaled to unit vectors again after each step of the optimizer.

    The labels are made anew `relabelings` times in a run, at ever greater distances: after (i / (relabelings - 1))^2 of
    the steps, and never twice in a step. SeLa computes the outputs of all images anew for its labels. Here the memory
    has them from the last step that saw the image. An image that was not seen before a relabeling gets its label when
    it comes, from its large crop, with the weights of the last transport. In step 1, before the first relabeling, there
    are no labels, and the loss is 0.

    The memory has 1.3 GB for ImageNet, on every device. With `shard_state` each device keeps its own images' rows, and
    the transport is divided over the devices.

    Source: Asano et al. 2019, arXiv:1911.05371; v2: Caron et al. 2020, arXiv:2006.09882, appendix D, without code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 128)
    prototypes: Annotated[tuple[int, ...], Range(2), "Number of labels of each head."] = (3000, 3000, 3000)
    local_views: Annotated[int, NOT_NEGATIVE, "Small crops of each image, beside the two large ones."] = 6
    temperature: Annotated[float, POSITIVE, "Softmax temperature of the classification."] = 0.1
    strength: Annotated[
        float,
        POSITIVE,
        "SeLa's lambda: larger values keep labels closer to the predictions. 25 for ImageNet, 10 for CIFAR.",
    ] = 25.0
    iterations: Annotated[int, COUNT, "Iterations of the transport, at most."] = 50
    tolerance: Annotated[float, POSITIVE, "Change of the images' weights at which the transport stops."] = 0.1
    relabelings: Annotated[int, Range(2), "How often a run makes labels: in the first step, the last, and between."] = (
        100
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        prototype_heads.check_heads(self.schedule, self.prototypes)

    @property
    def views(self) -> tuple[str, ...]:
        return prototype_heads.views(self.local_views)

    @property
    def networks(self) -> toolkit.Networks:
        return prototype_heads.networks(self.backbone, self.projector)

    @property
    def banks(self) -> Mapping[str, int]:
        return memories.named(self.schedule, "memory", "labels")

    @property
    def chance_level(self) -> float:
        return sum(math.log(count) for count in self.prototypes) / len(self.prototypes)

    @property
    def _transport(self) -> dict[str, float]:
        return {"temperature": self.temperature, "strength": self.strength}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_prototypes, rng_memory = jax.random.split(rng, 3)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        params["prototypes"] = prototype_heads.create_heads(rng_prototypes, self.prototypes, self.projector[-1])
        return params, {
            "batch_stats": batch_stats,
            "memory": prototype_heads.create_memory(rng_memory, self.schedule.num_images, self.projector[-1]),
            "labels": jnp.full((len(self.prototypes), memories.bank_rows(self.schedule.num_images)), -1, jnp.int32),
            "log_r": [jnp.zeros(count) for count in self.prototypes],
            "labeled": jnp.zeros((), bool),  # whether labels were ever made
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        z, batch_stats = prototype_heads.forward(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng
        )
        prototypes = params["prototypes"]
        new = [
            transport.label(z[head % 2], rows, log_r, **self._transport)
            for head, (rows, log_r) in enumerate(zip(prototypes, state["log_r"], strict=True))
        ]
        stored = banks.take(state["labels"], batch["index"], axis=1)
        labels = jnp.where(state["labeled"] & (stored < 0), jnp.stack(new), stored)
        loss = prototype_heads.classification(z, prototypes, labels, temperature=self.temperature, axis_name=axis_name)
        memory = prototype_heads.remember(state["memory"], batch["index"], z[:2], axis_name)
        return Output(loss, {**state, "batch_stats": batch_stats, "memory": memory}, {}, embeddings=z[:2])

    def relabels(self, step: Int[Array, "*steps"]) -> Bool[Array, "*steps"]:
        """Whether labels are made anew after step number `step`, from 1 on."""
        return transport.is_time(step, self.relabelings, self.schedule.steps, 2)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return lax.cond(self.relabels(step), self._relabel, lambda _, state: state, params, state)

    def _relabel(self, params: Params, state: State) -> State:
        return shards.on_devices(self._labeled, state, ("memory", "labels", "log_r", "labeled"), params["prototypes"])

    def _labeled(self, state: State, prototypes: Sequence[Float[Array, "_ dim"]], *, axis_name: str | None) -> State:
        memory = state["memory"]

        def relabel(head: int | Int[Array, ""], rows: Float[Array, "count dim"]) -> tuple[Array, Array]:
            return transport.balanced_labels(
                memory["rows"][head % 2],
                rows,
                iterations=self.iterations,
                tolerance=self.tolerance,
                valid=memory["seen"],
                axis_name=axis_name,
                **self._transport,
            )

        labels, log_r = zip(*prototype_heads.of_heads(relabel, prototypes), strict=True)
        return {"memory": memory, "labels": jnp.stack(labels), "log_r": list(log_r), "labeled": jnp.ones((), bool)}

    def constrain(self, params: Params) -> Params:
        return prototype_heads.constrain(params)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return prototype_heads.memory_traffic(self.schedule, self.projector[-1], self.local_views)
