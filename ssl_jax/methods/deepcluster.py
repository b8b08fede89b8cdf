"""DeepCluster."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import banks, kmeans, memories, prototype_heads, whitening
from ssl_jax.models.heads import MLP
from ssl_jax.ops import shards


@dataclasses.dataclass(frozen=True)
class DeepCluster(Base):
    """Classifies images as the cluster that k-means of all features put them into, and clusters anew every epoch.

    The features of all images are reduced by PCA to `pca` directions of variance 1, and scaled to unit length. k-means
    is Euclidean and starts from random images. A cluster that becomes empty takes half of another's place. Clusters of
    two clusterings have nothing to do with each other, so the classifier starts anew after each.

    Without a remedy, all images in one cluster would be easiest to classify. The authors draw an epoch's images evenly
    from the clusters. Here an epoch has each image once, and an image has the weight 1 / size of its cluster, which the
    paper calls equivalent.

    The authors compute all features anew for each clustering, without augmentation. Here a memory has the features of
    each image from the last step that saw it. A pass over all images before training (`prepare`) fills it. An image
    that the memory has not seen has no label: the last images of an epoch may not fill a batch. The memory has
    10 GB for ImageNet and a ResNet-50, on every device. With `shard_state` each device keeps its own images' rows, and
    PCA and k-means are divided over the devices.

    The optimizer owns the parameters. So the classifier has the weights params["classifier"] - state["origin"], and a
    new start moves the origin.

    Source: Caron et al. 2018, arXiv:1807.05520, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    clusters: Annotated[int, Range(2), "Number of clusters."] = 10_000
    pca: Annotated[
        int,
        COUNT,
        "Directions that features are reduced to before k-means. A backbone with fewer features has them all.",
    ] = 256
    cluster_every: Annotated[float, POSITIVE, "Epochs from one clustering to the next."] = 1.0
    iterations: Annotated[int, COUNT, "Iterations of k-means."] = 20
    balance: Annotated[
        float,
        NOT_NEGATIVE,
        "An image's weight is 1 / size of its cluster to this power. 1: each cluster counts the same; 0: each image.",
    ] = 1.0

    views = ("view",)

    def __post_init__(self) -> None:
        super().__post_init__()
        memories.check_clusters(self.schedule, self.clusters)

    @property
    def networks(self) -> toolkit.Networks:
        classifier = MLP((self.clusters,), output_bias=True, kernel_init=nn.initializers.normal(0.01))
        return {"backbone": self.backbone, "classifier": classifier}

    @property
    def preparing_steps(self) -> int:
        return self.schedule.steps_per_epoch

    @property
    def banks(self) -> Mapping[str, int]:
        return memories.named(self.schedule, "memory", "labels")

    @property
    def chance_level(self) -> float:
        return math.log(self.clusters)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_cluster = jax.random.split(rng)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "memory": memories.create_features(self.schedule.num_images, self.backbone.dim),
            "labels": jnp.full(memories.bank_rows(self.schedule.num_images), -1, jnp.int32),
            "origin": jax.tree.map(jnp.zeros_like, params["classifier"]),
            "rng": rng_cluster,
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        params = {**params, "classifier": jax.tree.map(jnp.subtract, params["classifier"], state["origin"])}
        outputs, batch_stats = toolkit.forward(
            self.networks, params, state["batch_stats"], batch["views"][0], axis_name=axis_name, rng=rng
        )
        sizes = jnp.maximum(kmeans.sizes_of(state["labels"], self.clusters), 1).astype(jnp.float32)
        labels = banks.take(state["labels"], batch["index"])
        loss = losses.pseudo_label_cross_entropy(
            outputs["classifier"][None], labels, weights=sizes**-self.balance, temperature=1.0, axis_name=axis_name
        )
        metrics = {"accuracy": toolkit.accuracy(outputs["classifier"], labels, axis_name)}
        h = outputs["backbone"]
        memory = memories.keep_features(state["memory"], batch["index"], h, axis_name)
        return Output(loss, {**state, "batch_stats": batch_stats, "memory": memory}, metrics, embeddings=h[None])

    def prepare(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> tuple[State, Float[Array, "views batch dim"]]:
        output = self.loss(params, state, batch, rng, axis_name=axis_name)
        return output.state, output.embeddings

    def prepared(self, params: Params, state: State) -> State:
        return self._cluster(params, state, 0)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        every = prototype_heads.steps_between(self.cluster_every, self.schedule.steps_per_epoch)
        return lax.cond(step % every == 0, self._cluster, lambda _, state, step: state, params, state, step)

    def _cluster(self, params: Params, state: State, step: int | Int[Array, ""]) -> State:
        rng_cluster, rng_classifier = jax.random.split(jax.random.fold_in(state["rng"], step))
        new = self.networks["classifier"].init(rng_classifier, jnp.zeros((1, self.backbone.dim)))["params"]
        origin = jax.tree.map(jnp.subtract, params["classifier"], new)
        return {**shards.on_devices(self._clustered, state, ("memory", "labels"), rng_cluster), "origin": origin}

    def _clustered(self, state: State, rng: Key[Array, ""], *, axis_name: str | None) -> State:
        rows, seen = state["memory"]["rows"], state["memory"]["seen"]
        _, labels = kmeans.kmeans(
            rng,
            whitening.whitened(rows, min(self.pca, self.backbone.dim), valid=seen, axis_name=axis_name),
            self.clusters,
            iterations=self.iterations,
            spherical=False,
            divide=True,
            valid=seen,
            axis_name=axis_name,
        )
        return {**state, "labels": labels.astype(jnp.int32)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return memories.feature_traffic(self.schedule, self.backbone.dim)
