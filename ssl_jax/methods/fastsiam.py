"""FastSiam."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class FastSiam(Base):
    """SimSiam with several views: each predicts the mean projection of the others.

    The mean is a steadier target, so small batches and few epochs are enough. The projections are averaged as they are,
    not normalized. The heads and the predictor's constant learning rate are SimSiam's. With two views it is SimSiam.

    Source: Pototzky et al. 2022, "FastSiam: Resource-Efficient Self-supervised Learning on a Single GPU" (GCPR).
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 2048, 2048)
    predictor: Annotated[
        tuple[int, ...], COUNT, "Widths of the predictor's layers. The last is that of the projector."
    ] = (512, 2048)
    num_views: Annotated[int, Range(2), "Views of each image. Each one predicts the others."] = 4

    chance_level = -1.0
    constant_lr = ("predictor",)

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_predictor(self)

    @property
    def views(self) -> tuple[str, ...]:
        return ("view",) * self.num_views

    @property
    def networks(self) -> toolkit.Networks:
        return {
            "backbone": self.backbone,
            "projector": MLP(self.projector, output_norm="plain", kernel_init=torch_init),
            "predictor": MLP(self.predictor, output_bias=True, kernel_init=torch_init),
        }

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z, p = outputs["projector"], outputs["predictor"]
        # For each view, the mean of the others.
        targets = lax.stop_gradient((jnp.sum(z, axis=0) - z) / (self.num_views - 1))
        cosines = [losses.negative_cosine(*pair, axis_name=axis_name) for pair in zip(p, targets, strict=True)]
        loss = sum(cosines[1:], start=cosines[0]) / self.num_views
        return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=self.num_views)
