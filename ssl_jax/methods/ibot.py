"""iBOT."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from ssl_jax.losses.distillation import centered
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import masking, self_distillation
from ssl_jax.models.heads import DINOHead


@dataclasses.dataclass(frozen=True)
class IBOT(Base):
    """DINO with masked patches: the student also predicts the teacher's class of each patch that is masked for it.

    The student sees the large crops with patches masked. One head gives the classes of class tokens and of patches, and
    each of the two has its own center. The small crops are not masked, and have no part in the patches' loss.
    `config.mask` says which patches are masked. The authors mask half of the images, with a share of 0.1 to 0.5, in
    blocks.

    Source: Zhou et al. 2021, arXiv:2111.07832, section 3. The center of the patches is the mean over all of them,
    masked or not, as in the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    local_views: Annotated[int, NOT_NEGATIVE, "Small crops of each image, beside the two large ones."] = 10
    prototypes: Annotated[int, COUNT, "Number of classes."] = 8192
    hidden: Annotated[tuple[int, ...], COUNT, "Widths of the head's hidden layers."] = (2048, 2048)
    bottleneck: Annotated[int, COUNT, "Width of the head's output, which is compared with the prototypes."] = 256
    norm_last_layer: Annotated[bool, "Prototypes are unit vectors. False: each has a trainable gain (ViT-S)."] = True
    patch_weight: Annotated[float, POSITIVE, "Weight of the patches' loss."] = 1.0
    student_temperature: Annotated[float, POSITIVE, "Softmax temperature of the student's scores."] = 0.1
    teacher_temperature: Annotated[
        float, POSITIVE, "Softmax temperature of the teacher's scores after the warm-up."
    ] = 0.07
    warmup_teacher_temperature: Annotated[float, POSITIVE, "The teacher's temperature at the start."] = 0.04
    patch_teacher_temperature: Annotated[float, POSITIVE, "As teacher_temperature, for patches."] = 0.07
    warmup_patch_teacher_temperature: Annotated[float, POSITIVE, "As warmup_teacher_temperature, for patches."] = 0.04
    warmup_temperature_epochs: Annotated[
        int, NOT_NEGATIVE, "Epochs in which the teacher's temperature goes from its first value to its last."
    ] = 30
    center_decay: Annotated[float, SHARE, "Decay of the running mean of the teacher's scores."] = 0.9
    decay: Annotated[float, SHARE, "The teacher's decay at the start; half a cosine takes it to 1."] = 0.996
    freeze_epochs: Annotated[int, NOT_NEGATIVE, "Epochs before the prototypes move."] = 1

    masked = self_distillation.GLOBAL
    # chance_level: not known, as it depends on the share of images that have a mask.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self)
        self_distillation.check_sharper(
            self,
            "warmup_teacher_temperature",
            "teacher_temperature",
            "patch_teacher_temperature",
            "warmup_patch_teacher_temperature",
        )

    @property
    def views(self) -> tuple[str, ...]:
        return self_distillation.views(self)

    @property
    def networks(self) -> toolkit.Networks:
        head = DINOHead(
            self.prototypes, hidden=self.hidden, bottleneck=self.bottleneck, trainable_gain=not self.norm_last_layer
        )
        return {"backbone": self.backbone, "head": head}

    @property
    def frozen_steps(self) -> Mapping[str, int]:
        return self_distillation.frozen_steps(self, "head/last")

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        teacher = toolkit.make_teacher(self.networks, params, batch_stats)
        params["mask_token"] = jnp.zeros(self.backbone.dim)
        return params, {
            "batch_stats": batch_stats,
            "teacher": teacher,
            "center": jnp.zeros(self.prototypes),
            "patch_center": jnp.zeros(self.prototypes),
            "step": jnp.zeros((), jnp.int32),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        head = self.networks["head"]
        h, tokens, teacher_h, teacher_tokens = self_distillation.encode(self, params, state, batch, rng, axis_name)

        def scores(
            params: Params, x: Float[Array, "views batch *positions dim"]
        ) -> Float[Array, "views batch *positions prototypes"]:
            of_head: Any = head.apply({"params": params["head"]}, x)
            return of_head

        student, student_patches = (scores(params, x) for x in (h, tokens))
        teacher, teacher_patches = (scores(state["teacher"]["params"], x) for x in (teacher_h, teacher_tokens))

        step, center, patch_center = state["step"], state["center"], state["patch_center"]
        temperature = self_distillation.temperature(
            self, self.warmup_teacher_temperature, self.teacher_temperature, step
        )
        class_loss = losses.dino(
            student,
            teacher,
            center,
            student_temperature=self.student_temperature,
            teacher_temperature=temperature,
            axis_name=axis_name,
        )
        patch_temperature = self_distillation.temperature(
            self, self.warmup_patch_teacher_temperature, self.patch_teacher_temperature, step
        )
        of_views = [
            losses.ibot(
                student_patches[view],
                teacher_patches[view],
                patch_center,
                mask,
                student_temperature=self.student_temperature,
                teacher_temperature=patch_temperature,
                axis_name=axis_name,
            )
            for view, mask in enumerate(batch["masks"])
        ]
        patch_loss = sum(of_views, start=jnp.zeros(())) / len(of_views)
        loss = class_loss + self.patch_weight * patch_loss
        metrics = {
            "class_loss": class_loss,
            "patch_loss": patch_loss,
            "teacher_entropy": self_distillation.entropy(centered(teacher, center, temperature)),
        }
        state = {
            **state,
            "center": self_distillation.move_center(center, teacher, self.center_decay, axis_name),
            "patch_center": self_distillation.move_center(patch_center, teacher_patches, self.center_decay, axis_name),
        }
        return Output(loss, state, metrics, embeddings=h[: len(self_distillation.GLOBAL)])

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        teacher = toolkit.move_teacher(state["teacher"], params, decay)
        return {**state, "teacher": teacher, "step": jnp.asarray(step, jnp.int32)}

    backbone_variables = toolkit.teacher_backbone

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The teacher's scores are summed over the devices for both centers.
        return Traffic(reduced=2 * 4 * self.prototypes)
