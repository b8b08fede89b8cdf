"""DINOv2."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, OneOf, Range
from ssl_jax.losses.distillation import centered
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import masking, self_distillation, transport
from ssl_jax.models.heads import DINOHead

CENTERINGS = ("mean", "sinkhorn")


@dataclasses.dataclass(frozen=True)
class DINOv2(Base):
    """iBOT with class tokens spread over the sphere, and, at scale, a head for the patches and Sinkhorn's targets.

    KoLeo spreads the student's class tokens before the head, those of each large crop by itself. The prototypes have a
    trainable gain. For ViT-L and g the authors have separate heads of 131,072 prototypes each, and a class bottleneck
    of 384. Their stochastic depth is model.drop_path_uniform=True with model.drop_path_group above 0.

    With `nested`, Franca's Matryoshka heads: the first half of each token's entries, the first quarter and so on have
    heads of their own, with as many times fewer prototypes. Their losses are added. So the first entries alone tell
    coarse classes apart. Franca's `config.mask` is of kind "inverse". RASA, its removal of positions after training, is
    left out.

    Source: Oquab et al. 2023, arXiv:2304.07193, section 4, and the authors' code: `config.mask` is iBOT's with blocks
    of at least 4 patches. In the code exactly half of a device's images have a mask, with sizes evenly spaced. nested:
    Venkataramanan et al. 2025, arXiv:2507.14137.
    """

    backbone: nn.Module
    schedule: Schedule
    local_views: Annotated[int, NOT_NEGATIVE, "Small crops of each image, beside the two large ones."] = 8
    prototypes: Annotated[int, COUNT, "Number of classes; 131,072 for ViT-L and g."] = 65_536
    hidden: Annotated[tuple[int, ...], COUNT, "Widths of the heads' hidden layers."] = (2048, 2048)
    bottleneck: Annotated[
        int, COUNT, "Width of the head's output, which is compared with the prototypes; 384 for ViT-L and g."
    ] = 256
    separate_heads: Annotated[bool, "The patches have a head of their own; True for ViT-L and g."] = False
    patch_prototypes: Annotated[int, COUNT, "Number of classes of the patches' own head."] = 65_536
    patch_bottleneck: Annotated[int, COUNT, "Width of the output of the patches' own head."] = 256
    nested: Annotated[
        tuple[int, ...],
        Range(2),
        "For each number n, the first 1 / n of a token's entries have heads of their own, with 1 / n of the",
        "prototypes. Franca has (2, 4, 8, 16).",
    ] = ()
    patch_weight: Annotated[float, POSITIVE, "Weight of the patches' loss."] = 1.0
    most_masked: Annotated[
        int,
        NOT_NEGATIVE,
        "Limit of masked patches in a view; this many pass the head. 0: no limit, and all patches pass.",
    ] = 0
    koleo_weight: Annotated[float, NOT_NEGATIVE, "Weight of KoLeo."] = 0.1
    koleo_images: Annotated[
        int,
        NOT_NEGATIVE,
        "Number of images, on any devices, among which a class token's nearest neighbor is sought; "
        "0: the global batch. The authors seek it among the 12, 32 or 64 images of a device.",
    ] = 0
    centering: Annotated[
        str,
        OneOf(CENTERINGS),
        "mean: the teacher's scores minus their running mean, which for patches is that of the masked ones. sinkhorn: "
        "the large crops, and all masked patches of the global batch, are shared out equally among the prototypes.",
    ] = "mean"
    student_temperature: Annotated[float, POSITIVE, "Softmax temperature of the student's scores."] = 0.1
    teacher_temperature: Annotated[
        float, POSITIVE, "Softmax temperature of the teacher's scores after the warm-up."
    ] = 0.07
    warmup_teacher_temperature: Annotated[float, POSITIVE, "The teacher's temperature at the start."] = 0.04
    warmup_temperature_epochs: Annotated[
        int, NOT_NEGATIVE, "Epochs in which the teacher's temperature goes from its first value to its last."
    ] = 30
    center_decay: Annotated[float, SHARE, "Decay of the running mean of the teacher's scores."] = 0.9
    decay: Annotated[float, SHARE, "The teacher's decay at the start; half a cosine takes it to 1."] = 0.992
    freeze_epochs: Annotated[int, NOT_NEGATIVE, "Epochs before the prototypes move."] = 1

    masked = self_distillation.GLOBAL
    # chance_level: not known, as it depends on the share of images that have a mask, and KoLeo has no such level.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self)
        self_distillation.check_sharper(self, "warmup_teacher_temperature", "teacher_temperature")
        self_distillation.check_koleo(self.koleo_images, self.schedule.batch_size)
        for name, count in {"model.dim": self.backbone.dim, **self._prototypes(1)}.items():
            if any(count % part for part in self.nested) or len(set(self.nested)) < len(self.nested):
                raise ValueError(f"each number of nested={self.nested} must be another divisor of {name}={count}")

    @property
    def views(self) -> tuple[str, ...]:
        return self_distillation.views(self)

    @property
    def heads(self) -> Mapping[str, DINOHead]:
        head = DINOHead(self.prototypes, hidden=self.hidden, bottleneck=self.bottleneck, trainable_gain=True)
        found: dict[str, DINOHead] = {}
        for part in (1, *self.nested):
            counts = self._prototypes(part)
            found[_named("head", part)] = head.clone(prototypes=counts["prototypes"])
            if self.separate_heads:
                found[_named("patch_head", part)] = head.clone(
                    prototypes=counts["patch_prototypes"], bottleneck=self.patch_bottleneck
                )
        return found

    def _prototypes(self, part: int) -> dict[str, int]:
        """{key: how many prototypes the heads of the first 1 / part of the entries have}"""
        of_patches = self.patch_prototypes if self.separate_heads else self.prototypes
        return {"prototypes": self.prototypes // part, "patch_prototypes": of_patches // part}

    @property
    def still_steps(self) -> Mapping[str, int]:
        """The authors' learning rate of the prototypes is 0 at first, but Adam gathers their moments already."""
        return self_distillation.frozen_steps(self, *(f"{name}/last" for name in self.heads))

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, state = self_distillation.init(self.backbone, self.heads, rng, images, self._parts)
        centers = {}
        if self.centering == "mean":
            for part in (1, *self.nested):
                counts = self._prototypes(part)
                centers[_named("class", part)] = jnp.zeros(counts["prototypes"])
                centers[_named("patch", part)] = jnp.zeros(counts["patch_prototypes"])
        return params, {**state, "centers": centers}

    @property
    def _parts(self) -> Mapping[str, int]:
        """{head: part, of which it sees the first 1 / part of the entries}"""
        return {_named(name, part): part for name in ("head", "patch_head") for part in (1, *self.nested)}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        h, tokens, teacher_h, teacher_tokens = self_distillation.encode(self, params, state, batch, rng, axis_name)
        masks, (tokens, teacher_tokens) = self_distillation.masked_first(
            jnp.stack(batch["masks"]), self.most_masked, tokens, teacher_tokens
        )
        student = {"class": h, "patch": tokens}
        teacher = {"class": teacher_h, "patch": teacher_tokens}
        parts = [self._losses(part, params, state, student, teacher, masks, axis_name) for part in (1, *self.nested)]
        class_loss, patch_loss = (sum(of_parts, jnp.zeros(())) for of_parts in list(zip(*parts, strict=True))[:2])
        h = h[: len(self_distillation.GLOBAL)]
        koleo = self_distillation.spread(h, self.koleo_images, axis_name)
        loss = class_loss + self.patch_weight * patch_loss + self.koleo_weight * koleo
        metrics = {
            "class_loss": class_loss,
            "patch_loss": patch_loss,
            "koleo": koleo,
            "teacher_entropy": parts[0][2],
        }
        centers: dict[str, Array] = {}
        for _, _, _, of_part in parts:
            centers |= of_part
        return Output(loss, {**state, "centers": centers}, metrics, embeddings=h)

    def _losses(
        self,
        part: int,
        params: Params,
        state: State,
        student: Mapping[str, Array],
        teacher: Mapping[str, Array],
        masks: Bool[Array, "views batch patches"],
        axis_name: str | None,
    ) -> tuple[Array, Array, Array, Mapping[str, Array]]:
        """(loss of class tokens, loss of patches, entropy of the classes' targets, new centers)

        Of the heads that see the first 1 / part of the entries of tokens. student, teacher: tokens by "class", "patch".
        """
        heads = self.heads
        names = {"class": _named("head", part), "patch": _named("patch_head" if self.separate_heads else "head", part)}

        def scores(params: Params, tokens: Mapping[str, Array], kind: str) -> Array:
            seen = tokens[kind][..., : tokens[kind].shape[-1] // part]
            of_head: Any = heads[names[kind]].apply({"params": params[names[kind]]}, seen)
            return of_head

        teacher_scores = {kind: scores(state["teacher"]["params"], teacher, kind) for kind in names}
        counts = {"class": jnp.ones(teacher["class"].shape[:-1]), "patch": masks}
        centers = {kind: state["centers"].get(_named(kind, part)) for kind in names}
        targets, moved = self._targets(teacher_scores, counts, centers, state["step"], axis_name)

        class_loss = losses.cross_view(
            scores(params, student, "class"),
            targets["class"],
            temperature=self.student_temperature,
            axis_name=axis_name,
        )
        patch_loss = self_distillation.masked_patches(
            scores(params, student, "patch"),
            targets["patch"],
            masks,
            temperature=self.student_temperature,
            axis_name=axis_name,
        )
        entropy = self_distillation.entropy(targets["class"])
        return class_loss, patch_loss, entropy, {_named(kind, part): center for kind, center in moved.items()}

    def _targets(
        self,
        scores: Mapping[str, Array],
        counts: Mapping[str, Array],
        centers: Mapping[str, Any],
        step: Int[Array, ""],
        axis_name: str | None,
    ) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """(the teacher's probabilities of class tokens and of patches, from its scores; the new centers)

        counts: 0 for scores that neither move a center nor take part in Sinkhorn's iterations.
        """
        temperature = self_distillation.temperature(
            self, self.warmup_teacher_temperature, self.teacher_temperature, step
        )
        if self.centering == "sinkhorn":
            share_out = self_distillation.share_out
            return {name: share_out(scores[name], temperature, counts[name], axis_name) for name in scores}, {}
        moved = {
            name: self_distillation.move_center(centers[name], scores[name], self.center_decay, axis_name, counts[name])
            for name in scores
        }
        return {name: centered(scores[name], centers[name], temperature) for name in scores}, moved

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        teacher = toolkit.move_teacher(state["teacher"], params, decay)
        return {**state, "teacher": teacher, "step": jnp.asarray(step, jnp.int32)}

    backbone_variables = toolkit.teacher_backbone

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The teacher's scores, of class tokens and of patches, go through Sinkhorn's iterations, or are summed for the
        # centers. KoLeo gathers the class tokens of both large crops, and their gradient is scattered.
        prototypes = sum(sum(self._prototypes(part).values()) for part in (1, *self.nested))
        sinkhorn = self.centering == "sinkhorn"
        tokens = 2 * toolkit.row_bytes(self.schedule.batch_size, self.backbone.dim)
        return Traffic(
            reduced=transport.sinkhorn_bytes(prototypes, self_distillation.ITERATIONS) if sinkhorn else 4 * prototypes,
            gathered=tokens,
            scattered=tokens,
        )


def _named(name: str, part: int) -> str:
    """Of a head, or a center, for the first 1 / part of the entries."""
    return name if part == 1 else f"{name}_{part}"
