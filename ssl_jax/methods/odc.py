"""ODC: online deep clustering."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, POSITIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import banks, kmeans, memories, prototype_heads
from ssl_jax.models.heads import MLP, unit
from ssl_jax.ops import shards


@dataclasses.dataclass(frozen=True)
class ODC(Base):
    """Classifies images by labels that change with every step, one batch at a time, instead of clustering anew.

    The samples memory has a unit feature and a label of each image. The centroids memory has the mean feature of each
    cluster, which is shorter than 1. The nearest centroid of a feature is the one with the largest scalar product.

    After the loss, the features of the batch are averaged with their old ones, and take the label of the nearest
    centroid. Every `move_every` steps each centroid moves to the mean of its members. After every step, clusters with
    fewer than `min_size` members are emptied: their members go to the nearest of the other clusters. Then each emptied
    cluster gets one part of the cluster that is the largest at that time, which k-means divides in two. The weight of
    an image is 1 / sqrt(size of its cluster).

    The first labels come from one k-means of features of the untrained network. The authors pass all images through
    it first. Here the first `first_epochs` fill the memory, and until then the loss is 0. An image that was not seen by
    then is classified when it comes, as the centroid nearest to its current feature. An epoch has each image once; the
    authors draw its images with replacement.

    The memory has 1.3 GB for ImageNet, on every device. With `shard_state` each device keeps its own images' rows, and
    k-means is divided over the devices. The embeddings of the output are the batch's features and, as a second view,
    those of the memory.

    Source: Zhan et al. 2020, arXiv:2006.10645, section 3, and the authors' code (OpenSelfSup). Their head has a dropout
    of a half between its layers, and a BatchNorm without scale and offset. Here there is no dropout, and BatchNorm has
    both. They train the classifier without momentum, here it has the optimizer's. They keep the best of ten k-means for
    each division, here there is one.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (512, 256)
    clusters: Annotated[int, Range(2), "Number of clusters."] = 10_000
    momentum: Annotated[float, SHARE, "Weight of the new feature, where it is averaged with the old one."] = 0.5
    min_size: Annotated[int, COUNT, "Members that a cluster must have; smaller ones are emptied."] = 20
    move_every: Annotated[int, COUNT, "Steps from one move of the centroids to the next."] = 10
    first_epochs: Annotated[float, POSITIVE, "Epochs that fill the memory before the first labels."] = 1.0
    iterations: Annotated[int, COUNT, "Iterations of k-means, for the first labels and for dividing clusters."] = 20

    views = ("view",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clusters * self.min_size > self.schedule.num_images:
            raise ValueError(
                f"clusters={self.clusters} must be in 2..{self.schedule.num_images // self.min_size}, "
                f"so that {self.schedule.num_images} images can give each at least "
                f"min_size={self.min_size}"
            )

    @property
    def networks(self) -> toolkit.Networks:
        he_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        return {
            "backbone": self.backbone,
            "projector": MLP(self.projector, hidden_bias=True, output_bias=True, kernel_init=he_init),
            "classifier": MLP((self.clusters,), output_bias=True, kernel_init=nn.initializers.normal(0.01)),
        }

    @property
    def banks(self) -> Mapping[str, int]:
        return memories.named(self.schedule, "features", "labels")

    @property
    def chance_level(self) -> float:
        return math.log(self.clusters)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_centroids, rng_cluster = jax.random.split(rng, 3)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        dim, rows = self.projector[-1], memories.bank_rows(self.schedule.num_images)
        return params, {
            "batch_stats": batch_stats,
            # An image that was not seen has a row of zeros. Its first feature replaces the row.
            "features": jnp.zeros((rows, dim)),
            "labels": jnp.full(rows, -1, jnp.int32),
            "centroids": prototype_heads.create(rng_centroids, self.clusters, dim),
            "clustered": jnp.zeros((), bool),
            "rng": rng_cluster,
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        index, clustered, centroids = batch["index"], state["clustered"], state["centroids"]
        encoder = {name: self.networks[name] for name in ("backbone", "projector")}
        outputs, batch_stats = toolkit.forward(
            encoder, params, state["batch_stats"], batch["views"][0], axis_name=axis_name, rng=rng
        )
        z = nn.relu(outputs["projector"])  # the authors' head ends in one
        logits, _ = toolkit.train_apply(self.networks["classifier"], params["classifier"], {}, z, axis_name=axis_name)
        stored = banks.take(state["labels"], index)
        labels = jnp.where(clustered & (stored < 0), nearest(unit(z), centroids), stored)
        weights = lax.rsqrt(jnp.maximum(kmeans.sizes_of(state["labels"], self.clusters), 1).astype(jnp.float32))
        loss = losses.pseudo_label_cross_entropy(
            logits[None], labels, weights=weights, temperature=1.0, axis_name=axis_name
        )
        memory = memories.update_bank(state["features"], index, z, axis_name, momentum=1.0 - self.momentum)
        everywhere = memories.gather(index, axis_name)
        # A device that has no row of an image labels something else, and `put` drops it.
        rows = banks.own(memory).at[banks.places(memory, everywhere)].get(mode="clip")
        relabeled = jnp.where(clustered, nearest(rows, centroids), -1)
        state = {
            **state,
            "batch_stats": {**batch_stats, "classifier": state["batch_stats"]["classifier"]},
            "features": memory,
            "labels": banks.put(state["labels"], everywhere, relabeled),
        }
        return Output(loss, state, {}, embeddings=jnp.stack([unit(z), banks.take(memory, index)]))

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        entries = ("features", "labels", "centroids", "clustered")
        return shards.on_devices(self._changed, state, entries, step, state["rng"])

    def _changed(self, state: State, step: Int[Array, ""], rng: Key[Array, ""], *, axis_name: str | None) -> State:
        cluster, move, share_out = (
            functools.partial(function, axis_name=axis_name)
            for function in (self._cluster, self._move, self._share_out)
        )
        first = prototype_heads.steps_between(self.first_epochs, self.schedule.steps_per_epoch)
        state = lax.cond(step == first, cluster, lambda state, _: state, state, rng)
        is_time = (step > first) & (step % self.move_every == 0)
        state = lax.cond(is_time, move, lambda state: state, state)
        small = kmeans.sizes_of(state["labels"], self.clusters, axis_name) < self.min_size
        small = state["clustered"] & jnp.any(small)
        return lax.cond(small, share_out, lambda state, _: state, state, jax.random.fold_in(rng, step))

    def _cluster(self, state: State, rng: Key[Array, ""], *, axis_name: str | None) -> State:
        centroids, labels = kmeans.kmeans(
            rng,
            state["features"],
            self.clusters,
            iterations=self.iterations,
            spherical=False,
            valid=jnp.any(state["features"] != 0, axis=1),
            axis_name=axis_name,
        )
        state = {**state, "centroids": centroids, "labels": labels.astype(jnp.int32), "clustered": jnp.ones((), bool)}
        return self._move(state, axis_name=axis_name)

    def _move(self, state: State, *, axis_name: str | None = None) -> State:
        means, count = means_of(state["features"], state["labels"], self.clusters, axis_name)
        return {**state, "centroids": jnp.where(count[:, None] > 0, means, state["centroids"])}

    def _share_out(self, state: State, rng: Key[Array, ""], *, axis_name: str | None) -> State:
        """Empties small clusters into the others, and gives each a part of the largest one."""
        features = state["features"]
        small = kmeans.sizes_of(state["labels"], self.clusters, axis_name) < self.min_size
        order = jnp.argsort(~small)  # the small ones first
        number = jnp.sum(small)

        def merge(i: Int[Array, ""], labels: Int[Array, " rows"]) -> Int[Array, " rows"]:
            # A small cluster has fewer members than min_size. The other indices are out of bounds, and dropped.
            members = jnp.nonzero(labels == order[i], size=self.min_size, fill_value=len(labels))[0]
            likeness = jnp.matmul(
                features[jnp.minimum(members, len(labels) - 1)], state["centroids"].T, precision="highest"
            )
            target = jnp.argmax(jnp.where(small, -jnp.inf, likeness), axis=1)
            return labels.at[members].set(target.astype(labels.dtype), mode="drop")

        def divide(i: Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
            labels, centroids = carry
            largest = jnp.argmax(kmeans.sizes_of(labels, self.clusters, axis_name))
            members = labels == largest
            _, part = kmeans.kmeans(
                jax.random.fold_in(rng, i),
                features,
                2,
                iterations=self.iterations,
                spherical=False,
                valid=members,
                axis_name=axis_name,
            )
            # k-means cannot divide features that are all equal. Then every other one goes.
            alternate = jnp.where(members, count_up(members, axis_name) % 2, -1)
            part = jnp.where(jnp.all(kmeans.sizes_of(part, 2, axis_name) > 0), part, alternate)
            # Means, as for all other clusters. Longer vectors, of unit length, would attract members of other clusters.
            halves, _ = means_of(features, part, 2, axis_name)
            labels = jnp.where(part == 1, order[i].astype(labels.dtype), labels)
            return labels, centroids.at[largest].set(halves[0]).at[order[i]].set(halves[1])

        labels = lax.fori_loop(0, number, merge, state["labels"])
        labels, centroids = lax.fori_loop(0, number, divide, (labels, state["centroids"]))
        return {**state, "labels": labels, "centroids": centroids}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # For the memory, the features and each image's index are gathered.
        rows = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(passes=1, gathered=rows + toolkit.row_bytes(self.schedule.batch_size))


def count_up(where: Bool[Array, " rows"], axis_name: str | None) -> Int[Array, " rows"]:
    """How often `where` is True up to each row, of the rows of all devices in their order."""
    before: int | Array = 0
    if axis_name is not None:
        counts = ops.of_each_device(jnp.sum(where), axis_name)
        before = jnp.sum(jnp.where(jnp.arange(len(counts)) < lax.axis_index(axis_name), counts, 0))
    return before + jnp.cumsum(where)


def nearest(z: Float[Array, "batch dim"], centroids: Float[Array, "clusters dim"]) -> Int[Array, " batch"]:
    """For each row of z the centroid with the largest scalar product."""
    return jnp.argmax(prototype_heads.scores(lax.stop_gradient(z), centroids), axis=-1).astype(jnp.int32)


def means_of(
    features: Float[Array, "rows dim"], labels: Int[Array, " rows"], clusters: int, axis_name: str | None = None
) -> tuple[Float[Array, "{clusters} dim"], Int[Array, "{clusters}"]]:
    """(the mean of each cluster's features, 0 for an empty one; its size). Label -1 belongs to no cluster.

    axis_name: mapped axis that the rows are divided over.
    """
    weights = (labels >= 0).astype(jnp.float32)
    sums = jax.ops.segment_sum(features * weights[:, None], jnp.maximum(labels, 0), clusters)
    sums, count = ops.global_sum(sums, axis_name), kmeans.sizes_of(labels, clusters, axis_name)
    return sums / jnp.maximum(count, 1)[:, None], count
