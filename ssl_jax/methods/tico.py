"""TiCo."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax import losses, optim
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class TiCo:
    """Agrees with a slowly moving teacher's projection of the other view, away from where projections were of late.

    That is kept as the running second moment of the online projections, [dim, dim] in the state, zeros at first, and
    constant in the loss. The teacher is BYOL's, with no predictor before it; its decay goes from `decay` by half a
    cosine to 1. `symmetric`: each view is the online network's and the teacher's in turn, the second with the second
    moment after the first; the loss is the mean. The paper's algorithm has one direction.

    Source: Zhu et al. 2022, arXiv:2206.10698, section 3.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (4096, 256)
    beta: float = 0.9  # decay of the second moment
    rho: float = 8.0  # weight of the contrast
    decay: float = 0.99
    symmetric: bool = False

    views: ClassVar[tuple[str, ...]] = ("view1", "view2")

    def __post_init__(self):
        _common.check_positive(self, "rho")
        _common.check_share(self, "beta", "decay")

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": MLP(self.projector, hidden_bias=True)}

    @property
    def chance_level(self) -> float:
        """The views agree, and all along one direction."""
        return self.rho

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        dim = self.projector[-1]
        return params, {
            "batch_stats": batch_stats,
            "teacher": _common.make_teacher(self.networks, params, batch_stats),
            "covariance": jnp.zeros((dim, dim)),
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        x1, x2 = batch["views"]
        seen, aimed_at = [x1], [x2]
        if self.symmetric:
            seen, aimed_at = [x1, x2], [x2, x1]
        online, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], seen, axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = _common.forward_teacher(
            self.networks, state["teacher"], aimed_at, axis_name=axis_name, together=False
        )
        z, t, covariance = online["projector"], targets["projector"], state["covariance"]
        directions = []
        for pair in zip(z, t, strict=True):
            one, covariance = losses.tico(*pair, covariance, beta=self.beta, rho=self.rho, axis_name=axis_name)
            directions.append(one)
        loss = sum(directions) / len(directions)
        state = {"batch_stats": batch_stats, "teacher": teacher, "covariance": covariance}
        return loss, (state, {"loss": loss, "embeddings": jnp.stack([z[0], t[0]])})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        decay = optim.cosine(self.decay, 1.0, step, self.run.steps)
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, decay)}

    backbone_variables = _common.online_backbone
    features = _common.features
