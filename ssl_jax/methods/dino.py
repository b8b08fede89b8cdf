"""DINO."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from ssl_jax.losses.distillation import centered
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import self_distillation
from ssl_jax.models.heads import DINOHead


@dataclasses.dataclass(frozen=True)
class DINO(Base):
    """From every crop, predicts the class that a slowly moving teacher gives the other large crops.

    The classes are prototypes of the head; no labels are used. Crops of one size pass the backbone as one batch, and
    all crops pass the head as one batch. The teacher's scores are centered by their running mean, so that no class
    takes all images. They are sharpened by a low temperature, so that the classes do not become equally likely. The
    optimizer must clip the gradient of each tensor by itself (clip_each=3.0) and let weight decay grow
    (final_weight_decay).

    The teacher's backbone is kept. Its BatchNorm, if it has any, runs on its own batches.

    Source: Caron et al. 2021, arXiv:2104.14294, section 3, algorithm 1, appendices C and D.
    """

    backbone: nn.Module
    schedule: Schedule
    local_views: Annotated[
        int, NOT_NEGATIVE, "Small crops of each image, beside the two large ones; 10 in the best runs."
    ] = 8
    prototypes: Annotated[int, COUNT, "Number of classes."] = 65_536
    hidden: Annotated[tuple[int, ...], COUNT, "Widths of the head's hidden layers."] = (2048, 2048)
    bottleneck: Annotated[int, COUNT, "Width of the head's output, which is compared with the prototypes."] = 256
    head_norm: Annotated[bool, "BatchNorm in the head."] = False
    norm_last_layer: Annotated[
        bool, "Prototypes are unit vectors. False: each has a trainable gain, which is better for ViT-S."
    ] = True
    student_temperature: Annotated[float, POSITIVE, "Softmax temperature of the student's scores."] = 0.1
    teacher_temperature: Annotated[
        float, POSITIVE, "Softmax temperature of the teacher's scores after the warm-up."
    ] = 0.04
    warmup_teacher_temperature: Annotated[float, POSITIVE, "The teacher's temperature at the start."] = 0.04
    warmup_temperature_epochs: Annotated[
        int, NOT_NEGATIVE, "Epochs in which the teacher's temperature goes from its first value to its last."
    ] = 0
    center_decay: Annotated[float, SHARE, "Decay of the running mean of the teacher's scores."] = 0.9
    decay: Annotated[
        float,
        SHARE,
        "The teacher's decay at the start; half a cosine takes it to 1. 0.9995 for batches of 256.",
    ] = 0.996
    freeze_epochs: Annotated[int, NOT_NEGATIVE, "Epochs before the prototypes move."] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self_distillation.check_sharper(self, "warmup_teacher_temperature", "teacher_temperature")

    @property
    def views(self) -> tuple[str, ...]:
        return self_distillation.views(self)

    @property
    def networks(self) -> toolkit.Networks:
        head = DINOHead(
            self.prototypes,
            hidden=self.hidden,
            bottleneck=self.bottleneck,
            batch_norm=self.head_norm,
            trainable_gain=not self.norm_last_layer,
        )
        return {"backbone": self.backbone, "head": head}

    @property
    def chance_level(self) -> float:
        return math.log(self.prototypes)

    @property
    def frozen_steps(self) -> Mapping[str, int]:
        return self_distillation.frozen_steps(self, "head/last")

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(self.networks, params, batch_stats),
            "center": jnp.zeros(self.prototypes),
            "step": jnp.zeros((), jnp.int32),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (h, student, scores), new = self_distillation.forward(
            self.networks, params, state, batch["views"], rng, axis_name
        )
        center = state["center"]
        temperature = self_distillation.temperature(
            self, self.warmup_teacher_temperature, self.teacher_temperature, state["step"]
        )
        loss = losses.dino(
            student,
            scores,
            center,
            student_temperature=self.student_temperature,
            teacher_temperature=temperature,
            axis_name=axis_name,
        )
        entropy = self_distillation.entropy(centered(scores, center, temperature))
        center = self_distillation.move_center(center, scores, self.center_decay, axis_name)
        state = {**new, "center": center, "step": state["step"]}
        return Output(loss, state, {"teacher_entropy": entropy}, embeddings=h[:2])

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        teacher = toolkit.move_teacher(state["teacher"], params, decay)
        return {**state, "teacher": teacher, "step": jnp.asarray(step, jnp.int32)}

    backbone_variables = toolkit.teacher_backbone

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Crops of one size pass together. The teacher's scores are summed over the devices for the center.
        return Traffic(passes=2 if self.local_views else 1, teacher_passes=1, reduced=4 * self.prototypes)
