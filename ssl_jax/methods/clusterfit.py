"""ClusterFit."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Batch, Output, Params, State, Traffic
from ssl_jax.methods.toolkit import banks, kmeans, memories, teachers
from ssl_jax.models.heads import MLP, torch_init
from ssl_jax.ops import shards


@dataclasses.dataclass(frozen=True)
class ClusterFit(teachers.Taught):
    """Learns, from the start, the numbers of the clusters that the features of a trained backbone fall into.

    The trained backbone, the teacher, comes from a file. Before training, a pass over all images (`prepare`) collects
    its features of the views `whole`, as unit vectors. Euclidean k-means clusters them once; a cluster that becomes
    empty takes half of another's place. Then a network that knows nothing of the teacher classifies the views `view`.
    It has less of what the teacher learnt for its own task alone.

    An image that the pass has not seen has no label: the last images of an epoch may not fill a batch. The state keeps
    the features, 10 GB for ImageNet and a ResNet-50, on every device. With `shard_state` each device keeps its own
    images' rows, and k-means is divided over the devices. The teacher's weights are a constant of the state: no
    checkpoint has them.

    Source: Yan et al. 2019, arXiv:1912.03330, section 3, and VISSL's code, which is the authors'.
    """

    clusters: Annotated[int, Range(2), "Number of clusters. Fewer keep less of the teacher."] = 16_000
    iterations: Annotated[int, COUNT, "Iterations of k-means."] = 50

    views = ("view", "whole")

    def __post_init__(self) -> None:
        super().__post_init__()
        memories.check_clusters(self.schedule, self.clusters)

    @property
    def networks(self) -> toolkit.Networks:
        classifier = MLP((self.clusters,), output_bias=True, kernel_init=torch_init)
        return {"backbone": self.backbone, "classifier": classifier}

    @property
    def preparing_steps(self) -> int:
        return self.schedule.steps_per_epoch

    @property
    def banks(self) -> Mapping[str, int]:
        return memories.named(self.schedule, "features", "labels")

    @property
    def chance_level(self) -> float:
        return math.log(self.clusters)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_cluster = jax.random.split(rng)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            **self.constants,
            "features": memories.create_features(self.schedule.num_images, self.frozen.model.dim),
            "labels": jnp.full(memories.bank_rows(self.schedule.num_images), -1, jnp.int32),
            "rng": rng_cluster,
        }

    def prepare(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> tuple[State, Float[Array, "views batch dim"]]:
        images = self.frozen.sees(batch["views"][1], self.teacher_size)
        found: Any = self.frozen.model.apply(state["teacher"], images)
        h = ops.normalize(found)
        features = memories.keep_features(state["features"], batch["index"], h, axis_name)
        return {**state, "features": features}, h[None]

    def prepared(self, params: Params, state: State) -> State:
        return shards.on_devices(self._clustered, state, ("features", "labels"), state["rng"])

    def _clustered(self, state: State, rng: Key[Array, ""], *, axis_name: str | None) -> State:
        _, labels = kmeans.kmeans(
            rng,
            state["features"]["rows"],
            self.clusters,
            iterations=self.iterations,
            spherical=False,
            divide=True,
            valid=state["features"]["seen"],
            axis_name=axis_name,
        )
        return {**state, "labels": labels.astype(jnp.int32)}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward(
            self.networks, params, state["batch_stats"], batch["views"][0], axis_name=axis_name, rng=rng
        )
        logits, labels = outputs["classifier"], banks.take(state["labels"], batch["index"])
        loss = losses.classification(logits, labels, axis_name=axis_name)
        metrics = {"accuracy": toolkit.accuracy(logits, labels, axis_name)}
        return Output(loss, {**state, "batch_stats": batch_stats}, metrics, embeddings=outputs["backbone"][None])

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1)
