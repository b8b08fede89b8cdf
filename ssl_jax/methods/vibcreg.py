"""VIbCReg."""

import dataclasses
from typing import Annotated

import flax.linen as nn
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, POSITIVE, OneOf
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit.covariance import covariance_bytes
from ssl_jax.models.heads import MLP, torch_init
from ssl_jax.models.norm import IterNorm


@dataclasses.dataclass(frozen=True)
class VIbCReg(Base):
    """VICReg with correlations in place of covariances, and with projections that are whitened in groups.

    The last layer of the expander is iterative normalization over the global batch. Each view passes by itself. The
    variance term is the sum over the views, as in the authors' code.

    Source: Lee & Aune 2021, arXiv:2109.00783, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[
        tuple[int, ...], COUNT, "Widths of the projector's layers; the paper calls it the expander."
    ] = (4096, 4096, 4096)
    activation: Annotated[
        str, OneOf(("relu", "gelu")), "Between the projector's layers: the authors' relu or solo-learn's gelu."
    ] = "relu"
    norm_groups: Annotated[
        int, COUNT, "Groups of the projections' dimensions; the dimensions of a group are whitened together."
    ] = 64
    invariance: Annotated[float, POSITIVE, "Weight of the distance between the views: the paper's lambda."] = 25.0
    variance: Annotated[
        float,
        POSITIVE,
        "Weight of the variance of each dimension: the paper's mu. Without this term all embeddings may become equal.",
    ] = 25.0
    covariance: Annotated[float, POSITIVE, "Weight of the correlation of different dimensions: the paper's nu."] = 200.0

    views = ("view1", "view2")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projector[-1] % self.norm_groups:
            dim = max(round(self.projector[-1] / self.norm_groups), 1) * self.norm_groups
            raise ValueError(
                f"norm_groups={self.norm_groups} does not divide the {self.projector[-1]} dimensions of "
                f"projector={self.projector}; use {(*self.projector[:-1], dim)}"
            )

    @property
    def networks(self) -> toolkit.Networks:
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
        """The hinge of a variance of 0 is 1 - sqrt(1e-4) for each view. The other terms are 0."""
        return 2 * 0.99 * self.variance

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z1, z2 = z = outputs["iter_norm"]
        weights = dict(invariance=self.invariance, variance=self.variance, covariance=self.covariance)
        loss = losses.vibcreg(z1, z2, **weights, axis_name=axis_name)
        return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The correlation of each view is a sum over the global batch, and so are IterNorm's means and covariances.
        dim = self.projector[-1]
        whitening = 4 * dim * (1 + dim // self.norm_groups)
        return Traffic(passes=2, reduced=covariance_bytes(dim, times=2) + 2 * whitening)
