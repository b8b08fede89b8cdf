"""DINOv3's distillation of a frozen teacher into one student or several."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from ssl_jax import losses, models, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic, Variables
from ssl_jax.methods.toolkit import dino_keys, self_distillation, students, teachers, transport
from ssl_jax.models import maps
from ssl_jax.models.heads import DINOHead

HEADS = ("head", "patch_head")  # of class tokens, of patches


@dataclasses.dataclass(frozen=True, eq=False)
class DINOv3Teacher:
    """What a run of dinov3 has learnt: its teacher's network and heads.

    network: a ViT, and how it sees a student's views. heads: params of its `DINOHead`s, by the names of `HEADS`.
    """

    network: teachers.Teacher
    heads: Mapping[str, Variables]

    @property
    def constants(self) -> dict[str, Any]:
        # Not named "backbone": the weights of config.begin would take its place.
        return {"network": self.network.variables, **self.heads}

    @property
    def patch_size(self) -> int:
        return self.network.model.patch_size

    @property
    def prototypes(self) -> dict[str, int]:
        """Of each head."""
        return {name: head["last"]["kernel"].shape[-1] for name, head in self.heads.items()}

    def scores(
        self, constants: State, name: str, h: Float[Array, "views batch *positions dim"]
    ) -> Float[Array, "views batch *positions prototypes"]:
        """What a head gives. constants: of the state."""
        layers = self.heads[name]["mlp"]  # not of the state, whose leaves may be shards
        *hidden, bottleneck = (layers[f"Dense_{number}"]["kernel"].shape[-1] for number in range(len(layers)))
        head = DINOHead(self.prototypes[name], hidden=tuple(hidden), bottleneck=bottleneck, unit_prototypes=False)
        found: Any = head.apply({"params": constants[name]}, h)
        return found


class Student(NamedTuple):
    """A network that is trained. suffix: of the names of its parameters. label: what its metrics' names begin with."""

    backbone: nn.Module
    suffix: str
    label: str


@dataclasses.dataclass(frozen=True)
class DINOv3Distillation(Base):
    """A large frozen teacher of DINOv3 takes the place of the student's own average, for one student or several.

    The loss of a student is that of DINOv3 without Gram anchoring: class tokens of all crops predict the teacher's
    assignments of the other large crops, patches those of the same patch, and KoLeo spreads class tokens. The
    assignments are those of the teacher's own heads, by Sinkhorn. A student has heads of its own, of as many
    prototypes. It sees its crops whole: a mask only draws the patches that count. What is kept is a running average of
    its weights.

    The teacher sees each batch once for all students. Losses of students are added, so each is trained as it would be
    alone. The first is config.model. The files of the others are in the run's directory, students/NAME.

    A student is a ViT, or a network with a feature map: its class token is then its features. Where its map has another
    grid than the teacher's patches, it is resized. The grids agree where a ConvNeXt, whose places have 32 pixels, sees
    crops that are twice as large as those of a teacher with patches of 16 (`teacher_scale`).

    Source: Simeoni et al. 2025, arXiv:2508.10104, section 5.2, and the authors' code. The weights that they publish
      have no heads: `distill` takes those.
    """

    backbone: nn.Module
    schedule: Schedule
    teacher: Annotated[str, "The teacher, which must be given: the directory of a finished run of dinov3."] = ""
    teacher_scale: Annotated[
        int,
        COUNT,
        "How many times as large the students see the large crops as the teacher, for which they are shrunk. 2 for "
        "ConvNeXts of a teacher with patches of 16 pixels.",
    ] = 1
    students: Annotated[
        tuple[str, ...],
        'Further students beside config.model: each the name of a network, or "NAME(option=value, ...)" with values '
        "as in Python.",
    ] = ()
    local_views: dino_keys.LocalViews = 8
    hidden: dino_keys.Hidden = (8192, 8192)
    bottleneck: dino_keys.Bottleneck = 512
    patch_hidden: dino_keys.PatchHidden = (4096, 4096)
    patch_bottleneck: dino_keys.PatchBottleneck = 384
    patch_weight: dino_keys.PatchWeight = 1.0
    most_masked: dino_keys.MostMasked = 0
    koleo_weight: dino_keys.KoleoWeight = 0.1
    koleo_images: dino_keys.KoleoImages = 16
    student_temperature: dino_keys.StudentTemperature = 0.1
    teacher_temperature: dino_keys.TeacherTemperature = 0.07
    warmup_teacher_temperature: dino_keys.FirstTemperature = 0.04
    warmup_temperature_epochs: dino_keys.TemperatureEpochs = 0
    decay: Annotated[
        float, SHARE, "Decay of the average of a student's weights, which is kept; half a cosine takes it to 1."
    ] = 0.994
    freeze_epochs: Annotated[int, NOT_NEGATIVE, "Epochs before the prototypes move."] = 0
    loaded: DINOv3Teacher | None = None  # the teacher itself, when a run is built
    further: tuple[nn.Module, ...] = ()  # the networks of `students`, when a run is built

    masked = self_distillation.GLOBAL
    # chance_level: not known, as for DINOv3.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loaded is None:
            raise ValueError(
                "DINOv3's distillation needs a teacher with its heads; say --config.method.teacher=PATH, the directory "
                "of a finished run of dinov3. For weights from elsewhere use the method distill"
            )
        self_distillation.check_sharper(self, "warmup_teacher_temperature", "teacher_temperature")
        self_distillation.check_koleo(self.koleo_images, self.schedule.batch_size)
        labels = [models.described(text)["name"] for text in self.students]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"students={self.students} names {twice[0]} twice, and its files would be the same ones")
        if len(self.further) != len(self.students):
            raise ValueError(f"students={self.students} names the networks that further must be, got {self.further}")
        for student in self.trained:
            students.check(student.backbone)

    @property
    def frozen(self) -> DINOv3Teacher:
        """The teacher."""
        assert self.loaded is not None  # __post_init__
        return self.loaded

    @property
    def constants(self) -> State:
        return {"teacher": self.frozen.constants}

    @property
    def views(self) -> tuple[str, ...]:
        return self_distillation.views(self)

    @property
    def mask_side(self) -> int:
        return self.teacher_scale * self.frozen.patch_size

    @property
    def trained(self) -> Sequence[Student]:
        """The students, in order."""
        labels = [models.described(text)["name"] for text in self.students]
        others = [Student(module, f"_{label}", f"{label}_") for module, label in zip(self.further, labels, strict=True)]
        return [Student(self.backbone, "", ""), *others]

    @property
    def heads(self) -> Mapping[str, DINOHead]:
        """Of each student."""
        widths = {"head": (self.hidden, self.bottleneck), "patch_head": (self.patch_hidden, self.patch_bottleneck)}
        return {
            name: DINOHead(self.frozen.prototypes[name], hidden=hidden, bottleneck=bottleneck, unit_prototypes=False)
            for name, (hidden, bottleneck) in widths.items()
        }

    @property
    def still_steps(self) -> Mapping[str, int]:
        """As in DINOv3: the learning rate of the prototypes is 0 at first."""
        return self_distillation.frozen_steps(
            self, *(f"{name}{student.suffix}/last" for student in self.trained for name in HEADS)
        )

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params: dict[str, Any] = {}
        batch_stats: dict[str, Any] = {}
        for number, (backbone, suffix, _) in enumerate(self.trained):
            rng_student = jax.random.fold_in(rng, number)  # further students change nothing for those before them
            made, state = self_distillation.init(backbone, self.heads, rng_student, images)
            params |= {f"{name}{suffix}": made[name] for name in ("backbone", *HEADS)}
            batch_stats[f"backbone{suffix}"] = state["batch_stats"]["backbone"]
        ema = {"params": toolkit.select(params, batch_stats), "batch_stats": batch_stats}
        return params, {
            "batch_stats": batch_stats,
            "ema": jax.tree.map(jnp.copy, ema),
            **self.constants,
            "step": jnp.zeros((), jnp.int32),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        views, large = batch["views"], batch["views"][: len(self_distillation.GLOBAL)]
        teacher = state["teacher"]
        teacher_h, places = self.see(teacher, large)
        grid = places.shape[2:4]
        found: list[Float[Array, "views batch dim"]] = []
        patches: list[Float[Array, "2 batch patches dim"]] = [students.on_grid(places, grid)]
        batch_stats = dict(state["batch_stats"])
        for number, (backbone, suffix, _) in enumerate(self.trained):
            name, rng_student = f"backbone{suffix}", jax.random.fold_in(rng, number)
            h, places, batch_stats[name] = students.encode(
                backbone, params[name], batch_stats[name], views, axis_name=axis_name, rng=rng_student
            )
            found.append(h)
            patches.append(students.on_grid(places[: len(large)], grid))
        masks, (teacher_patches, *patches) = self_distillation.masked_first(
            jnp.stack(batch["masks"]), self.most_masked, *patches
        )
        temperature = self_distillation.temperature(
            self, self.warmup_teacher_temperature, self.teacher_temperature, state["step"]
        )

        def targets(
            name: str, h: Float[Array, "2 batch *positions dim"], counts: Shaped[Array, "2 batch *positions"]
        ) -> Float[Array, "2 batch *positions prototypes"]:
            return self_distillation.share_out(self.frozen.scores(teacher, name, h), temperature, counts, axis_name)

        of_classes = targets("head", teacher_h, jnp.ones(teacher_h.shape[:-1]))
        of_patches = targets("patch_head", teacher_patches, masks)
        loss, metrics = jnp.zeros(()), {"teacher_entropy": self_distillation.entropy(of_classes)}
        for student, h, hidden in zip(self.trained, found, patches, strict=True):
            parts = self.parts(params, student, h, hidden, (of_classes, of_patches, masks), axis_name)
            loss += parts["class_loss"] + self.patch_weight * parts["patch_loss"] + self.koleo_weight * parts["koleo"]
            metrics |= {f"{student.label}{name}": value for name, value in parts.items()}
        return Output(loss, {**state, "batch_stats": batch_stats}, metrics, embeddings=found[0][: len(large)])

    def parts(
        self,
        params: Params,
        student: Student,
        h: Float[Array, "views batch dim"],
        patches: Float[Array, "2 batch patches dim"],
        targets: tuple[
            Float[Array, "2 batch prototypes"],
            Float[Array, "2 batch patches patch_prototypes"],
            Bool[Array, "2 batch patches"],
        ],
        axis_name: str | None,
    ) -> dict[str, Float[Array, ""]]:
        """The parts of a student's loss, by name, without their weights. targets: of classes, of patches; the masks."""
        of_classes, of_patches, masks = targets
        options: Any = dict(temperature=self.student_temperature, axis_name=axis_name)
        scores: Any = self.heads["head"].apply({"params": params[f"head{student.suffix}"]}, h)
        patch_scores: Any = self.heads["patch_head"].apply({"params": params[f"patch_head{student.suffix}"]}, patches)
        return {
            "class_loss": losses.cross_view(scores, of_classes, **options),
            "patch_loss": self_distillation.masked_patches(patch_scores, of_patches, masks, **options),
            "koleo": self_distillation.spread(h[: len(masks)], self.koleo_images, axis_name),
        }

    def see(
        self, constants: State, views: Sequence[Float[Array, "batch height width channels"]]
    ) -> tuple[Float[Array, "2 batch dim"], Float[Array, "2 batch rows columns dim"]]:
        """The teacher's class tokens, and its patches, of the large crops, without gradient."""
        model, scale = self.frozen.network.model, self.teacher_scale
        images = jnp.concatenate(views)
        rows, height, width, channels = images.shape
        images = teachers.resized(images, (rows, height // scale, width // scale, channels))
        images = self.frozen.network.sees(images, 0)
        found: Any = model.apply(constants["network"], images, method="tokens")
        both = maps.both(model, lax.stop_gradient(found), images)
        h, places = (x.reshape(len(views), -1, *x.shape[1:]) for x in both)
        return h, places

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        now = {"params": toolkit.select(params, state["batch_stats"]), "batch_stats": state["batch_stats"]}
        return {**state, "ema": optim.ema(state["ema"], now, decay), "step": jnp.asarray(step, jnp.int32)}

    def backbone_variables(self, params: Params, state: State) -> Variables:
        return kept(state, "backbone")

    def further_variables(self, params: Params, state: State) -> Mapping[str, Variables]:
        _, *others = self.trained
        return {student.suffix[1:]: kept(state, f"backbone{student.suffix}") for student in others}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        tokens = sum(2 * toolkit.row_bytes(self.schedule.batch_size, student.backbone.dim) for student in self.trained)
        return Traffic(
            passes=2 if self.local_views else 1,
            reduced=transport.sinkhorn_bytes(sum(self.frozen.prototypes.values()), self_distillation.ITERATIONS),
            gathered=tokens,
            scattered=tokens,
        )


def kept(state: State, name: str) -> Variables:
    """The average of a student's weights."""
    return {part: state["ema"][part][name] for part in ("params", "batch_stats")}
