"""DINOv2."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import losses, optim
from ssl_jax.losses.distillation import centered
from ssl_jax.methods import _common, _dino, _tokens
from ssl_jax.models.heads import DINOHead

CENTERINGS = ("mean", "sinkhorn")


@dataclasses.dataclass(frozen=True)
class DINOv2:
    """iBOT with class tokens spread over the sphere, and, at scale, a head for the patches and Sinkhorn's targets.

    `centering`: "mean", DINO's running one, that of the patches over the masked ones; or "sinkhorn", which shares the
    large crops, and all masked patches of the global batch, out equally among the prototypes. KoLeo is taken of the
    student's class tokens before the head, of each large crop by itself. The prototypes have a trainable gain.

    `most_masked`: of a view's patches at most so many are masked, and no more of them pass the patches' head; 0: all
    pass.

    `koleo_images`: a class token's nearest neighbor is sought among this many images, on whichever devices they are; 0:
    among those of the global batch. The authors': among those of the device, 12, 32 or 64.

    Stochastic depth of the authors is that of model.drop_path_uniform=True and model.drop_path_group above 0.

    Source: Oquab et al. 2023, arXiv:2304.07193, section 4, and the authors' code: `config.mask` is iBOT's with blocks
    of 4 patches at least. There exactly half of the images of a device have a mask, of sizes evenly spaced.
    """

    backbone: nn.Module
    run: _common.Run
    local_views: int = 8
    prototypes: int = 65_536
    hidden: tuple[int, ...] = (2048, 2048)
    bottleneck: int = 256
    separate_heads: bool = False  # True, 131,072 prototypes of each and a class bottleneck of 384 for ViT-L and g
    patch_prototypes: int = 65_536  # of the patches' own head, as the next
    patch_bottleneck: int = 256
    patch_weight: float = 1.0
    most_masked: int = 0
    koleo_weight: float = 0.1
    koleo_images: int = 0
    centering: str = "mean"
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    warmup_teacher_temperature: float = 0.04
    warmup_temperature_epochs: int = 30
    center_decay: float = 0.9
    decay: float = 0.992
    freeze_epochs: int = 1  # of the prototypes

    views = property(_dino.views)
    masked: ClassVar[tuple[str, ...]] = _dino.GLOBAL
    chance_level: ClassVar[None] = None  # it depends on the share of images that have a mask, and KoLeo has none

    def __post_init__(self):
        _tokens.check_vit(self)
        _dino.check(self)
        _common.check_positive(self, "patch_weight", "patch_prototypes")
        for name in ("most_masked", "koleo_weight", "koleo_images"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.koleo_images == 1 or (self.koleo_images and self.run.batch_size % self.koleo_images):
            raise ValueError(
                f"koleo_images={self.koleo_images} must divide batch_size={self.run.batch_size}, and be 2 at least; "
                "use 0 for the global batch"
            )
        if self.centering not in CENTERINGS:
            raise ValueError(f"centering must be one of {', '.join(CENTERINGS)}, got {self.centering!r}")

    @property
    def heads(self) -> dict[str, DINOHead]:
        head = DINOHead(self.prototypes, hidden=self.hidden, bottleneck=self.bottleneck, trainable_gain=True)
        if not self.separate_heads:
            return {"head": head}
        return {
            "head": head,
            "patch_head": head.clone(prototypes=self.patch_prototypes, bottleneck=self.patch_bottleneck),
        }

    @property
    def still_steps(self) -> dict[str, int]:
        """The authors' learning rate of the prototypes is 0 at first; Adam gathers their moments all the same."""
        return _dino.frozen_steps(self, *(f"{name}/last" for name in self.heads))

    def init(self, rng, images):
        heads = self.heads
        rng, *rng_heads = jax.random.split(rng, 1 + len(heads))
        params, batch_stats = _common.init({"backbone": self.backbone}, rng, images)
        for (name, head), rng_head in zip(heads.items(), rng_heads, strict=True):
            params[name], batch_stats[name] = head.init(rng_head, jnp.zeros((1, self.backbone.dim)))["params"], {}
        teacher = _common.make_teacher({"backbone": self.backbone, **heads}, params, batch_stats)
        params["mask_token"] = jnp.zeros(self.backbone.dim)
        centers = {}
        if self.centering == "mean":
            last = self.patch_prototypes if self.separate_heads else self.prototypes
            centers = {"class": jnp.zeros(self.prototypes), "patch": jnp.zeros(last)}
        return params, {
            "batch_stats": batch_stats,
            "teacher": teacher,
            "centers": centers,
            "step": jnp.zeros((), jnp.int32),
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        h, tokens, teacher_h, teacher_tokens = _dino.encode(self, params, state, batch, rng, axis_name)
        heads, teacher = self.heads, state["teacher"]["params"]
        patch_head = "patch_head" if self.separate_heads else "head"

        def scores(name, params, x):
            return heads[name].apply({"params": params[name]}, x)

        masks, state = jnp.stack(batch["masks"]), {**state, "centers": dict(state["centers"])}
        if self.most_masked:
            first = jnp.argsort(~masks, axis=-1, stable=True)[..., : self.most_masked]
            masks = jnp.take_along_axis(masks, first, axis=-1)
            tokens, teacher_tokens = (
                jnp.take_along_axis(x, first[..., None], axis=-2) for x in (tokens, teacher_tokens)
            )
        counts = jnp.ones(teacher_h.shape[:-1])
        targets = self._targets("class", scores("head", teacher, teacher_h), state, counts, axis_name)
        patch_targets = self._targets("patch", scores(patch_head, teacher, teacher_tokens), state, masks, axis_name)

        class_loss = losses.cross_view(
            scores("head", params, h), targets, temperature=self.student_temperature, axis_name=axis_name
        )
        of_views = [
            losses.masked_patches(*view, temperature=self.student_temperature, axis_name=axis_name)
            for view in zip(scores(patch_head, params, tokens), patch_targets, masks, strict=True)
        ]
        patch_loss = sum(of_views) / len(of_views)
        h = h[: len(_dino.GLOBAL)]
        koleo = sum(losses.koleo(x, group=self.koleo_images, axis_name=axis_name) for x in h)
        loss = class_loss + self.patch_weight * patch_loss + self.koleo_weight * koleo
        metrics = {
            "loss": loss,
            "class_loss": class_loss,
            "patch_loss": patch_loss,
            "koleo": koleo,
            "teacher_entropy": _dino.entropy(targets),
            "embeddings": h,
        }
        return loss, (state, metrics)

    def _targets(self, name, scores, state, counts, axis_name):
        """The teacher's probabilities of its scores; those that count move the center, which is put into `state`."""
        temperature = _dino.temperature(self, self.warmup_teacher_temperature, self.teacher_temperature, state["step"])
        if self.centering == "sinkhorn":
            rows, weights = scores.reshape(-1, scores.shape[-1]), counts.reshape(-1).astype(jnp.float32)
            codes = losses.sinkhorn(rows, epsilon=temperature, weights=weights, axis_name=axis_name)
            return codes.reshape(scores.shape)
        center = state["centers"][name]
        state["centers"][name] = _dino.move_center(center, scores, self.center_decay, axis_name, counts)
        return centered(scores, center, temperature)

    def update(self, params: Any, state: Any, step: Any) -> Any:
        decay = optim.cosine(self.decay, 1.0, step, self.run.steps)
        teacher = _common.move_teacher(state["teacher"], params, decay)
        return {**state, "teacher": teacher, "step": jnp.asarray(step, jnp.int32)}

    backbone_variables = _common.teacher_backbone
    features = _common.features
