"""TiCo."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class TiCo(Base):
    """Agrees with a slowly moving teacher's projection of the other view, away from where projections were of late.

    The state has the running second moment of the online projections, [dim, dim], which says where they were. It is
    zeros at first, and a constant in the loss. The teacher is BYOL's, without a predictor before it. Its decay goes
    from `decay` by half a cosine to 1.

    Source: Zhu et al. 2022, arXiv:2206.10698, section 3.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (4096, 256)
    beta: Annotated[float, SHARE, "Decay of the second moment."] = 0.9
    rho: Annotated[float, POSITIVE, "Weight of the contrast."] = 8.0
    decay: Annotated[float, SHARE, "The teacher's decay at the start."] = 0.99
    symmetric: Annotated[
        bool,
        "The loss is the mean of both directions. The second one has the second moment after the first. "
        "The paper's algorithm has one direction.",
    ] = False

    views = ("view1", "view2")

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": MLP(self.projector, hidden_bias=True)}

    @property
    def chance_level(self) -> float:
        """The loss where the views agree, and all embeddings point in one direction."""
        return self.rho

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        dim = self.projector[-1]
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(self.networks, params, batch_stats),
            "covariance": jnp.zeros((dim, dim)),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        x1, x2 = batch["views"]
        seen, aimed_at = [x1], [x2]
        if self.symmetric:
            seen, aimed_at = [x1, x2], [x2, x1]
        online, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], seen, axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = toolkit.forward_teacher(
            self.networks, state["teacher"], aimed_at, axis_name=axis_name, together=False
        )
        z, t, covariance = online["projector"], targets["projector"], state["covariance"]
        directions = []
        for pair in zip(z, t, strict=True):
            one, covariance = losses.tico(*pair, covariance, beta=self.beta, rho=self.rho, axis_name=axis_name)
            directions.append(one)
        loss = sum(directions, start=jnp.zeros(())) / len(directions)
        state = {"batch_stats": batch_stats, "teacher": teacher, "covariance": covariance}
        return Output(loss, state, {}, embeddings=jnp.stack([z[0], t[0]]))

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Each direction sums its second moment over the devices.
        directions = 2 if self.symmetric else 1
        return Traffic(passes=directions, teacher_passes=directions, reduced=4 * directions * self.projector[-1] ** 2)
