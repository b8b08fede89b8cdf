"""FroSSL."""

import dataclasses
from typing import ClassVar

import flax.linen as nn

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class FroSSL:
    """Flattens the spectrum of each view's covariance, by its Frobenius norm, and draws the views to their mean.

    For any number of views. The loss is that of solo-learn, to which the authors gave it: projections are not centered,
    and each dimension is scaled to length 1 over the batch. Each view passes by itself.

    Source: Skean et al. 2023, arXiv:2310.02903, section 4.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 2048, 1024)
    num_views: int = 2
    invariance: float = 1.0  # weight of the views' distance to their mean

    chance_level: ClassVar[float] = 0.0  # log of the Frobenius norm of a matrix of rank and trace 1

    def __post_init__(self):
        if self.num_views < 2:
            raise ValueError(f"num_views must be at least 2, got {self.num_views}")

    @property
    def views(self) -> tuple[str, ...]:
        return ("view",) * self.num_views

    @property
    def networks(self) -> dict[str, nn.Module]:
        projector = MLP(self.projector, hidden_bias=True, output_bias=True, kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z = outputs["projector"]
        loss = losses.frossl(z, invariance=self.invariance, axis_name=axis_name)
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
