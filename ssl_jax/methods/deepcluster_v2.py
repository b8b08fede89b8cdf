"""DeepCluster-v2."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import banks, kmeans, memories, prototype_heads
from ssl_jax.ops import shards


@dataclasses.dataclass(frozen=True)
class DeepClusterV2(Base):
    """Classifies all crops of an image as the cluster that k-means put it into, from a memory of its projections.

    The memory has a row of each image for each of the two large crops, from the last step that saw the image. A pass
    over all images before training (`prepare`) fills it. After that pass, and every `cluster_every` epochs, each head
    clusters one of the two memories (they take turns) by spherical k-means, which starts from random rows. The
    centroids are the head's prototypes until the next clustering, and no gradient moves them. An image that the memory
    has not seen by then has no label: the last images of an epoch may not fill a batch.

    The memory has 1.3 GB for ImageNet, on every device. With `shard_state` each device keeps its own images' rows, and
    k-means is divided over the devices.

    Source: Caron et al. 2020, arXiv:2006.09882, appendix D, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 128)
    prototypes: Annotated[tuple[int, ...], Range(2), "Number of clusters of each head."] = (3000, 3000, 3000)
    local_views: Annotated[int, NOT_NEGATIVE, "Small crops of each image, beside the two large ones."] = 6
    temperature: Annotated[float, POSITIVE, "Softmax temperature of the classification."] = 0.1
    cluster_every: Annotated[float, POSITIVE, "Epochs from one clustering to the next."] = 1.0
    iterations: Annotated[int, COUNT, "Iterations of k-means."] = 10

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
    def preparing_steps(self) -> int:
        return self.schedule.steps_per_epoch

    @property
    def banks(self) -> Mapping[str, int]:
        return memories.named(self.schedule, "memory", "assignments")

    @property
    def chance_level(self) -> float:
        return sum(math.log(count) for count in self.prototypes) / len(self.prototypes)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_prototypes, rng_memory, rng_cluster = jax.random.split(rng, 4)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "memory": prototype_heads.create_memory(rng_memory, self.schedule.num_images, self.projector[-1]),
            "prototypes": prototype_heads.create_heads(rng_prototypes, self.prototypes, self.projector[-1]),
            "assignments": jnp.full(
                (len(self.prototypes), memories.bank_rows(self.schedule.num_images)), -1, jnp.int32
            ),
            "rng": rng_cluster,
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        z, batch_stats = prototype_heads.forward(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng
        )
        labels = banks.take(state["assignments"], batch["index"], axis=1)
        loss = prototype_heads.classification(
            z, state["prototypes"], labels, temperature=self.temperature, axis_name=axis_name
        )
        memory = prototype_heads.remember(state["memory"], batch["index"], z[:2], axis_name)
        return Output(loss, {**state, "batch_stats": batch_stats, "memory": memory}, {}, embeddings=z[:2])

    def prepare(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> tuple[State, Float[Array, "views batch dim"]]:
        z, batch_stats = prototype_heads.forward(
            self.networks, params, state["batch_stats"], batch["views"][:2], axis_name=axis_name, rng=rng
        )
        memory = prototype_heads.remember(state["memory"], batch["index"], z, axis_name)
        return {**state, "batch_stats": batch_stats, "memory": memory}, z

    def prepared(self, params: Params, state: State) -> State:
        return self._cluster(state, 0)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        every = prototype_heads.steps_between(self.cluster_every, self.schedule.steps_per_epoch)
        return lax.cond(step % every == 0, self._cluster, lambda state, _: state, state, step)

    def _cluster(self, state: State, step: int | Int[Array, ""]) -> State:
        entries = ("memory", "prototypes", "assignments")
        return shards.on_devices(self._clustered, state, entries, jax.random.fold_in(state["rng"], step))

    def _clustered(self, state: State, rng: Key[Array, ""], *, axis_name: str | None) -> State:
        memory = state["memory"]

        def cluster(head: int | Int[Array, ""], old: Float[Array, "count dim"]) -> tuple[Array, Array]:
            rows = memory["rows"][head % 2]
            return kmeans.kmeans(
                jax.random.fold_in(rng, head),
                rows,
                len(old),
                iterations=self.iterations,
                valid=memory["seen"],
                axis_name=axis_name,
            )

        prototypes, assignments = zip(*prototype_heads.of_heads(cluster, state["prototypes"]), strict=True)
        return {"memory": memory, "prototypes": list(prototypes), "assignments": jnp.stack(assignments)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return prototype_heads.memory_traffic(self.schedule, self.projector[-1], self.local_views)
