"""PCL: prototypical contrastive learning."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.methods import _common, _kmeans, _prototypes, _queue
from ssl_jax.models.heads import moco_head, unit


@dataclasses.dataclass(frozen=True)
class PCL:
    """MoCo v2, whose queries also find the prototypes of the clusters that their image is in.

    A memory has each image's key, as the last step that saw it left it. After `warmup_epochs` of InfoNCE alone, k-means
    clusters it every `cluster_every` epochs, into each of the numbers of `clusters`; the prototypes are the centroids
    as unit vectors. Each prototype has a concentration of its own as temperature, small where its cluster is dense and
    large. An image that was not seen before the clustering takes the prototype nearest to its key.

    The authors compute all images' keys anew for each clustering, without augmentation; the memory saves that pass.
    k-means is Euclidean, as in their code, the best of `restarts`. All of the memory is on every device, 0.7 GB for
    ImageNet, and every device runs all of the k-means, in blocks of images.

    BatchNorm and `shuffle`: see MoCo v2. v1's head is one linear layer, projector=(128,).

    Source: Li et al. 2020, arXiv:2005.04966, section 3 and algorithm 1, and the authors' code.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 128)
    clusters: tuple[int, ...] = (25_000, 50_000, 100_000)
    negatives: int = 16_384  # prototypes beside those of the batch, at most all others
    temperature: float = 0.2
    decay: float = 0.999
    queue_size: int = 16_384
    warmup_epochs: float = 20.0
    cluster_every: float = 1.0  # epochs
    iterations: int = 20  # of k-means
    restarts: int = 5
    shuffle: bool = True

    views: ClassVar[tuple[str, ...]] = ("view", "view")

    def __post_init__(self):
        _common.check_positive(
            self, "temperature", "queue_size", "negatives", "cluster_every", "iterations", "restarts"
        )
        _common.check_share(self, "decay")
        _common.check_queue(self.run, self.queue_size)
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must be at least 0, got {self.warmup_epochs}")
        if not self.clusters or not 2 <= min(self.clusters) <= max(self.clusters) <= self.run.num_images:
            raise ValueError(
                f"clusters={self.clusters} must be one or more numbers from 2 to the number of images, "
                f"{self.run.num_images}"
            )

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": moco_head(self.projector)}

    @property
    def chance_level(self) -> float:
        """After the warm-up: all images are in one cluster then."""
        candidates = [self.run.batch_size + min(self.negatives, count - 1) for count in self.clusters]
        return math.log(1 + self.queue_size) + sum(math.log(n) for n in candidates) / len(candidates)

    def init(self, rng, images):
        rng_networks, rng_queue, rng_memory, rng_prototypes, rng_cluster = jax.random.split(rng, 5)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        dim = self.projector[-1]
        return params, {
            "batch_stats": batch_stats,
            "teacher": _common.make_teacher(self.networks, params, batch_stats),
            "queue": _queue.create(rng_queue, self.queue_size, dim),
            "memory": {
                "rows": _queue.create_bank(rng_memory, self.run.num_images, dim),
                "seen": jnp.zeros(self.run.num_images, bool),
            },
            "prototypes": _prototypes.create_heads(rng_prototypes, self.clusters, dim),
            "concentrations": [jnp.full(count, self.temperature) for count in self.clusters],
            "assignments": jnp.full((len(self.clusters), self.run.num_images), -1, jnp.int32),
            "clustered": jnp.zeros((), bool),  # whether it ever was
            "rng": rng_cluster,
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        x1, x2 = batch["views"]
        rng_networks, rng_negatives = jax.random.split(rng)
        online, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], [x1], axis_name=axis_name, rng=rng_networks, together=False
        )
        targets, teacher = _common.forward_teacher(
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

        memory, all_index = state["memory"], index
        if axis_name is not None:
            all_index = lax.all_gather(index, axis_name, tiled=True, to="invarying")
        state = {
            **state,
            "batch_stats": batch_stats,
            "teacher": teacher,
            "queue": _queue.push(queue, k, axis_name),
            "memory": {
                "rows": _queue.update_bank(memory["rows"], index, k, axis_name, momentum=0.0),
                "seen": memory["seen"].at[all_index].set(True),
            },
        }
        metrics = {"loss": loss, "instances": instances, "prototypes": prototypes, "embeddings": jnp.stack([q, k])}
        return loss, (state, metrics)

    def _prototype_loss(self, q, k, state, index, rng, axis_name):
        """The mean over the clusterings."""
        terms = []
        for number, rows in enumerate(state["prototypes"]):
            stored = state["assignments"][number, index]
            assigned = jnp.where(stored < 0, jnp.argmax(_prototypes.scores(k, rows), axis=-1), stored)
            own = assigned if axis_name is None else lax.all_gather(assigned, axis_name, tiled=True)
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
        return sum(terms) / len(terms)

    def update(self, params: Any, state: Any, step: Any) -> Any:
        every = _prototypes.steps_between(self.cluster_every, self.run.steps_per_epoch)
        warm = step >= round(self.warmup_epochs * self.run.steps_per_epoch)
        state = lax.cond(warm & (step % every == 0), self._cluster, lambda state, _: state, state, step)
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, self.decay)}

    def _cluster(self, state, step):
        rng = jax.random.fold_in(state["rng"], step)
        clusterings = [
            self._one_clustering(jax.random.fold_in(rng, number), state["memory"], count)
            for number, count in enumerate(self.clusters)
        ]
        prototypes, concentrations, assignments = zip(*clusterings, strict=True)
        return {
            **state,
            "prototypes": list(prototypes),
            "concentrations": list(concentrations),
            "assignments": jnp.stack(assignments),
            "clustered": jnp.ones((), bool),
        }

    def _one_clustering(self, rng, memory, count):
        rows, seen = memory["rows"], memory["seen"]

        def cluster(key):
            centroids, assignments = _kmeans.kmeans(
                key, rows, count, iterations=self.iterations, spherical=False, valid=seen
            )
            distances = jnp.where(seen, jnp.linalg.norm(rows - centroids[assignments], axis=1), 0.0)
            return centroids, assignments, distances

        def keep_better(best, key):
            new = cluster(key)
            better = jnp.sum(new[2] ** 2) < jnp.sum(best[2] ** 2)
            return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best), None

        first, *others = jax.random.split(rng, self.restarts)
        best = cluster(first)
        if others:
            best, _ = lax.scan(keep_better, best, jnp.stack(others))
        centroids, assignments, distances = best
        concentrations = concentration(distances, assignments, count, self.temperature)
        return unit(centroids), concentrations, assignments

    backbone_variables = _common.online_backbone
    features = _common.features


def concentration(
    distances: Float[Array, "points"], assignments: Int[Array, "points"], count: int, temperature: float
) -> Float[Array, "count"]:
    """Of each cluster: the mean distance of its points to the centroid, divided by log(points + 10).

    A cluster of one point or none gets the largest of the others; all are clipped to the 10th and 90th percentile, and
    scaled to the mean `temperature`. Points with assignment -1 do not count.

    Source: Li et al. 2020, arXiv:2005.04966, eq. 12, with what the authors' code adds to it.
    """
    here = assignments >= 0
    cluster = jnp.maximum(assignments, 0)
    sizes = jax.ops.segment_sum(here.astype(jnp.float32), cluster, count)
    sums = jax.ops.segment_sum(jnp.where(here, distances, 0.0), cluster, count)
    phi = jnp.where(sizes > 1, sums / jnp.maximum(sizes, 1.0) / jnp.log(sizes + 10.0), 0.0)
    phi = jnp.where(sizes > 1, phi, jnp.max(phi))
    phi = jnp.clip(phi, jnp.percentile(phi, 10), jnp.percentile(phi, 90))
    # Of distances of rounding size, where all embeddings have become equal, nothing is to be learnt.
    spread = jnp.mean(phi)
    return jnp.where(spread > 1e-6, temperature * phi / jnp.maximum(spread, 1e-6), temperature)


def draw_negatives(
    rng: Key[Array, ""], own: Int[Array, "global_batch"], count: int, negatives: int
) -> Int[Array, "negatives"]:
    """Different clusters at random, `negatives` or all; those of the batch come last, if at all."""
    order = jax.random.uniform(rng, (count,)).at[own].set(2.0)
    return jnp.argsort(order)[:negatives]
