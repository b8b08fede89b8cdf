"""VICReg."""

import dataclasses
from typing import Annotated

import flax.linen as nn
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, POSITIVE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit.covariance import covariance_bytes
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class VICReg(Base):
    """Two views' projections agree, while each dimension varies over the batch and no two vary together.

    Each view passes by itself. The variance term is the mean over the views, as in the authors' code. In the paper it
    is their sum.

    Source: Bardes et al. 2021, arXiv:2105.04906, section 4.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[
        tuple[int, ...], COUNT, "Widths of the projector's layers; the paper calls it the expander."
    ] = (8192, 8192, 8192)
    invariance: Annotated[float, POSITIVE, "Weight of the distance between the views: the paper's lambda."] = 25.0
    variance: Annotated[
        float,
        POSITIVE,
        "Weight of the variance of each dimension: the paper's mu. Without this term all embeddings may become equal.",
    ] = 25.0
    covariance: Annotated[float, POSITIVE, "Weight of the covariance of different dimensions: the paper's nu."] = 1.0

    views = ("view1", "view2")

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": MLP(self.projector, hidden_bias=True, kernel_init=torch_init)}

    @property
    def chance_level(self) -> float:
        """The hinge of a variance of 0 is 1 - sqrt(1e-4). The other terms are 0."""
        return 0.99 * self.variance

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z1, z2 = z = outputs["projector"]
        weights = dict(invariance=self.invariance, variance=self.variance, covariance=self.covariance)
        loss = losses.vicreg(z1, z2, **weights, axis_name=axis_name)
        return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The covariance of each view is a sum over the global batch.
        return Traffic(passes=2, reduced=covariance_bytes(self.projector[-1], times=2))
