"""CoKe."""

import dataclasses
import functools
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
from ssl_jax.methods.toolkit import banks, memories, online_kmeans, prototype_heads
from ssl_jax.models.heads import MLP, torch_init, unit


@dataclasses.dataclass(frozen=True)
class CoKe(Base):
    """Classifies images as the cluster of an online k-means, in which each cluster keeps a least number of images.

    Each head clusters the projections as they come (toolkit/online_kmeans.py), so no pass over all images is needed. In
    every epoch an image is assigned to a cluster, by the mean of its views' projections. Its label in the next epoch is
    that cluster; the scores are those of the last epoch's centers C. An image that has no label yet gets it at once.

    With two views there are soft labels, too. With the projections p and their predictions q by another network, all
    unit vectors, the loss of a head is the mean over both views, and over s = p and s = q, of
      hard_share * CE(label, s C / temperature) + (1 - hard_share) * CE(softmax(p' C / temperature), s C / temperature),
    where p' is of the other view, without gradient. With one view there is the first term alone.

    Each view passes by itself. No parameter moves in the first `still_epochs`, while the clusters form.

    Source: Qian et al. 2022, arXiv:2105.11527, section 3, and the authors' code. Their second stage of a run with one
    view, in which an image's labels of several epochs are averaged, is not here.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 2048, 128)
    predictor: Annotated[tuple[int, ...], COUNT, "Widths of the predictor's layers."] = (2048, 128)
    clusters: Annotated[tuple[int, ...], Range(2), "Number of clusters of each head."] = (3000, 4000, 5000)
    num_views: Annotated[int, Range(1, 2), "Views of each image."] = 2
    temperature: Annotated[float, POSITIVE, "Softmax temperature. The authors have 0.1 for one view."] = 0.05
    hard_share: Annotated[float, SHARE, "With two views, weight of the cluster; the rest is of the other view."] = 0.2
    prediction_share: Annotated[float, SHARE, "Weight of the predictions' loss; the rest is of the projections'."] = 0.5
    bound: Annotated[
        float, SHARE, "Least size of a cluster over that of equal clusters. 0: no bound; 1: all are equal."
    ] = 0.4
    dual_rate: Annotated[float, POSITIVE, "Learning rate of the dual variables, which hold clusters to the bound."] = (
        20.0
    )
    still_epochs: Annotated[float, NOT_NEGATIVE, "Epochs at the start with a learning rate of 0."] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_predictor(self)
        if not self.clusters:
            raise ValueError("clusters must have a number for each head, got none")
        memories.check_clusters(self.schedule, max(self.clusters))

    @property
    def views(self) -> tuple[str, ...]:
        return ("view1", "view2")[: self.num_views]

    @property
    def networks(self) -> toolkit.Networks:
        mlp = functools.partial(MLP, hidden_bias=True, output_bias=True, kernel_init=torch_init)
        return {
            "backbone": self.backbone,
            "projector": mlp(self.projector, output_norm="full"),
            "predictor": mlp(self.predictor),
        }

    @property
    def banks(self) -> Mapping[str, int]:
        return memories.named(self.schedule, "labels")

    @property
    def chance_level(self) -> float:
        """The loss of scores that are equal for all clusters."""
        return sum(math.log(count) for count in self.clusters) / len(self.clusters)

    @property
    def still_steps(self) -> Mapping[str, int]:
        return {"": round(self.still_epochs * self.schedule.steps_per_epoch)}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, *rngs = jax.random.split(rng, 1 + len(self.clusters))
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        dim, rows = self.projector[-1], memories.bank_rows(self.schedule.num_images)
        return params, {
            "batch_stats": batch_stats,
            "heads": [online_kmeans.create(key, k, dim) for key, k in zip(rngs, self.clusters, strict=True)],
            "labels": jnp.full((len(self.clusters), rows), -1, jnp.int32),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        p, q = unit(outputs["projector"]), unit(outputs["predictor"])
        mine = batch["index"]
        rows, index = memories.gather(jnp.mean(p, axis=0), axis_name), memories.gather(mine, axis_name)
        found, heads, total = [], [], jnp.zeros(())
        for clusters, stored in zip(state["heads"], banks.take(state["labels"], mine, axis=1), strict=True):
            new = online_kmeans.assign(clusters, rows)  # of all devices' images
            of_mine = lax.dynamic_slice_in_dim(new, ops.first_row(mine, axis_name), len(mine))
            label = jnp.where(stored < 0, of_mine, stored)
            total += self._of_head(p, q, clusters["centers"], label, axis_name)
            found.append(new)
            heads.append(online_kmeans.move(clusters, rows, new, rate=self.dual_rate, bound=self.bound))
        labels = banks.put(state["labels"], index, jnp.stack(found), axis=1)
        state = {**state, "batch_stats": batch_stats, "heads": heads, "labels": labels}
        return Output(total / len(heads), state, {}, embeddings=p)

    def _of_head(
        self,
        p: Float[Array, "views batch dim"],
        q: Float[Array, "views batch dim"],
        centers: Float[Array, "k dim"],
        label: Int[Array, " batch"],
        axis_name: str | None,
    ) -> Float[Array, ""]:
        scores = prototype_heads.scores(p, centers)
        soft = ops.softmax(lax.stop_gradient(scores), self.temperature)

        def classified(scores: Float[Array, "views batch k"]) -> Float[Array, ""]:
            hard = losses.pseudo_label_cross_entropy(scores, label, temperature=self.temperature, axis_name=axis_name)
            if self.num_views == 1:
                return hard
            of_other = losses.cross_view(scores, soft, temperature=self.temperature, axis_name=axis_name)
            return self.hard_share * hard + (1.0 - self.hard_share) * of_other

        of_predictions, of_projections = classified(prototype_heads.scores(q, centers)), classified(scores)
        return self.prediction_share * of_predictions + (1.0 - self.prediction_share) * of_projections

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        end = step % self.schedule.steps_per_epoch == 0
        turned = [online_kmeans.next_epoch(clusters) for clusters in state["heads"]]
        return {**state, "heads": jax.tree.map(lambda new, old: jnp.where(end, new, old), turned, state["heads"])}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # For the clusters, the views' mean projections and each image's index are gathered.
        rows, numbers = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1]), self.schedule.batch_size
        return Traffic(passes=self.num_views, gathered=rows + toolkit.row_bytes(numbers))
