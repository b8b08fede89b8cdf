"""iBOT."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax import losses, optim
from ssl_jax.losses.distillation import centered
from ssl_jax.methods import _common, _dino, _tokens
from ssl_jax.models.heads import DINOHead


@dataclasses.dataclass(frozen=True)
class IBOT:
    """DINO, whose student sees the large crops with patches masked, and tells the teacher's class of each of those.

    One head gives the classes of class tokens and of patches; each have their own center. The small crops are not
    masked, and have no part in the patches' loss. `config.mask` says which patches are masked: the authors' half of
    the images with a share of 0.1 to 0.5, in blocks.

    Source: Zhou et al. 2021, arXiv:2111.07832, section 3. The center of the patches is the mean over all of them,
    masked or not, as in the authors' code.
    """

    backbone: nn.Module
    run: _common.Run
    local_views: int = 10
    prototypes: int = 8192
    hidden: tuple[int, ...] = (2048, 2048)
    bottleneck: int = 256
    norm_last_layer: bool = True  # prototypes are unit vectors; False: times a trainable gain (ViT-S)
    patch_weight: float = 1.0  # of the patches' loss
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    warmup_teacher_temperature: float = 0.04
    patch_teacher_temperature: float = 0.07
    warmup_patch_teacher_temperature: float = 0.04
    warmup_temperature_epochs: int = 30
    center_decay: float = 0.9
    decay: float = 0.996
    freeze_epochs: int = 1  # of the prototypes

    views = property(_dino.views)
    masked: ClassVar[tuple[str, ...]] = _dino.GLOBAL
    chance_level: ClassVar[None] = None  # it depends on the share of images that have a mask

    def __post_init__(self):
        _tokens.check_vit(self)
        _dino.check(self)
        _common.check_positive(self, "patch_weight", "patch_teacher_temperature", "warmup_patch_teacher_temperature")
        for name in ("patch_teacher_temperature", "warmup_patch_teacher_temperature"):
            _dino.check_sharper(self, name)

    @property
    def networks(self) -> dict[str, nn.Module]:
        head = DINOHead(
            self.prototypes, hidden=self.hidden, bottleneck=self.bottleneck, trainable_gain=not self.norm_last_layer
        )
        return {"backbone": self.backbone, "head": head}

    @property
    def frozen_steps(self) -> dict[str, int]:
        return _dino.frozen_steps(self, "head/last")

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        teacher = _common.make_teacher(self.networks, params, batch_stats)
        params["mask_token"] = jnp.zeros(self.backbone.dim)
        return params, {
            "batch_stats": batch_stats,
            "teacher": teacher,
            "center": jnp.zeros(self.prototypes),
            "patch_center": jnp.zeros(self.prototypes),
            "step": jnp.zeros((), jnp.int32),
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        head = self.networks["head"]
        h, tokens, teacher_h, teacher_tokens = _dino.encode(self, params, state, batch, rng, axis_name)
        student, student_patches = (head.apply({"params": params["head"]}, x) for x in (h, tokens))
        teacher_head = {"params": state["teacher"]["params"]["head"]}
        teacher, teacher_patches = (head.apply(teacher_head, x) for x in (teacher_h, teacher_tokens))

        step, center, patch_center = state["step"], state["center"], state["patch_center"]
        temperature = _dino.temperature(self, self.warmup_teacher_temperature, self.teacher_temperature, step)
        class_loss = losses.dino(
            student,
            teacher,
            center,
            student_temperature=self.student_temperature,
            teacher_temperature=temperature,
            axis_name=axis_name,
        )
        patch_temperature = _dino.temperature(
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
        patch_loss = sum(of_views) / len(of_views)
        loss = class_loss + self.patch_weight * patch_loss
        metrics = {
            "loss": loss,
            "class_loss": class_loss,
            "patch_loss": patch_loss,
            "teacher_entropy": _dino.entropy(centered(teacher, center, temperature)),
            "embeddings": h[: len(_dino.GLOBAL)],
        }
        state = {
            **state,
            "center": _dino.move_center(center, teacher, self.center_decay, axis_name),
            "patch_center": _dino.move_center(patch_center, teacher_patches, self.center_decay, axis_name),
        }
        return loss, (state, metrics)

    def update(self, params: Any, state: Any, step: Any) -> Any:
        decay = optim.cosine(self.decay, 1.0, step, self.run.steps)
        teacher = _common.move_teacher(state["teacher"], params, decay)
        return {**state, "teacher": teacher, "step": jnp.asarray(step, jnp.int32)}

    backbone_variables = _common.teacher_backbone
    features = _common.features
