"""DINO."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax import losses, optim
from ssl_jax.losses.distillation import centered
from ssl_jax.methods import _common, _dino
from ssl_jax.models.heads import DINOHead


@dataclasses.dataclass(frozen=True)
class DINO:
    """Every crop predicts the classes, nobody's labels, that a slowly moving teacher gives the other large crops.

    Crops of one size pass the backbone as one batch, the head as one batch all together. The teacher's scores are
    centered by their running mean and sharpened by a low temperature: one keeps a class from taking all images, the
    other the classes from becoming equally likely. Its decay goes from `decay` by half a cosine to 1. The optimizer is
    to clip the gradient of each tensor by itself (clip_each=3.0) and to let weight decay grow (final_weight_decay).

    The teacher's backbone is the one kept; its BatchNorm, if it has any, runs on its own batches.

    Source: Caron et al. 2021, arXiv:2104.14294, section 3, algorithm 1, appendices C and D.
    """

    backbone: nn.Module
    run: _common.Run
    local_views: int = 8  # 10 in the best runs
    prototypes: int = 65_536
    hidden: tuple[int, ...] = (2048, 2048)
    bottleneck: int = 256
    head_norm: bool = False  # BatchNorm in the head
    norm_last_layer: bool = True  # prototypes are unit vectors; False: times a trainable gain (better for ViT-S)
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    warmup_teacher_temperature: float = 0.04
    warmup_temperature_epochs: int = 0
    center_decay: float = 0.9
    decay: float = 0.996  # 0.9995 for batches of 256
    freeze_epochs: int = 1  # of the prototypes

    views = property(_dino.views)

    def __post_init__(self):
        _dino.check(self)

    @property
    def networks(self) -> dict[str, nn.Module]:
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
    def frozen_steps(self) -> dict[str, int]:
        return _dino.frozen_steps(self, "head/last")

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": _common.make_teacher(self.networks, params, batch_stats),
            "center": jnp.zeros(self.prototypes),
            "step": jnp.zeros((), jnp.int32),
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        networks, views = self.networks, batch["views"]
        outputs, batch_stats = _common.forward_views(
            {"backbone": self.backbone},
            params,
            state["batch_stats"],
            views,
            axis_name=axis_name,
            rng=rng,
            together=True,
        )
        h = outputs["backbone"]  # [views, batch, dim]
        student, batch_stats["head"] = _common.train_apply(
            networks["head"], params["head"], batch_stats["head"], h, axis_name=axis_name
        )
        outputs, teacher = _common.forward_teacher(
            networks, state["teacher"], views[: len(_dino.GLOBAL)], axis_name=axis_name, together=True
        )
        scores, center = outputs["head"], state["center"]
        temperature = _dino.temperature(self, self.warmup_teacher_temperature, self.teacher_temperature, state["step"])
        loss = losses.dino(
            student,
            scores,
            center,
            student_temperature=self.student_temperature,
            teacher_temperature=temperature,
            axis_name=axis_name,
        )
        entropy = _dino.entropy(centered(scores, center, temperature))
        center = _dino.move_center(center, scores, self.center_decay, axis_name)
        state = {"batch_stats": batch_stats, "teacher": teacher, "center": center, "step": state["step"]}
        return loss, (state, {"loss": loss, "embeddings": h[:2], "teacher_entropy": entropy})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        decay = optim.cosine(self.decay, 1.0, step, self.run.steps)
        teacher = _common.move_teacher(state["teacher"], params, decay)
        return {**state, "teacher": teacher, "step": jnp.asarray(step, jnp.int32)}

    backbone_variables = _common.teacher_backbone
    features = _common.features
