"""PCL: prototypical contrastive learning."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import banks, kmeans, memories, prototype_heads
from ssl_jax.models.heads import moco_head, unit
from ssl_jax.ops import shards


@dataclasses.dataclass(frozen=True)
class PCL(Base):
    """MoCo v2 whose queries also find the prototypes of the clusters that their image is in.

    A memory has each image's key from the last step that saw the image. After `warmup_epochs` of InfoNCE alone, k-means
    clusters the memory every `cluster_every` epochs, once for each number in `clusters`. The prototypes are the
    centroids as unit vectors. The temperature of each prototype is its own concentration, which is small where its
    cluster is dense and large. An image that was not seen before the clustering takes the prototype nearest to its key.

    The authors compute all images' keys anew for each clustering, without augmentation. The memory saves that pass.
    k-means is Euclidean, as in their code, the best of `restarts`. The memory has 0.7 GB for ImageNet, on every device.
    With `shard_state` each device keeps its own images' rows, and k-means is divided over the devices.

    BatchNorm and `shuffle`: see MoCo v2.

    Source: Li et al. 2020, arXiv:2005.04966, section 3 and algorithm 1, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[
        tuple[int, ...], COUNT, "Widths of the projector's layers. (128,) is v1's, one linear layer."
    ] = (2048, 128)
    clusters: Annotated[tuple[int, ...], Range(2), "Number of clusters of each clustering."] = (25_000, 50_000, 100_000)
    negatives: Annotated[int, COUNT, "Prototypes beside those of the batch; at most all others are used."] = 16_384
    temperature: Annotated[float, POSITIVE, "Softmax temperature, and the mean of the concentrations."] = 0.2
    decay: Annotated[float, SHARE, "The teacher's decay."] = 0.999
    queue_size: Annotated[int, COUNT, "Keys in the queue: a multiple of the batch size."] = 16_384
    warmup_epochs: Annotated[float, NOT_NEGATIVE, "Epochs of InfoNCE alone, before the first clustering."] = 20.0
    cluster_every: Annotated[float, POSITIVE, "Epochs from one clustering to the next."] = 1.0
    iterations: Annotated[int, COUNT, "Iterations of k-means."] = 20
    restarts: Annotated[int, COUNT, "Runs of k-means for each clustering; the best is kept."] = 5
    shuffle: Annotated[bool, "Encodes the keys in a random order."] = True

    views = ("view", "view")

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_queue(self.schedule, self.queue_size)
        if not self.clusters or max(self.clusters) > self.schedule.num_images:
            raise ValueError(
                f"clusters={self.clusters} must be one or more numbers from 2 to the number of images, "
                f"{self.schedule.num_images}"
            )

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": moco_head(self.projector)}

    @property
    def banks(self) -> Mapping[str, int]:
        return memories.named(self.schedule, "memory", "assignments")

    @property
    def chance_level(self) -> float:
        """The loss of equal embeddings after the warm-up, with all images in one cluster."""
        candidates = [self.schedule.batch_size + min(self.negatives, count - 1) for count in self.clusters]
        return math.log(1 + self.queue_size) + sum(math.log(n) for n in candidates) / len(candidates)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_queue, rng_memory, rng_prototypes, rng_cluster = jax.random.split(rng, 5)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        dim = self.projector[-1]
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(self.networks, params, batch_stats),
            "queue": memories.create(rng_queue, self.queue_size, dim),
            "memory": {
                "rows": memories.create_bank(rng_memory, self.schedule.num_images, dim),
                "seen": jnp.zeros(memories.bank_rows(self.schedule.num_images), bool),
            },
            "prototypes": prototype_heads.create_heads(rng_prototypes, self.clusters, dim),
            "concentrations": [jnp.full(count, self.temperature) for count in self.clusters],
            "assignments": jnp.full((len(self.clusters), memories.bank_rows(self.schedule.num_images)), -1, jnp.int32),
            "clustered": jnp.zeros((), bool),  # whether there was a clustering
            "rng": rng_cluster,
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        x1, x2 = batch["views"]
        rng_networks, rng_negatives = jax.random.split(rng)
        online, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], [x1], axis_name=axis_name, rng=rng_networks, together=False
        )
        targets, teacher = toolkit.forward_teacher(
            self.networks,
            state["teacher"],
            [x2],
            axis_name=axis_name,
            together=False,
            shuffle=rng_networks if self.shuffle else None,
        )
        (q,), (k,), queue, index = online["projector"], targets["projector"], state["queue"], batch["index"]
        instances = losses.info_nce(q, k, queue=queue["rows"], temperature=self.temperature, axis_name=axis_name)
        prototypes = jnp.where(
            state["clustered"], self._prototype_loss(q, k, state, index, rng_negatives, axis_name), 0
        )
        loss = instances + prototypes

        memory = state["memory"]
        state = {
            **state,
            "batch_stats": batch_stats,
            "teacher": teacher,
            "queue": memories.push(queue, k, axis_name),
            "memory": {
                "rows": memories.update_bank(memory["rows"], index, k, axis_name, momentum=0.0),
                "seen": memories.mark_seen(memory["seen"], memories.gather(index, axis_name)),
            },
        }
        metrics = {"instances": instances, "prototypes": prototypes}
        return Output(loss, state, metrics, embeddings=jnp.stack([q, k]))

    def _prototype_loss(
        self,
        q: Float[Array, "batch dim"],
        k: Float[Array, "batch dim"],
        state: State,
        index: Int[Array, " batch"],
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> Float[Array, ""]:
        """The mean over the clusterings."""
        terms = []
        for number, (rows, stored) in enumerate(
            zip(state["prototypes"], banks.take(state["assignments"], index, axis=1), strict=True)
        ):
            assigned = jnp.where(stored < 0, jnp.argmax(prototype_heads.scores(k, rows), axis=-1), stored)
            own = ops.all_rows(assigned, axis_name)
            terms.append(
                losses.pcl_prototypes(
                    q,
                    rows,
                    state["concentrations"][number],
                    assigned,
                    draw_negatives(jax.random.fold_in(rng, number), own, len(rows), self.negatives),
                    axis_name=axis_name,
                )
            )
        return sum(terms, start=jnp.zeros(())) / len(terms)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        every = prototype_heads.steps_between(self.cluster_every, self.schedule.steps_per_epoch)
        warm = step >= round(self.warmup_epochs * self.schedule.steps_per_epoch)
        state = lax.cond(warm & (step % every == 0), self._cluster, lambda state, _: state, state, step)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, self.decay)}

    def _cluster(self, state: State, step: Int[Array, ""]) -> State:
        entries = ("memory", "prototypes", "concentrations", "assignments", "clustered")
        return shards.on_devices(self._clustered, state, entries, jax.random.fold_in(state["rng"], step))

    def _clustered(self, state: State, rng: Key[Array, ""], *, axis_name: str | None) -> State:
        clusterings = [
            self._one_clustering(jax.random.fold_in(rng, number), state["memory"], count, axis_name)
            for number, count in enumerate(self.clusters)
        ]
        prototypes, concentrations, assignments = zip(*clusterings, strict=True)
        return {
            "memory": state["memory"],
            "prototypes": list(prototypes),
            "concentrations": list(concentrations),
            "assignments": jnp.stack(assignments),
            "clustered": jnp.ones((), bool),
        }

    def _one_clustering(
        self, rng: Key[Array, ""], memory: Mapping[str, Array], count: int, axis_name: str | None = None
    ) -> tuple[Float[Array, "{count} dim"], Float[Array, "{count}"], Int[Array, " rows"]]:
        """(prototypes, their concentrations, each image's cluster)"""
        rows, seen = memory["rows"], memory["seen"]

        def cluster(key: Key[Array, ""]) -> tuple[Array, Array, Array]:
            """(centroids, each image's cluster, its distance to the centroid)"""
            centroids, assignments = kmeans.kmeans(
                key, rows, count, iterations=self.iterations, spherical=False, valid=seen, axis_name=axis_name
            )
            distances = jnp.where(seen, jnp.linalg.norm(rows - centroids[assignments], axis=1), 0.0)
            return centroids, assignments, distances

        def error(distances: Float[Array, " rows"]) -> Float[Array, ""]:
            return ops.global_sum(jnp.sum(distances**2), axis_name)

        def keep_better(best: tuple[Array, ...], key: Key[Array, ""]) -> tuple[tuple[Array, ...], None]:
            new = cluster(key)
            better = error(new[2]) < error(best[2])
            return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best), None

        first, *others = jax.random.split(rng, self.restarts)
        best = cluster(first)
        if others:
            best, _ = lax.scan(keep_better, best, jnp.stack(others))
        centroids, assignments, distances = best
        concentrations = concentration(distances, assignments, count, self.temperature, axis_name)
        return unit(centroids), concentrations, assignments

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The keys' images are gathered for the shuffle. The keys are gathered to be put back in order, and for the
        # queue and the memory; with them each image's index, and its cluster in each clustering.
        batch_size = self.schedule.batch_size
        images = toolkit.row_bytes(batch_size, math.prod(view))
        keys = toolkit.row_bytes(batch_size, self.projector[-1])
        numbers = (1 + len(self.clusters)) * toolkit.row_bytes(batch_size)
        return Traffic(
            passes=1,
            teacher_passes=1,
            grouped=True,
            gathered=(images + 2 * keys if self.shuffle else keys) + numbers,
            images=self.shuffle,
        )


def concentration(
    distances: Float[Array, " points"],
    assignments: Int[Array, " points"],
    count: int,
    temperature: float,
    axis_name: str | None = None,
) -> Float[Array, "{count}"]:
    """For each cluster: the mean distance of its points to the centroid, divided by log(points + 10).

    A cluster of one point or none gets the largest of the others. All are clipped to the 10th and 90th percentile, and
    scaled to the mean `temperature`. Points with assignment -1 do not count.
    axis_name: mapped axis that the points are divided over.

    Source: Li et al. 2020, arXiv:2005.04966, eq. 12, with what the authors' code adds to it.
    """
    here = assignments >= 0
    cluster = jnp.maximum(assignments, 0)
    size_and_sum = jnp.stack([here.astype(jnp.float32), jnp.where(here, distances, 0.0)], axis=1)
    sizes, sums = ops.global_sum(jax.ops.segment_sum(size_and_sum, cluster, count), axis_name).T
    phi = jnp.where(sizes > 1, sums / jnp.maximum(sizes, 1.0) / jnp.log(sizes + 10.0), 0.0)
    phi = jnp.where(sizes > 1, phi, jnp.max(phi))
    phi = jnp.clip(phi, jnp.percentile(phi, 10), jnp.percentile(phi, 90))
    # Where all embeddings have become equal, distances are rounding errors. They say nothing about density.
    spread = jnp.mean(phi)
    return jnp.where(spread > 1e-6, temperature * phi / jnp.maximum(spread, 1e-6), temperature)


def draw_negatives(
    rng: Key[Array, ""], own: Int[Array, " global_batch"], count: int, negatives: int
) -> Int[Array, " negatives"]:
    """Different clusters at random: `negatives` of them, or all if there are fewer. Those of the batch come last."""
    order = jax.random.uniform(rng, (count,)).at[own].set(2.0)
    return jnp.argsort(order)[:negatives]
