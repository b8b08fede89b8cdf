"""FroSSL."""

import dataclasses
from typing import Annotated

import flax.linen as nn
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit.covariance import covariance_bytes
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class FroSSL(Base):
    """Flattens the spectrum of each view's covariance, by its Frobenius norm, and draws the views to their mean.

    It takes any number of views, and each passes by itself. The loss is the one that the authors gave to solo-learn:
    projections are not centered, and each dimension is scaled to length 1 over the batch.

    Source: Skean et al. 2023, arXiv:2310.02903, section 4.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 2048, 1024)
    num_views: Annotated[int, Range(2), "Views of each image."] = 2
    invariance: Annotated[float, NOT_NEGATIVE, "Weight of the views' distance to their mean; the paper's is 1."] = 1.0

    chance_level = 0.0  # log of the Frobenius norm of a matrix of rank and trace 1

    @property
    def views(self) -> tuple[str, ...]:
        return ("view",) * self.num_views

    @property
    def networks(self) -> toolkit.Networks:
        projector = MLP(self.projector, hidden_bias=True, output_bias=True, kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z = outputs["projector"]
        loss = losses.frossl(z, invariance=self.invariance, axis_name=axis_name)
        return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Each view's second moment is a sum over the global batch. Where the batch has fewer rows than dimensions, the
        # rows are gathered in its place and their gradient is scattered; the length of each dimension is still a sum.
        dim, batch_size = self.projector[-1], self.schedule.batch_size
        if dim <= batch_size:
            return Traffic(passes=self.num_views, reduced=covariance_bytes(dim, times=self.num_views))
        rows = self.num_views * toolkit.row_bytes(batch_size, dim)
        lengths = 2 * self.num_views * 4 * dim  # forward and backward
        return Traffic(passes=self.num_views, reduced=lengths, gathered=rows, scattered=rows)
