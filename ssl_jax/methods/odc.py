"""ODC: online deep clustering."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax import losses
from ssl_jax.methods import _common, _kmeans, _prototypes, _queue
from ssl_jax.models.heads import MLP, unit


@dataclasses.dataclass(frozen=True)
class ODC:
    """Classifies images by labels that change with every step, one batch at a time, instead of clustering anew.

    The samples memory has a unit feature and a label of each image, the centroids memory the mean feature of each
    cluster, which is shorter than 1. Images go to the centroid with the largest scalar product. After the loss, the
    features of the batch are averaged with their old ones and take the label of the nearest centroid; every
    `move_every` steps each centroid moves to the mean of its members. After every step, the members of clusters with
    fewer than `min_size` go to the nearest of the others, and each cluster so emptied gets one part of what is then the
    largest, split in two by k-means. Each image is weighted by 1 / sqrt(size of its cluster).

    The first labels are by one k-means, of the features of the untrained network, for which the authors pass all images
    through it. Here the first `first_epochs` fill the memory: until then the loss is 0. An image not seen by then is
    classified, when it comes, by the centroid nearest to its feature at hand. An epoch has each image once; the
    authors draw its images with replacement.

    All of the memory is on every device, 1.3 GB for ImageNet. The second of the metrics' embeddings is the memory's.

    Source: Zhan et al. 2020, arXiv:2006.10645, section 3, and the authors' code (OpenSelfSup), whose head has a dropout
    of a half between its layers and a BatchNorm without scale and offset; the dropout is left out here, and BatchNorm
    has both. Their classifier is trained without momentum, here with the optimizer's. They keep the best of ten k-means
    for each split, here there is one.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (512, 256)
    clusters: int = 10_000
    momentum: float = 0.5  # of the new feature
    min_size: int = 20
    move_every: int = 10  # steps
    first_epochs: float = 1.0
    iterations: int = 20  # of k-means, for the first labels and for splitting

    views: ClassVar[tuple[str, ...]] = ("view",)

    def __post_init__(self):
        _common.check_positive(self, "min_size", "move_every", "first_epochs", "iterations")
        _common.check_share(self, "momentum")
        if self.clusters < 2 or self.clusters * self.min_size > self.run.num_images:
            raise ValueError(
                f"clusters={self.clusters} must be from 2 to what {self.run.num_images} images fill with "
                f"min_size={self.min_size} each, {self.run.num_images // self.min_size}"
            )

    @property
    def networks(self) -> dict[str, nn.Module]:
        he_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        return {
            "backbone": self.backbone,
            "projector": MLP(self.projector, hidden_bias=True, output_bias=True, kernel_init=he_init),
            "classifier": MLP((self.clusters,), output_bias=True, kernel_init=nn.initializers.normal(0.01)),
        }

    @property
    def chance_level(self) -> float:
        return math.log(self.clusters)

    def init(self, rng, images):
        rng_networks, rng_centroids, rng_cluster = jax.random.split(rng, 3)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        dim = self.projector[-1]
        return params, {
            "batch_stats": batch_stats,
            # A row of zeros is of an image not seen, which its first feature replaces.
            "features": jnp.zeros((self.run.num_images, dim)),
            "labels": jnp.full(self.run.num_images, -1, jnp.int32),
            "centroids": _prototypes.create(rng_centroids, self.clusters, dim),
            "clustered": jnp.zeros((), bool),
            "rng": rng_cluster,
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        index, clustered, centroids = batch["index"], state["clustered"], state["centroids"]
        encoder = {name: self.networks[name] for name in ("backbone", "projector")}
        outputs, batch_stats = _common.forward(
            encoder, params, state["batch_stats"], batch["views"][0], axis_name=axis_name, rng=rng
        )
        z = nn.relu(outputs["projector"])  # the authors' head ends in one
        logits, _ = _common.train_apply(self.networks["classifier"], params["classifier"], {}, z, axis_name=axis_name)
        stored = state["labels"][index]
        labels = jnp.where(clustered & (stored < 0), nearest(unit(z), centroids), stored)
        weights = lax.rsqrt(jnp.maximum(sizes(state["labels"], self.clusters), 1).astype(jnp.float32))
        loss = losses.pseudo_label_cross_entropy(
            logits[None], labels, weights=weights, temperature=1.0, axis_name=axis_name
        )
        memory = _queue.update_bank(state["features"], index, z, axis_name, momentum=1.0 - self.momentum)
        everywhere = _queue.gather(index, axis_name)
        relabeled = jnp.where(clustered, nearest(memory[everywhere], centroids), -1)
        state = {
            **state,
            "batch_stats": {**batch_stats, "classifier": state["batch_stats"]["classifier"]},
            "features": memory,
            "labels": state["labels"].at[everywhere].set(relabeled),
        }
        return loss, (state, {"loss": loss, "embeddings": jnp.stack([unit(z), memory[index]])})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        first = _prototypes.steps_between(self.first_epochs, self.run.steps_per_epoch)
        state = lax.cond(step == first, self._cluster, lambda state: state, state)
        move = (step > first) & (step % self.move_every == 0)
        state = lax.cond(move, self._move, lambda state: state, state)
        small = state["clustered"] & jnp.any(sizes(state["labels"], self.clusters) < self.min_size)
        return lax.cond(small, self._share_out, lambda state, _: state, state, step)

    def _cluster(self, state):
        centroids, labels = _kmeans.kmeans(
            state["rng"],
            state["features"],
            self.clusters,
            iterations=self.iterations,
            spherical=False,
            valid=jnp.any(state["features"] != 0, axis=1),
        )
        labels = labels.astype(jnp.int32)
        return self._move({**state, "centroids": centroids, "labels": labels, "clustered": jnp.ones((), bool)})

    def _move(self, state):
        means, count = means_of(state["features"], state["labels"], self.clusters)
        return {**state, "centroids": jnp.where(count[:, None] > 0, means, state["centroids"])}

    def _share_out(self, state, step):
        """Small clusters are merged into others, and get their part of the largest ones."""
        features, rng = state["features"], jax.random.fold_in(state["rng"], step)
        small = sizes(state["labels"], self.clusters) < self.min_size
        order = jnp.argsort(~small)  # the small ones first
        number = jnp.sum(small)

        def merge(i, labels):
            # A small cluster has fewer members than min_size; what is missing is out of bounds, and dropped.
            members = jnp.nonzero(labels == order[i], size=self.min_size, fill_value=len(labels))[0]
            likeness = jnp.matmul(
                features[jnp.minimum(members, len(labels) - 1)], state["centroids"].T, precision="highest"
            )
            target = jnp.argmax(jnp.where(small, -jnp.inf, likeness), axis=1)
            return labels.at[members].set(target.astype(labels.dtype), mode="drop")

        def split(i, carry):
            labels, centroids = carry
            largest = jnp.argmax(sizes(labels, self.clusters))
            members = labels == largest
            _, part = _kmeans.kmeans(
                jax.random.fold_in(rng, i), features, 2, iterations=self.iterations, spherical=False, valid=members
            )
            # Features that are all equal cannot be told apart: every other one then.
            alternate = jnp.where(members, jnp.cumsum(members) % 2, -1)
            part = jnp.where(jnp.any(part == 1) & jnp.any(part == 0), part, alternate)
            # Means, as of all other clusters: unit vectors would draw the members of others to them.
            halves, _ = means_of(features, part, 2)
            labels = jnp.where(part == 1, order[i].astype(labels.dtype), labels)
            return labels, centroids.at[largest].set(halves[0]).at[order[i]].set(halves[1])

        labels = lax.fori_loop(0, number, merge, state["labels"])
        labels, centroids = lax.fori_loop(0, number, split, (labels, state["centroids"]))
        return {**state, "labels": labels, "centroids": centroids}

    backbone_variables = _common.online_backbone
    features = _common.features


def nearest(z: jax.Array, centroids: jax.Array) -> jax.Array:
    """The centroid with the largest scalar product with each row of z."""
    return jnp.argmax(_prototypes.scores(lax.stop_gradient(z), centroids), axis=-1).astype(jnp.int32)


def means_of(features: jax.Array, labels: jax.Array, clusters: int) -> tuple[jax.Array, jax.Array]:
    """(the mean of each cluster's features, 0 of an empty one; its size). A label of -1 is of none."""
    weights = (labels >= 0).astype(jnp.float32)
    sums = jax.ops.segment_sum(features * weights[:, None], jnp.maximum(labels, 0), clusters)
    count = sizes(labels, clusters)
    return sums / jnp.maximum(count, 1)[:, None], count


def sizes(labels: jax.Array, clusters: int) -> jax.Array:
    """Members of each cluster; a label of -1 is of none."""
    return jax.ops.segment_sum((labels >= 0).astype(jnp.int32), jnp.maximum(labels, 0), clusters)
