"""MMCR."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit.covariance import covariance_bytes
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class MMCR(Base):
    """Spreads the images' centroids in all directions, by the nuclear norm of their matrix.

    An image's centroid is the mean of its views' embeddings. It is longest where the views agree. The views take turns
    between two augmentations, and all pass as one batch. With `momentum`, half of each centroid are a slowly moving
    teacher's embeddings of the same views, as in the authors' later code.

    Source: Yerxa et al. 2023, arXiv:2303.03307, section 2. As in the authors' code, embeddings are normalized, and the
    nuclear norm of each image's own views has the weight 0.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (8192, 8192, 512)
    num_views: Annotated[int, Range(2), "Views of each image."] = 2
    weight: Annotated[float, NOT_NEGATIVE, "Weight of the nuclear norm of each image's views: the paper's lambda."] = (
        0.0
    )
    momentum: Annotated[bool, "Adds a teacher, whose embeddings are half of each centroid."] = False
    decay: Annotated[float, SHARE, "Decay of the teacher's weights."] = 0.99

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(("view1", "view2")[i % 2] for i in range(self.num_views))

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": MLP(self.projector, kernel_init=torch_init)}

    @property
    def chance_level(self) -> float:
        embeddings = self.num_views * (2 if self.momentum else 1)
        return self.weight * math.sqrt(embeddings) - math.sqrt(self.schedule.batch_size)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        state = {"batch_stats": batch_stats}
        if self.momentum:
            state["teacher"] = toolkit.make_teacher(self.networks, params, batch_stats)
        return params, state

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=True
        )
        state, targets = {**state, "batch_stats": batch_stats}, None
        if self.momentum:
            made, state["teacher"] = toolkit.forward_teacher(
                self.networks, state["teacher"], batch["views"], axis_name=axis_name, together=True
            )
            targets = jnp.moveaxis(made["projector"], 0, 1)
        z = outputs["projector"]
        loss = losses.mmcr(jnp.moveaxis(z, 0, 1), targets, weight=self.weight, axis_name=axis_name)
        return Output(loss, state, {}, embeddings=z)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        if not self.momentum:
            return state
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, self.decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The centroids' second moment is a sum over the global batch. Where the batch has fewer rows than dimensions,
        # the centroids are gathered in its place, and their gradient is scattered.
        dim, batch_size = self.projector[-1], self.schedule.batch_size
        fewer = batch_size < dim
        rows = toolkit.row_bytes(batch_size, dim) if fewer else 0
        return Traffic(
            passes=1,
            teacher_passes=int(self.momentum),
            reduced=0 if fewer else covariance_bytes(dim),
            gathered=rows,
            scattered=rows,
        )
