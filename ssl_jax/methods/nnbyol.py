"""NNBYOL."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import memories
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class NNBYOL(Base):
    """BYOL with another target: the past projection nearest to the teacher's projection of the other view.

    So a view predicts another image like it. The queue holds the teacher's projections of the first views of earlier
    batches. Heads, teacher and the decay's way from `decay` to 1 are BYOL's.

    Source: the neighbors are NNCLR's, Dwibedi et al. 2021, arXiv:2104.14548. solo-learn has them with BYOL's loss.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (4096, 256)
    predictor: Annotated[tuple[int, ...], COUNT, "Widths of the predictor's layers."] = (4096, 256)
    decay: Annotated[float, SHARE, "The teacher's decay at the start."] = 0.99
    queue_size: Annotated[
        int,
        COUNT,
        "Projections in the queue: a multiple of the batch size. One longer than the data set holds projections of the "
        "same image, too.",
    ] = 65_536

    views = ("view1", "view2")
    chance_level = 0.0  # the loss of equal embeddings: here it is complete collapse

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_predictor(self)
        toolkit.check_queue(self.schedule, self.queue_size, of_negatives=False)

    @property
    def teacher_networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": MLP(self.projector, hidden_bias=True)}

    @property
    def networks(self) -> toolkit.Networks:
        return {**self.teacher_networks, "predictor": MLP(self.predictor, hidden_bias=True)}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_queue = jax.random.split(rng)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(self.teacher_networks, params, batch_stats),
            "queue": memories.create(rng_queue, self.queue_size, self.projector[-1]),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        online, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = toolkit.forward_teacher(
            self.teacher_networks, state["teacher"], batch["views"], axis_name=axis_name, together=False
        )
        (p1, p2), (t1, t2) = online["predictor"], targets["projector"]
        near1, near2 = (memories.nearest(t, state["queue"]["rows"]) for t in (t1, t2))
        cosine = losses.negative_cosine(p1, near2, axis_name=axis_name)
        cosine += losses.negative_cosine(p2, near1, axis_name=axis_name)
        loss = 4.0 + 2.0 * cosine  # BYOL's 2 - 2cos each way
        queue = memories.push(state["queue"], t1, axis_name)
        state = {"batch_stats": batch_stats, "teacher": teacher, "queue": queue}
        return Output(loss, state, {}, embeddings=online["projector"])

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The teacher's projections of the first view are gathered for the queue.
        rows = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(passes=2, teacher_passes=2, gathered=rows)
