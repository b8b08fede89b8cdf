"""VIbCReg."""

import dataclasses
from typing import ClassVar

import flax.linen as nn

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP, torch_init
from ssl_jax.models.norm import IterNorm


@dataclasses.dataclass(frozen=True)
class VIbCReg:
    """VICReg with correlations in place of covariances, and with projections that are whitened in groups.

    Iterative normalization ends the expander, over the global batch, each view by itself. The variance term adds that
    of the views, as in the authors' code. Their activation is the ReLU; solo-learn's "gelu".

    Source: Lee & Aune 2021, arXiv:2109.00783, section 3, and the authors' code.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (4096, 4096, 4096)
    activation: str = "relu"
    norm_groups: int = 64  # of the last layer's dimensions, that are whitened together
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 200.0

    views: ClassVar[tuple[str, ...]] = ("view1", "view2")

    def __post_init__(self):
        _common.check_positive(self, "invariance", "variance", "covariance", "norm_groups")
        if self.projector[-1] % self.norm_groups:
            dim = max(round(self.projector[-1] / self.norm_groups), 1) * self.norm_groups
            raise ValueError(
                f"norm_groups={self.norm_groups} does not divide the {self.projector[-1]} dimensions of "
                f"projector={self.projector}; use {(*self.projector[:-1], dim)}"
            )

    @property
    def networks(self) -> dict[str, nn.Module]:
        projector = MLP(
            self.projector,
            activation=self.activation,
            hidden_bias=True,
            output_bias=True,
            kernel_init=torch_init,
        )
        return {"backbone": self.backbone, "projector": projector, "iter_norm": IterNorm(self.norm_groups)}

    @property
    def chance_level(self) -> float:
        """The hinges of both views at no variance, 1 - sqrt(1e-4) each; the other terms are 0."""
        return 2 * 0.99 * self.variance

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z1, z2 = z = outputs["iter_norm"]
        weights = dict(invariance=self.invariance, variance=self.variance, covariance=self.covariance)
        loss = losses.vibcreg(z1, z2, **weights, axis_name=axis_name)
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
