"""Alignment and uniformity on the hypersphere."""

import dataclasses
from typing import ClassVar

import flax.linen as nn

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class Hypersphere:
    """Draws two views of an image together on the sphere, and spreads the images over it as heat would.

    The two effects of a contrastive loss, each by itself. The projector is the authors' fully connected layers; both
    views pass as one batch.

    Source: Wang & Isola 2020, arXiv:2005.10242, section 5, and the authors' code for STL-10.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (4096, 4096, 128)
    uniformity: float = 1.0  # weight; that of the alignment is 1
    t: float = 2.0  # inverse width of the kernel
    alpha: float = 2.0  # power of the distance of two views

    views: ClassVar[tuple[str, ...]] = ("view", "view")
    chance_level: ClassVar[float] = 0.0

    def __post_init__(self):
        _common.check_positive(self, "uniformity", "t", "alpha")

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": MLP(self.projector, output_bias=True)}

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=True
        )
        z1, z2 = z = outputs["projector"]
        loss = losses.hypersphere(z1, z2, t=self.t, weight=self.uniformity, alpha=self.alpha, axis_name=axis_name)
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
