"""SimSiam."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
from jax import lax

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class SimSiam:
    """Predicts, from one view, the network's own projection of the other, which is taken as constant.

    Neither teacher nor negatives: it is the constant target and the predictor that keep it from collapsing. Each view
    passes by itself. The predictor's learning rate is not decayed: it is to keep up with the projections.

    Source: Chen & He 2020, arXiv:2011.10566, algorithm 1 and section 3.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 2048, 2048)  # two layers for CIFAR
    predictor: tuple[int, ...] = (512, 2048)

    views: ClassVar[tuple[str, ...]] = ("view", "view")
    chance_level: ClassVar[float] = -1.0
    constant_lr: ClassVar[tuple[str, ...]] = ("predictor",)

    def __post_init__(self):
        _common.check_predictor(self)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {
            "backbone": self.backbone,
            "projector": MLP(self.projector, output_norm="plain", kernel_init=torch_init),
            "predictor": MLP(self.predictor, output_bias=True, kernel_init=torch_init),
        }

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z, (p1, p2) = outputs["projector"], outputs["predictor"]
        t1, t2 = lax.stop_gradient(z)
        cosine = losses.negative_cosine(p1, t2, axis_name=axis_name)
        cosine += losses.negative_cosine(p2, t1, axis_name=axis_name)
        loss = cosine / 2
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
