"""MoCo v3."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import drawing
from ssl_jax.models.abilities import has_tokens
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class MoCoV3(Base):
    """Predicts, from one view, a slowly moving teacher's projection of the other, and finds it in the batch.

    The loss of each of the two directions is the cross entropy times 2 * temperature. The factor keeps the size of the
    gradient when the temperature changes. The teacher has no predictor. Its decay goes from `decay` by half a cosine
    to 1.

    The projector ends with BatchNorm without scale and offset. For a ResNet it has 2 layers, and the predictor ends
    without BatchNorm. For a ViT it has 3 layers; set `predictor_norm` and `frozen_patches`, and give fixed positions,
    model.positions="sincos". A ViT's kernels are drawn by Xavier's rule. Queries, keys and values count as three layers
    there, as in the authors' code.

    Source: Chen, Xie & He 2021, arXiv:2104.02057, algorithm 1 and section 4; heads as in the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers; 2 for a ResNet, 3 for a ViT."] = (
        4096,
        256,
    )
    predictor: Annotated[tuple[int, ...], COUNT, "Widths of the predictor's layers."] = (4096, 256)
    predictor_norm: Annotated[bool, "Ends the predictor with BatchNorm, as the authors do for ViTs."] = False
    temperature: Annotated[float, POSITIVE, "Softmax temperature."] = 1.0
    decay: Annotated[float, SHARE, "The teacher's decay at the start."] = 0.99
    frozen_patches: Annotated[
        bool, "Keeps a ViT's patch projection at its initial values; otherwise its gradient has spikes (section 4.2)."
    ] = False

    views = ("view1", "view2")

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_predictor(self)
        if self.frozen_patches and not has_tokens(self.backbone):
            raise ValueError(
                "frozen_patches=True needs a ViT; leave it out for a ResNet, which has no patch projection"
            )

    @property
    def teacher_networks(self) -> toolkit.Networks:
        projector = MLP(self.projector, output_norm="plain", kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    @property
    def networks(self) -> toolkit.Networks:
        output_norm = "plain" if self.predictor_norm else "none"
        predictor = MLP(self.predictor, output_norm=output_norm, kernel_init=torch_init)
        return {**self.teacher_networks, "predictor": predictor}

    @property
    def chance_level(self) -> float:
        return 2 * 2 * self.temperature * math.log(self.schedule.batch_size)

    @property
    def frozen_steps(self) -> Mapping[str, int]:
        return {"backbone/patch_embed": self.schedule.steps + 1} if self.frozen_patches else {}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_xavier = jax.random.split(rng)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        if has_tokens(self.backbone):
            params["backbone"] = drawing.draw_xavier(rng_xavier, params["backbone"], split_qkv=True)
        teacher = toolkit.make_teacher(self.teacher_networks, params, batch_stats)
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        online, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = toolkit.forward_teacher(
            self.teacher_networks, state["teacher"], batch["views"], axis_name=axis_name, together=False
        )
        (q1, q2), (k1, k2) = online["predictor"], targets["projector"]
        loss = losses.info_nce(q1, k2, temperature=self.temperature, axis_name=axis_name)
        loss += losses.info_nce(q2, k1, temperature=self.temperature, axis_name=axis_name)
        loss *= 2.0 * self.temperature
        state = {"batch_stats": batch_stats, "teacher": teacher}
        return Output(loss, state, {}, embeddings=online["projector"])

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The teacher's projections of both views are gathered. They have no gradient.
        rows = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(passes=2, teacher_passes=2, gathered=2 * rows)
