"""Barlow Twins."""

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
class BarlowTwins(Base):
    """Draws the cross-correlation of two views' projections towards the identity.

    Each dimension is to agree between the views, and no two dimensions are to be alike. There is no predictor, no
    stopped gradient and no teacher. Each view passes by itself.

    Source: Zbontar et al. 2021, arXiv:2103.03230, section 2, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (8192, 8192, 8192)
    off_diagonal_weight: Annotated[
        float,
        POSITIVE,
        "Weight of the correlations between different dimensions: 0.0051 in the authors' code, 0.005 in the paper.",
        "Tune it again for another number of dimensions.",
    ] = 0.0051
    loss_scale: Annotated[
        float,
        POSITIVE,
        "Factor of the whole loss; solo-learn has 0.1 for CIFAR.",
        "It changes the steps of optimizers other than Adam and LARS.",
    ] = 1.0

    views = ("view1", "view2")

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": MLP(self.projector, kernel_init=torch_init)}

    @property
    def chance_level(self) -> float:
        """Every correlation is 0, so each dimension adds 1."""
        return self.loss_scale * self.projector[-1]

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
        loss = self.loss_scale * losses.barlow_twins(
            z1, z2, off_diagonal_weight=self.off_diagonal_weight, axis_name=axis_name
        )
        return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The correlation of the two views is a sum over the global batch.
        return Traffic(passes=2, reduced=covariance_bytes(self.projector[-1]))
