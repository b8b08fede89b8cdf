"""SimDINO."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import self_distillation
from ssl_jax.methods.toolkit.covariance import covariance_bytes
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class SimDINO(Base):
    """DINO without prototypes: every crop agrees with the teacher's other large crops, and the images take many bits.

    The coding rate of the large crops' embeddings keeps them from becoming equal. It takes the place of DINO's
    prototypes, centers, temperatures and frozen last layer. Crops of one size pass the backbone as one batch, and all
    crops pass the head as one batch. The optimizer must clip the gradient of each tensor by itself (clip_each=3.0) and
    let weight decay grow (final_weight_decay), as for DINO.

    The teacher's backbone is kept. Its BatchNorm, if it has any, runs on its own batches.

    Source: Wu et al. 2025, arXiv:2502.10385, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    local_views: Annotated[int, NOT_NEGATIVE, "Small crops of each image, beside the two large ones."] = 10
    hidden: Annotated[tuple[int, ...], COUNT, "Widths of the head's hidden layers."] = (2048, 2048)
    bottleneck: Annotated[int, COUNT, "Width of the head's output, which is compared."] = 256
    head_norm: Annotated[bool, "BatchNorm in the head."] = False
    eps: Annotated[float, POSITIVE, "Distortion that the coding rate allows."] = 0.05
    invariance: Annotated[float, POSITIVE, "Weight of the crops' cosines."] = 1.0
    smooth: Annotated[bool, "Takes the coding rate of the mean of the student's and the teacher's embeddings."] = True
    decay: Annotated[float, SHARE, "The teacher's decay at the start; half a cosine takes it to 1."] = 0.996

    @property
    def views(self) -> tuple[str, ...]:
        return toolkit.with_local(self_distillation.GLOBAL, self.local_views)

    @property
    def networks(self) -> toolkit.Networks:
        head = MLP(
            (*self.hidden, self.bottleneck),
            hidden_norm=self.head_norm,
            activation="gelu",
            hidden_bias=not self.head_norm,
            output_bias=True,
            kernel_init=nn.initializers.normal(0.02),
        )
        return {"backbone": self.backbone, "head": head}

    @property
    def chance_level(self) -> float:
        dim, rows = self.bottleneck, self.schedule.batch_size
        return -self.invariance - (dim + rows) / (dim * rows) * 0.5 * math.log(1.0 + dim / self.eps)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        teacher = toolkit.make_teacher(self.networks, params, batch_stats)
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (_, student, targets), state = self_distillation.forward(
            self.networks, params, state, batch["views"], rng, axis_name
        )
        loss = losses.simdino(
            student,
            targets,
            eps=self.eps,
            invariance=self.invariance,
            smooth=self.smooth,
            axis_name=axis_name,
        )
        return Output(loss, state, {}, embeddings=student[: len(self_distillation.GLOBAL)])

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    backbone_variables = toolkit.teacher_backbone

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Crops of one size pass together. Each large crop's second moment is a sum over the global batch. Where the
        # batch has fewer rows than dimensions, the rows are gathered in its place, and their gradient is scattered.
        passes, dim, batch_size = 2 if self.local_views else 1, self.bottleneck, self.schedule.batch_size
        if dim <= batch_size:
            return Traffic(passes=passes, teacher_passes=1, reduced=covariance_bytes(dim, times=2))
        rows = 2 * toolkit.row_bytes(batch_size, dim)
        return Traffic(passes=passes, teacher_passes=1, gathered=rows, scattered=rows)
