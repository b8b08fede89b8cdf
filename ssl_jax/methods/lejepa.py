"""LeJEPA."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class LeJEPA:
    """Draws all views to the mean of the global ones, and each view's embeddings to a standard normal distribution.

    loss = (1 - weight) * the mean over views, images and dimensions of (z - mean of the global views)^2
    + weight * the mean over views of `losses.sigreg`, on directions that are new in each step and the same for all
    views and devices. No teacher, no stopped gradient, no schedule. Views of one size pass as one batch.

    Source: Balestriero & LeCun 2025, arXiv:2511.08544, section 5, and the authors' minimal code.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 2048, 64)
    num_global: int = 2
    num_local: int = 6
    weight: float = 0.05  # of the regularization: the paper's lambda, its one trade-off
    directions: int = 1024

    chance_level: ClassVar[None] = None  # of equal embeddings the loss depends on where they are

    def __post_init__(self):
        _common.check_positive(self, "num_global", "directions")
        _common.check_share(self, "weight")
        if self.num_local < 0 or self.num_global + self.num_local < 2:
            raise ValueError(
                f"num_global={self.num_global} and num_local={self.num_local} views are too few; use two or more in all"
            )

    @property
    def views(self) -> tuple[str, ...]:
        return ("global",) * self.num_global + ("local",) * self.num_local

    @property
    def networks(self) -> dict[str, nn.Module]:
        projector = MLP(self.projector, hidden_bias=True, output_bias=True, kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        rng_networks, rng_directions = jax.random.split(rng)
        outputs, batch_stats = _common.forward_views(
            self.networks,
            params,
            state["batch_stats"],
            batch["views"],
            axis_name=axis_name,
            rng=rng_networks,
            together=True,
        )
        z = outputs["projector"]  # [views, batch, dim]
        invariance = jnp.mean((z - jnp.mean(z[: self.num_global], axis=0)) ** 2)
        directions = jax.random.normal(rng_directions, (z.shape[-1], self.directions))
        sigreg = jnp.mean(jnp.stack([losses.sigreg(view, directions, axis_name=axis_name) for view in z]))
        loss = (1.0 - self.weight) * invariance + self.weight * sigreg
        metrics = {"loss": loss, "embeddings": z, "invariance": invariance, "sigreg": sigreg}
        return loss, ({"batch_stats": batch_stats}, metrics)

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
