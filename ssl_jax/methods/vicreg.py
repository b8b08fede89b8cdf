"""VICReg."""

import dataclasses
from typing import ClassVar

import flax.linen as nn

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class VICReg:
    """Two views' projections agree, while each dimension varies over the batch and no two vary together.

    Each view passes by itself. The variance term is the mean over the views, as in the authors' code; the paper's is
    their sum.

    Source: Bardes et al. 2021, arXiv:2105.04906, section 4.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (8192, 8192, 8192)  # the paper's expander
    invariance: float = 25.0
    variance: float = 25.0  # 0 lets all embeddings become equal
    covariance: float = 1.0

    views: ClassVar[tuple[str, ...]] = ("view1", "view2")

    def __post_init__(self):
        _common.check_positive(self, "invariance", "variance", "covariance")

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": MLP(self.projector, hidden_bias=True, kernel_init=torch_init)}

    @property
    def chance_level(self) -> float:
        """The hinge at no variance, 1 - sqrt(1e-4); the other terms are 0."""
        return 0.99 * self.variance

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z1, z2 = z = outputs["projector"]
        weights = dict(invariance=self.invariance, variance=self.variance, covariance=self.covariance)
        loss = losses.vicreg(z1, z2, **weights, axis_name=axis_name)
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
