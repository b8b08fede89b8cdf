"""BYOL."""

import dataclasses
from typing import Annotated

import flax.linen as nn
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class BYOL(Base):
    """Predicts, from one view, a slowly moving teacher's projection of the other.

    The teacher starts as a copy of the online network (the authors' code draws its own weights) and runs BatchNorm on
    its own batches, each view by itself. Its decay goes from `decay` by half a cosine to 1.

    Source: Grill et al. 2020, arXiv:2006.07733, section 3.1 and appendix F.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (4096, 256)
    predictor: Annotated[tuple[int, ...], COUNT, "Widths of the predictor's layers."] = (4096, 256)
    decay: Annotated[float, SHARE, "The teacher's decay at the start: 0.996 for 1000 epochs, 0.99 for 300 and 100."] = (
        0.996
    )

    views = ("view1", "view2")
    chance_level = 0.0  # the loss of equal embeddings: here it is complete collapse

    @property
    def teacher_networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": MLP(self.projector, hidden_bias=True)}

    @property
    def networks(self) -> toolkit.Networks:
        return {**self.teacher_networks, "predictor": MLP(self.predictor, hidden_bias=True)}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        teacher = toolkit.make_teacher(self.teacher_networks, params, batch_stats)
        return params, {"batch_stats": batch_stats, "teacher": teacher}

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
        cosine = losses.negative_cosine(p1, t2, axis_name=axis_name)
        cosine += losses.negative_cosine(p2, t1, axis_name=axis_name)
        loss = 4.0 + 2.0 * cosine  # the paper's 2 - 2cos each way
        state = {"batch_stats": batch_stats, "teacher": teacher}
        return Output(loss, state, {}, embeddings=online["projector"])

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=2, teacher_passes=2)
