"""SMoG: synchronous momentum grouping."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import kmeans, memories
from ssl_jax.models.heads import MLP, torch_init, unit


@dataclasses.dataclass(frozen=True)
class SMoG(Base):
    """Predicts which group the teacher's view belongs to, among groups that move with the batch before the loss.

    The gradient flows to the predictions and, through the moves of the groups, to the projections. The two views take
    the student's place in turn, step by step. Every `reset_every` steps the groups become the centroids that spherical
    k-means finds among the last `queue_size` projections. Before the first reset the groups are random directions.

    The projections that move groups are unit vectors, so that they have the scale of the centroids. The student sees
    the small crops beside its large one. They predict the same group and move none. The loss is the mean over crops.

    Source: Pang et al. 2022, arXiv:2207.06167, section 3. Swaps, cache and resets are as in lightly, whose settings are
    not the paper's. There is no source for what the paper's small crops do to the groups.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 128)
    predictor: Annotated[tuple[int, ...], COUNT, "Widths of the predictor's layers."] = (2048, 128)
    groups: Annotated[int, Range(2), "Number of groups."] = 3000
    temperature: Annotated[float, POSITIVE, "Softmax temperature of the predictions."] = 0.1
    beta: Annotated[float, SHARE, "Momentum of the groups."] = 0.99
    decay: Annotated[float, SHARE, "The teacher's decay."] = 0.99
    queue_size: Annotated[int, COUNT, "Recent projections kept for k-means: a multiple of the batch size."] = 65_536
    reset_every: Annotated[int, COUNT, "Steps from one reset of the groups to the next."] = 300
    reset_teacher: Annotated[bool, "At each reset the teacher becomes a copy of the student (lightly's)."] = False
    iterations: Annotated[int, COUNT, "Iterations of k-means."] = 10
    local_views: Annotated[int, NOT_NEGATIVE, "Small crops of each image, which the student sees too."] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_predictor(self)
        toolkit.check_queue(self.schedule, self.queue_size, of_negatives=False)
        if self.groups > self.queue_size:
            raise ValueError(
                f"groups={self.groups} must be in 2..queue_size={self.queue_size}, because "
                "they begin as clusters of the queue"
            )
        most = self.reset_every * self.schedule.batch_size
        if self.queue_size > most:
            raise ValueError(
                f"queue_size={self.queue_size} is not filled by the {self.reset_every} batches of "
                f"{self.schedule.batch_size} before the first reset; use {most} or less"
            )

    @property
    def views(self) -> tuple[str, ...]:
        return toolkit.with_local(("view", "view"), self.local_views)

    @property
    def encoder(self) -> toolkit.Networks:
        """The networks that the teacher has, too."""
        projector = MLP(self.projector, output_norm="plain", kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    @property
    def networks(self) -> toolkit.Networks:
        return {**self.encoder, "predictor": MLP(self.predictor, output_bias=True, kernel_init=torch_init)}

    @property
    def chance_level(self) -> float:
        return math.log(self.groups)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_groups, rng_queue, rng_reset = jax.random.split(rng, 4)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        dim = self.projector[-1]
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(self.encoder, params, batch_stats),
            "groups": memories.directions(rng_groups, self.groups, dim),
            "queue": memories.create(rng_queue, self.queue_size, dim),
            "step": jnp.zeros((), jnp.int32),
            "rng": rng_reset,
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        x1, x2, *small = batch["views"]
        swap = state["step"] % 2 == 1
        x1, x2 = jnp.where(swap, x2, x1), jnp.where(swap, x1, x2)
        online, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], [x1, *small], axis_name=axis_name, rng=rng, together=True
        )
        targets, teacher = toolkit.forward_teacher(
            self.encoder, state["teacher"], [x2], axis_name=axis_name, together=False
        )
        z, (t,) = unit(online["projector"][0]), targets["projector"]
        terms, moved = zip(
            *(
                losses.smog(p, z, t, state["groups"], beta=self.beta, temperature=self.temperature, axis_name=axis_name)
                for p in online["predictor"]
            ),
            strict=True,
        )
        loss, groups = sum(terms, start=jnp.zeros(())) / len(terms), moved[0]
        state = {
            **state,
            "batch_stats": batch_stats,
            "teacher": teacher,
            "groups": groups,
            "queue": memories.push(state["queue"], z, axis_name),
        }
        return Output(loss, state, {}, embeddings=jnp.stack([z, unit(t)]))

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        reset = step % self.reset_every == 0
        groups = lax.cond(reset, self._cluster, lambda state, _: state["groups"], state, step)
        decay = jnp.where(reset, 0.0, self.decay) if self.reset_teacher else self.decay
        teacher = toolkit.move_teacher(state["teacher"], params, decay)
        return {**state, "teacher": teacher, "groups": groups, "step": jnp.asarray(step, jnp.int32)}

    def _cluster(self, state: State, step: Int[Array, ""]) -> Float[Array, "groups dim"]:
        rng = jax.random.fold_in(state["rng"], step)
        centroids, _ = kmeans.kmeans(rng, state["queue"]["rows"], self.groups, iterations=self.iterations)
        return centroids

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The loss of each of the student's crops sums the groups' members and their numbers over all devices, and so
        # does its gradient. The projections are gathered for the queue.
        dim, crops = self.projector[-1], 1 + self.local_views
        return Traffic(
            passes=min(crops, 2),
            teacher_passes=1,
            reduced=2 * 4 * crops * self.groups * (dim + 1),
            gathered=toolkit.row_bytes(self.schedule.batch_size, dim),
        )
