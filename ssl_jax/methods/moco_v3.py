"""MoCo v3."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax

from ssl_jax import losses, optim
from ssl_jax.methods import _common, _vit
from ssl_jax.models.heads import MLP, torch_init
from ssl_jax.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class MoCoV3:
    """Finds, for a predicted projection of one view, a slowly moving teacher's of the other among those of the batch.

    Of each pair of views the loss is 2 * temperature times the cross entropy, which keeps the size of its gradient
    when the temperature changes. The teacher has no predictor; its decay goes from `decay` by half a cosine to 1.

    The projector ends with BatchNorm without scale and offset. ResNets have 2 layers in it and no BatchNorm at the
    predictor's end; ViTs have 3 and, `predictor_norm`, one there. `frozen_patches`: a ViT's patch projection stays as
    it was drawn, without which its gradient has spikes (section 4.2); its positions are to be fixed, too:
    model.positions="sincos". A ViT's kernels are drawn by Xavier's rule, those of queries, keys and values each by
    itself, as in the authors' code.

    Source: Chen, Xie & He 2021, arXiv:2104.02057, algorithm 1 and section 4; heads as in the authors' code.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (4096, 256)
    predictor: tuple[int, ...] = (4096, 256)
    predictor_norm: bool = False
    temperature: float = 1.0
    decay: float = 0.99
    frozen_patches: bool = False

    views: ClassVar[tuple[str, ...]] = ("view1", "view2")

    def __post_init__(self):
        _common.check_positive(self, "temperature")
        _common.check_share(self, "decay")
        _common.check_predictor(self)
        if self.frozen_patches and not isinstance(self.backbone, ViT):
            raise ValueError(
                "frozen_patches=True needs a ViT; leave it out for a ResNet, which has no patch projection"
            )

    @property
    def teacher_networks(self) -> dict[str, nn.Module]:
        projector = MLP(self.projector, output_norm="plain", kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    @property
    def networks(self) -> dict[str, nn.Module]:
        output_norm = "plain" if self.predictor_norm else "none"
        predictor = MLP(self.predictor, output_norm=output_norm, kernel_init=torch_init)
        return {**self.teacher_networks, "predictor": predictor}

    @property
    def chance_level(self) -> float:
        return 2 * 2 * self.temperature * math.log(self.run.batch_size)

    @property
    def frozen_steps(self) -> dict[str, int]:
        return {"backbone/patch_embed": self.run.steps + 1} if self.frozen_patches else {}

    def init(self, rng, images):
        rng_networks, rng_xavier = jax.random.split(rng)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        if isinstance(self.backbone, ViT):
            params["backbone"] = _vit.draw_xavier(rng_xavier, params["backbone"], split_qkv=True)
        teacher = _common.make_teacher(self.teacher_networks, params, batch_stats)
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        online, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = _common.forward_teacher(
            self.teacher_networks, state["teacher"], batch["views"], axis_name=axis_name, together=False
        )
        (q1, q2), (k1, k2) = online["predictor"], targets["projector"]
        loss = losses.info_nce(q1, k2, temperature=self.temperature, axis_name=axis_name)
        loss += losses.info_nce(q2, k1, temperature=self.temperature, axis_name=axis_name)
        loss *= 2.0 * self.temperature
        state = {"batch_stats": batch_stats, "teacher": teacher}
        return loss, (state, {"loss": loss, "embeddings": online["projector"]})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        decay = optim.cosine(self.decay, 1.0, step, self.run.steps)
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, decay)}

    backbone_variables = _common.online_backbone
    features = _common.features
