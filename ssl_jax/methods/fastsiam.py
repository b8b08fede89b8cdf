"""FastSiam."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class FastSiam:
    """SimSiam with several views: each predicts the mean projection of the others, a steadier target.

    So small batches and few epochs are enough. The projections are averaged as they are, not normalized; heads and the
    predictor's constant learning rate are SimSiam's. Two views make it SimSiam.

    Source: Pototzky et al. 2022, "FastSiam: Resource-Efficient Self-supervised Learning on a Single GPU" (GCPR).
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 2048, 2048)
    predictor: tuple[int, ...] = (512, 2048)
    num_views: int = 4

    chance_level: ClassVar[float] = -1.0
    constant_lr: ClassVar[tuple[str, ...]] = ("predictor",)

    def __post_init__(self):
        _common.check_predictor(self)
        if self.num_views < 2:
            raise ValueError(f"num_views must be 2 or more, got {self.num_views}: a view predicts the others")

    @property
    def views(self) -> tuple[str, ...]:
        return ("view",) * self.num_views

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
        z, p = outputs["projector"], outputs["predictor"]
        # Of each view, the mean of the others.
        targets = lax.stop_gradient((jnp.sum(z, axis=0) - z) / (self.num_views - 1))
        cosines = [losses.negative_cosine(*pair, axis_name=axis_name) for pair in zip(p, targets, strict=True)]
        loss = sum(cosines) / self.num_views
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
