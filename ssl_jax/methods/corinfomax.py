"""CorInfoMax."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, POSITIVE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit.covariance import covariance_bytes
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class CorInfoMax(Base):
    """Two views' projections agree, while the determinant of each view's running covariance is large.

    So the projections fill all dimensions. Each view passes by itself, and has its own mean and covariance, which
    remember a share `memory` of those of the step before. The covariance starts as the identity.

    Source: Ozsoy et al. 2022, arXiv:2209.07999, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[
        tuple[int, ...], COUNT, "Widths of the projector's layers. The last should be at most the batch size."
    ] = (8192, 8192, 512)
    attraction: Annotated[float, POSITIVE, "Weight of the distance between the views: the paper's alpha."] = 2000.0
    memory: Annotated[
        float,
        Range(0.0, 1.0, below=True),
        "Share of the old mean and covariance in the new ones: the authors' forgetting factor.",
    ] = 0.1
    eps: Annotated[float, POSITIVE, "Added to the diagonal of the covariance."] = 1e-8

    views = ("view1", "view2")

    @property
    def networks(self) -> toolkit.Networks:
        projector = MLP(self.projector, hidden_bias=True, kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        dim = self.projector[-1]
        return params, {
            "batch_stats": batch_stats,
            "mean": jnp.zeros((2, dim)),
            "covariance": jnp.stack([jnp.eye(dim)] * 2),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z = outputs["projector"]
        loss, mean, covariance = losses.corinfomax(
            z[0],
            z[1],
            state["mean"],
            state["covariance"],
            attraction=self.attraction,
            memory=self.memory,
            eps=self.eps,
            axis_name=axis_name,
        )
        state = {"batch_stats": batch_stats, "mean": mean, "covariance": covariance}
        return Output(loss, state, {}, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=2, reduced=covariance_bytes(self.projector[-1], times=2))
