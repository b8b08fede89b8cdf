"""Barlow Twins."""

import dataclasses
from typing import ClassVar

import flax.linen as nn

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class BarlowTwins:
    """Draws the cross-correlation of two views' projections, dimension by dimension, towards the identity.

    The same dimensions agree between the views and different ones do not: no predictor, stopped gradient or teacher.
    Each view passes by itself.

    Source: Zbontar et al. 2021, arXiv:2103.03230, section 2; off_diagonal_weight as in the authors' code (the paper:
    0.005).
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (8192, 8192, 8192)
    off_diagonal_weight: float = 0.0051  # to be tuned anew for another number of dimensions
    loss_scale: float = 1.0  # solo-learn's 0.1 for CIFAR: not the same for optimizers other than Adam and LARS

    views: ClassVar[tuple[str, ...]] = ("view1", "view2")

    def __post_init__(self):
        _common.check_positive(self, "off_diagonal_weight", "loss_scale")

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": MLP(self.projector, kernel_init=torch_init)}

    @property
    def chance_level(self) -> float:
        """Every correlation is 0: each dimension adds 1."""
        return self.loss_scale * self.projector[-1]

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z1, z2 = z = outputs["projector"]
        loss = self.loss_scale * losses.barlow_twins(
            z1, z2, off_diagonal_weight=self.off_diagonal_weight, axis_name=axis_name
        )
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
