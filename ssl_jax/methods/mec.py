"""MEC."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit.covariance import covariance_bytes
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class MEC(Base):
    """Maximum entropy coding: a view's predictions agree with a teacher's projections of the other, and take many bits.

    The coding length is computed by the first terms of a series, which converges for embeddings that are spread out. So
    the distortion that it allows is `warmup_factor` times as large at first, and falls in a straight line over
    `warmup_epochs`. The teacher's decay goes from `decay` by half a cosine to 1. Each view passes by itself. Heads are
    SimSiam's.

    Source: Liu et al. 2022, arXiv:2210.11464, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 2048, 2048)
    predictor: Annotated[tuple[int, ...], COUNT, "Widths of the predictor's layers."] = (512, 2048)
    distortion: Annotated[
        float, POSITIVE, "Squared error that the code allows for an embedding, the paper's epsilon squared."
    ] = 64.0
    order: Annotated[int, COUNT, "Terms of the coding length's series."] = 4
    warmup_factor: Annotated[float, Range(1.0), "How many times as large the distortion is at the start."] = 8.0
    warmup_epochs: Annotated[int, NOT_NEGATIVE, "Epochs in which the distortion falls to its last value."] = 10
    decay: Annotated[float, SHARE, "The teacher's decay at the start."] = 0.996

    views = ("view1", "view2")

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_predictor(self)

    @property
    def teacher_networks(self) -> toolkit.Networks:
        return {
            "backbone": self.backbone,
            "projector": MLP(self.projector, output_norm="plain", kernel_init=torch_init),
        }

    @property
    def networks(self) -> toolkit.Networks:
        return {**self.teacher_networks, "predictor": MLP(self.predictor, output_bias=True, kernel_init=torch_init)}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(self.teacher_networks, params, batch_stats),
            "step": jnp.zeros((), jnp.int32),
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
        distortion = optim.linear(
            self.warmup_factor * self.distortion,
            self.distortion,
            state["step"],
            self.warmup_epochs * self.schedule.steps_per_epoch,
        )
        both = [
            losses.mec(p, t, distortion=distortion, order=self.order, axis_name=axis_name)
            for p, t in ((p1, t2), (p2, t1))
        ]
        state = {**state, "batch_stats": batch_stats, "teacher": teacher}
        return Output((both[0] + both[1]) / 2, state, {}, embeddings=online["projector"])

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        teacher = toolkit.move_teacher(state["teacher"], params, decay)
        return {**state, "teacher": teacher, "step": jnp.asarray(step, jnp.int32)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Each direction sums its cross-correlation over the global batch. Where the batch has fewer rows than
        # dimensions, both sides' rows are gathered in its place, and the predictions' gradient is scattered.
        dim, batch_size = self.projector[-1], self.schedule.batch_size
        if dim <= batch_size:
            return Traffic(passes=2, teacher_passes=2, reduced=covariance_bytes(dim, times=2))
        rows = toolkit.row_bytes(batch_size, dim)
        return Traffic(passes=2, teacher_passes=2, gathered=4 * rows, scattered=2 * rows)
