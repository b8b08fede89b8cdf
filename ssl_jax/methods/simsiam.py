"""SimSiam."""

import dataclasses
from typing import Annotated

import flax.linen as nn
from jax import lax
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class SimSiam(Base):
    """Predicts, from one view, the network's own projection of the other, which is taken as constant.

    There is no teacher, and there are no negatives. The constant target and the predictor prevent a collapse. Each view
    passes by itself. The predictor's learning rate is not decayed, so that it keeps up with the projections.

    Source: Chen & He 2020, arXiv:2011.10566, algorithm 1 and section 3.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[
        tuple[int, ...],
        COUNT,
        "Widths of the projector's layers. For CIFAR there are two layers.",
    ] = (2048, 2048, 2048)
    predictor: Annotated[
        tuple[int, ...], COUNT, "Widths of the predictor's layers. The last is that of the projector."
    ] = (512, 2048)

    views = ("view", "view")
    chance_level = -1.0
    constant_lr = ("predictor",)

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_predictor(self)

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
        z, (p1, p2) = outputs["projector"], outputs["predictor"]
        t1, t2 = lax.stop_gradient(z)
        cosine = losses.negative_cosine(p1, t2, axis_name=axis_name)
        cosine += losses.negative_cosine(p2, t1, axis_name=axis_name)
        loss = cosine / 2
        return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=2)
