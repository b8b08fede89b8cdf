"""DINOv3."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses, ops, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import dino_keys, masking, self_distillation, transport
from ssl_jax.methods.toolkit.teachers import Teacher
from ssl_jax.models.abilities import without_noise
from ssl_jax.models.heads import DINOHead

BEFORE_GRAM = 1.0  # weight of the small crops' pairs before Gram anchoring


@dataclasses.dataclass(frozen=True)
class DINOv3(Base):
    """DINOv2 with Sinkhorn's targets and constant schedules; then Gram anchoring, which keeps the patches apart.

    Class tokens and patches have heads of their own, whose prototypes have any length. The class tokens of small crops
    have a last LayerNorm of their own in training; the network that is kept does not have it. KoLeo is that of small
    groups of images.

    Gram anchoring: in long training class tokens improve, while patches become alike. From `gram_start` on, the
    student's patches of the large crops are to be as alike, pair by pair, as those of a Gram teacher, an earlier
    teacher that does not move; see `losses.gram`. It begins as the weights in the file `gram_teacher`, or else as the
    student does, of which config.begin may be the weights. It becomes a copy of the teacher after the steps
    `gram_copies`; without any, a checkpoint leaves the weights of the file out.

    Registers, rotary positions and their jitter are the backbone's: model.registers, positions="rope", rope_jitter.

    Source: Simeoni et al. 2025, arXiv:2508.10104, sections 3 and 4, and the authors' code: `config.mask` is DINOv2's.
    """

    backbone: nn.Module
    schedule: Schedule
    local_views: dino_keys.LocalViews = 8
    local_norm: Annotated[bool, "The small crops' class tokens have a last LayerNorm of their own in training."] = True
    local_weight: Annotated[
        float,
        NOT_NEGATIVE,
        "Weight of the pairs of a small crop and a large one in the class loss, once Gram anchoring has its whole "
        "weight. It is 1 before.",
    ] = 0.5
    prototypes: Annotated[int, COUNT, "Number of classes of class tokens."] = 262_144
    hidden: dino_keys.Hidden = (8192, 8192)
    bottleneck: dino_keys.Bottleneck = 512
    patch_prototypes: Annotated[int, COUNT, "Number of classes of patches."] = 98_304
    patch_hidden: dino_keys.PatchHidden = (4096, 4096)
    patch_bottleneck: dino_keys.PatchBottleneck = 384
    patch_weight: dino_keys.PatchWeight = 1.0
    most_masked: dino_keys.MostMasked = 0
    koleo_weight: dino_keys.KoleoWeight = 0.1
    koleo_images: dino_keys.KoleoImages = 16
    student_temperature: dino_keys.StudentTemperature = 0.1
    teacher_temperature: dino_keys.TeacherTemperature = 0.07
    warmup_teacher_temperature: dino_keys.FirstTemperature = 0.04
    warmup_temperature_epochs: dino_keys.TemperatureEpochs = 100
    decay: Annotated[float, SHARE, "The teacher's decay; at the start, if there is final_decay."] = 0.994
    final_decay: Annotated[
        float | None, SHARE, "The teacher's decay at the end, to which half a cosine leads. None: it is constant."
    ] = None
    freeze_epochs: Annotated[int, NOT_NEGATIVE, "Epochs before the prototypes move."] = 5
    gram_weight: Annotated[
        float, NOT_NEGATIVE, "Weight of Gram anchoring, 2 in the paper. 0: there is none, and no Gram teacher."
    ] = 0.0
    gram_start: Annotated[int, NOT_NEGATIVE, "Step from which on there is Gram anchoring. 0: the whole run."] = 0
    gram_warmup: Annotated[
        int, NOT_NEGATIVE, "Steps in which the weight of Gram anchoring rises from 0 by half a cosine."
    ] = 0
    gram_copies: Annotated[
        tuple[int, ...], COUNT, "Numbers of steps after which the Gram teacher becomes a copy of the teacher."
    ] = ()
    gram_teacher: Annotated[
        str,
        "The first Gram teacher, of the backbone's architecture: a run's directory, or a safetensors file, as "
        "load_backbone takes it. Empty: the weights that the run begins with.",
    ] = ""
    gram_scale: Annotated[
        float,
        Range(1.0),
        "How many times as large the Gram teacher sees the large crops as student and teacher. Above 1, config.augment "
        "makes them as large as it sees them, and they are shrunk for the others. 2 in the paper, then 1.5.",
    ] = 1.0
    loaded: Teacher | None = None  # the Gram teacher of the file, when a run is built

    masked = self_distillation.GLOBAL
    # chance_level: not known, as for DINOv2.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self)
        self_distillation.check_sharper(self, "warmup_teacher_temperature", "teacher_temperature")
        self_distillation.check_koleo(self.koleo_images, self.schedule.batch_size)
        idle = {"gram_start": 0, "gram_warmup": 0, "gram_copies": (), "gram_teacher": "", "gram_scale": 1.0}
        for name, value in idle.items():
            if not self.gram_weight and getattr(self, name) != value:
                raise ValueError(
                    f"{name}={getattr(self, name)} belongs to Gram anchoring, which gram_weight=0.0 leaves out; use "
                    f"gram_weight=2.0, or {name}={value!r}"
                )
        patch = self.backbone.patch_size
        cell = round(self.gram_scale * patch)
        if not math.isclose(cell, self.gram_scale * patch):
            raise ValueError(
                f"gram_scale={self.gram_scale} makes {self.gram_scale * patch:g} pixels of the {patch} of a patch, "
                f"which must be whole; use {cell} / {patch} = {cell / patch:g}"
            )
        if bool(self.gram_teacher) != (self.loaded is not None):
            raise ValueError(
                f"gram_teacher={self.gram_teacher!r} names the weights that loaded must be, got {self.loaded!r:.80}; "
                "name a file by --config.method.gram_teacher=PATH, which a run loads"
            )
        if self.loaded and self.gram_copies and (any(self.loaded.offset) or any(x != 1.0 for x in self.loaded.scale)):
            raise ValueError(
                f"gram_teacher={self.gram_teacher!r} was trained with images of another mean and std than config.data "
                "has, with which copies of the teacher are trained; use gram_copies=(), or its data.mean and data.std"
            )

    @property
    def constants(self) -> State:
        return {} if self.loaded is None or self.gram_copies else {"gram": {"given": self.loaded.variables["params"]}}

    @property
    def views(self) -> tuple[str, ...]:
        return self_distillation.views(self)

    @property
    def mask_side(self) -> int:
        return round(self.gram_scale * self.backbone.patch_size)

    @property
    def heads(self) -> Mapping[str, DINOHead]:
        return {
            "head": DINOHead(self.prototypes, hidden=self.hidden, bottleneck=self.bottleneck, unit_prototypes=False),
            "patch_head": DINOHead(
                self.patch_prototypes, hidden=self.patch_hidden, bottleneck=self.patch_bottleneck, unit_prototypes=False
            ),
        }

    @property
    def still_steps(self) -> Mapping[str, int]:
        """As in DINOv2: the learning rate of the prototypes is 0 at first, but Adam gathers their moments already."""
        return self_distillation.frozen_steps(self, *(f"{name}/last" for name in self.heads))

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, state = self_distillation.init(self.backbone, self.heads, rng, images)
        if self.local_norm and self.local_views:
            dim = self.backbone.dim
            params["local_norm"] = {"scale": jnp.ones(dim), "bias": jnp.zeros(dim)}
        if self.loaded is not None:  # not named "backbone", or the weights of config.begin would take their place
            state = {**state, "gram": {"given": self.loaded.variables["params"]}}
        elif self.gram_weight:
            state = {**state, "gram": {"backbone": jax.tree.map(jnp.copy, params["backbone"])}}
        return params, state

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        views, count = batch["views"], len(self_distillation.GLOBAL)
        large, small = views[:count], views[count:]
        batch = {**batch, "views": (*(masking.shrunk(x, self.gram_scale) for x in large), *small)}
        h, patches, teacher_h, teacher_patches = self_distillation.encode(
            self, params, state, batch, rng, axis_name, params.get("local_norm")
        )
        heads, teacher = self.heads, state["teacher"]["params"]

        def scores(
            name: str, params: Params, x: Float[Array, "views batch *positions dim"]
        ) -> Float[Array, "views batch *positions prototypes"]:
            of_head: Any = heads[name].apply({"params": params[name]}, x)
            return of_head

        temperature = self_distillation.temperature(
            self, self.warmup_teacher_temperature, self.teacher_temperature, state["step"]
        )
        targets = self_distillation.share_out(
            scores("head", teacher, teacher_h), temperature, jnp.ones(teacher_h.shape[:-1]), axis_name
        )
        masks, (hidden, teacher_hidden) = self_distillation.masked_first(
            jnp.stack(batch["masks"]), self.most_masked, patches, teacher_patches
        )
        patch_targets = self_distillation.share_out(
            scores("patch_head", teacher, teacher_hidden), temperature, masks, axis_name
        )
        anchoring = self.anchoring(state["step"])
        class_loss = self.class_loss(scores("head", params, h), targets, anchoring, axis_name)
        patch_loss = self_distillation.masked_patches(
            scores("patch_head", params, hidden),
            patch_targets,
            masks,
            temperature=self.student_temperature,
            axis_name=axis_name,
        )
        koleo = self_distillation.spread(h[:count], self.koleo_images, axis_name)
        loss = class_loss + self.patch_weight * patch_loss + self.koleo_weight * koleo
        metrics = {
            "class_loss": class_loss,
            "patch_loss": patch_loss,
            "koleo": koleo,
            "teacher_entropy": self_distillation.entropy(targets),
        }
        if self.gram_weight:
            gram = self.gram_loss(patches, state, large, axis_name)
            loss += self.gram_weight * anchoring * gram
            metrics["gram"] = gram
        return Output(loss, state, metrics, embeddings=h[:count])

    def anchoring(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """The share of its whole weight that Gram anchoring has in this step; 0 without it."""
        since = step - self.gram_start
        if not self.gram_weight:
            return jnp.zeros(())
        if not self.gram_warmup:
            return (since >= 0).astype(jnp.float32)
        return optim.cosine(0.0, 1.0, jnp.maximum(since, 0), self.gram_warmup)

    def class_loss(
        self,
        scores: Float[Array, "views batch prototypes"],
        targets: Float[Array, "2 batch prototypes"],
        anchoring: Float[Array, ""],
        axis_name: str | None,
    ) -> Float[Array, ""]:
        """The mean over all pairs of views, with the weight of those of a small crop going from 1 to `local_weight`."""
        options: Any = dict(temperature=self.student_temperature, axis_name=axis_name)
        every = losses.cross_view(scores, targets, **options)
        if not (self.gram_weight and self.local_views) or self.local_weight == BEFORE_GRAM:
            return every
        weight = BEFORE_GRAM + anchoring * (self.local_weight - BEFORE_GRAM)
        count = len(targets)
        of_large = losses.cross_view(scores[:count], targets, **options)
        share = (count - 1) / (len(scores) - 1)  # of the pairs: those of two large crops
        return weight * every + (1.0 - weight) * share * of_large

    def gram_loss(
        self,
        patches: Float[Array, "2 batch patches dim"],
        state: State,
        large: tuple[Float[Array, "batch height width channels"], ...],
        axis_name: str | None,
    ) -> Float[Array, ""]:
        """`losses.gram` of the large crops; before `gram_start`, where nothing is computed for it, 0.

        patches: the student's.
        """

        def of_crops() -> Float[Array, ""]:
            backbone, (weights,) = without_noise(self.backbone), state["gram"].values()
            seen = large if self.loaded is None else [self.loaded.sees(x, 0) for x in large]
            _, found = masking.encode(backbone, weights, seen, axis_name=axis_name)
            found = found.reshape(-1, *found.shape[2:])
            height, width = (side // backbone.patch_size for side in large[0].shape[1:3])
            teacher = masking.resized(found, (height, width), self.gram_scale)
            return losses.gram(patches.reshape(-1, *patches.shape[2:]), teacher, axis_name=axis_name)

        if not self.gram_start:
            return of_crops()
        nothing = ops.vary_like(jnp.zeros(()), patches)
        return lax.cond(state["step"] >= self.gram_start, of_crops, lambda: nothing)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay: Any = self.decay
        if self.final_decay is not None:
            decay = optim.cosine(self.decay, self.final_decay, step, self.schedule.steps)
        teacher = toolkit.move_teacher(state["teacher"], params, decay)
        state = {**state, "teacher": teacher, "step": jnp.asarray(step, jnp.int32)}
        if not self.gram_copies:
            return state
        now: Bool[Array, ""] = jnp.any(step == jnp.asarray(self.gram_copies))
        new = teacher["params"]["backbone"]
        gram = {
            name: jax.tree.map(lambda new, old: jnp.where(now, new, old), new, old)
            for name, old in state["gram"].items()
        }
        return {**state, "gram": gram}

    backbone_variables = toolkit.teacher_backbone

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # As DINOv2's. KoLeo gathers only if a group is on several devices, and Gram anchoring sends nothing.
        tokens = 2 * toolkit.row_bytes(self.schedule.batch_size, self.backbone.dim)
        return Traffic(
            reduced=transport.sinkhorn_bytes(self.prototypes + self.patch_prototypes, self_distillation.ITERATIONS),
            gathered=tokens,
            scattered=tokens,
        )
