"""DeepCluster-v2."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.methods import _common, _kmeans, _prototypes


@dataclasses.dataclass(frozen=True)
class DeepClusterV2:
    """Classifies all crops of an image as the cluster that k-means put it into, from a memory of its projections.

    The memory has a row of each image for each of the two large crops, as the last step that saw the image left it; a
    pass over all images before training (`prepare`) fills it. Then, and every `cluster_every` epochs, each head
    clusters one of the two memories (they take turns) by spherical k-means, from random rows; the centroids are the
    head's prototypes until the next time, and no gradient moves them. An image that the memory did not have then, as it
    did not fill a batch at the end of an epoch, has no label.

    All of the memory is on every device, 1.3 GB for ImageNet, and every device runs the whole k-means, in blocks of
    images.

    Source: Caron et al. 2020, arXiv:2006.09882, appendix D, and the authors' code.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 128)
    prototypes: tuple[int, ...] = (3000, 3000, 3000)  # of each head
    local_views: int = 6
    temperature: float = 0.1
    cluster_every: float = 1.0  # epochs
    iterations: int = 10  # of k-means

    def __post_init__(self):
        _common.check_positive(self, "temperature", "cluster_every", "iterations")
        _prototypes.check_local_views(self.local_views)
        _prototypes.check_heads(self.run, self.prototypes)

    @property
    def views(self) -> tuple[str, ...]:
        return _prototypes.views(self.local_views)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return _prototypes.networks(self.backbone, self.projector)

    @property
    def chance_level(self) -> float:
        return sum(math.log(count) for count in self.prototypes) / len(self.prototypes)

    def init(self, rng, images):
        rng_networks, rng_prototypes, rng_memory, rng_cluster = jax.random.split(rng, 4)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "memory": _prototypes.create_memory(rng_memory, self.run.num_images, self.projector[-1]),
            "prototypes": _prototypes.create_heads(rng_prototypes, self.prototypes, self.projector[-1]),
            "assignments": jnp.full((len(self.prototypes), self.run.num_images), -1, jnp.int32),
            "rng": rng_cluster,
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        z, batch_stats = _prototypes.forward(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng
        )
        labels = state["assignments"][:, batch["index"]]
        loss = _prototypes.classification(
            z, state["prototypes"], labels, temperature=self.temperature, axis_name=axis_name
        )
        memory = _prototypes.remember(state["memory"], batch["index"], z[:2], axis_name)
        return loss, ({**state, "batch_stats": batch_stats, "memory": memory}, {"loss": loss, "embeddings": z[:2]})

    def prepare(self, params, state, batch, rng, *, axis_name=None):
        z, batch_stats = _prototypes.forward(
            self.networks, params, state["batch_stats"], batch["views"][:2], axis_name=axis_name, rng=rng
        )
        memory = _prototypes.remember(state["memory"], batch["index"], z, axis_name)
        return {**state, "batch_stats": batch_stats, "memory": memory}, z

    def prepared(self, params: Any, state: Any) -> Any:
        return self._cluster(state, 0)

    def update(self, params: Any, state: Any, step: Any) -> Any:
        every = _prototypes.steps_between(self.cluster_every, self.run.steps_per_epoch)
        return lax.cond(step % every == 0, self._cluster, lambda state, _: state, state, step)

    def _cluster(self, state, step):
        memory, rng = state["memory"], jax.random.fold_in(state["rng"], step)
        clusterings = [
            _kmeans.kmeans(
                jax.random.fold_in(rng, head),
                memory["rows"][head % 2],
                count,
                iterations=self.iterations,
                valid=memory["seen"],
            )
            for head, count in enumerate(self.prototypes)
        ]
        prototypes, assignments = zip(*clusterings, strict=True)
        return {**state, "prototypes": list(prototypes), "assignments": jnp.stack(assignments)}

    backbone_variables = _common.online_backbone
    features = _common.features
