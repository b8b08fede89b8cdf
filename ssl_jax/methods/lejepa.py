"""LeJEPA."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.models.heads import MLP, torch_init

KNOTS = 17  # points at which the characteristic functions are compared


@dataclasses.dataclass(frozen=True)
class LeJEPA(Base):
    """Draws all views to the mean of the global ones, and each view's embeddings to a standard normal distribution.

    loss = (1 - weight) * the mean over views, images and dimensions of (z - mean of the global views)^2
    + weight * the mean over views of `losses.sigreg`. Its directions are new in each step, and the same for all views
    and devices. There is no teacher, no stopped gradient and no schedule. Views of one size pass as one batch.

    Source: Balestriero & LeCun 2025, arXiv:2511.08544, section 5, and the authors' minimal code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 2048, 64)
    num_global: Annotated[int, COUNT, "Large views of each image; the target is their mean."] = 2
    num_local: Annotated[int, NOT_NEGATIVE, "Small views of each image."] = 6
    weight: Annotated[float, SHARE, "Weight of the regularization: the paper's lambda, its only trade-off."] = 0.05
    directions: Annotated[int, COUNT, "Random directions along which the regularization compares distributions."] = 1024

    activation = "relu"  # between the projector's layers

    # chance_level: the loss of equal embeddings depends on where they are.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_global + self.num_local < 2:
            raise ValueError(
                f"num_global={self.num_global} and num_local={self.num_local} views are too few; use two or more in all"
            )

    @property
    def views(self) -> tuple[str, ...]:
        return ("global",) * self.num_global + ("local",) * self.num_local

    @property
    def networks(self) -> toolkit.Networks:
        projector = MLP(
            self.projector, activation=self.activation, hidden_bias=True, output_bias=True, kernel_init=torch_init
        )
        return {"backbone": self.backbone, "projector": projector}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        rng_networks, rng_directions = jax.random.split(rng)
        outputs, batch_stats = toolkit.forward_views(
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
        regularization, metrics = self.regularize(z, directions, axis_name)
        loss = (1.0 - self.weight) * invariance + self.weight * regularization
        return Output(loss, {"batch_stats": batch_stats}, {"invariance": invariance, **metrics}, embeddings=z)

    def regularize(
        self, z: Float[Array, "views batch dim"], directions: Float[Array, "dim directions"], axis_name: str | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """(what keeps the embeddings apart, metrics)"""
        sigreg = jnp.mean(jnp.stack([losses.sigreg(view, directions, knots=KNOTS, axis_name=axis_name) for view in z]))
        return sigreg, {"sigreg": sigreg}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Of each view: the characteristic function, real and imaginary, along each direction.
        numbers = 2 * len(self.views) * KNOTS * self.directions
        return Traffic(passes=2 if self.num_local else 1, reduced=4 * numbers)
