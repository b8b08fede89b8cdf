"""BYOL."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn

from ssl_jax import losses, optim
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class BYOL:
    """Predicts, from one view, a slowly moving teacher's projection of the other.

    The teacher starts as a copy of the online network (the authors' code draws its own weights) and runs BatchNorm on
    its own batches, each view by itself. Its decay goes from `decay` by half a cosine to 1.

    Source: Grill et al. 2020, arXiv:2006.07733, section 3.1 and appendix F.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (4096, 256)
    predictor: tuple[int, ...] = (4096, 256)
    decay: float = 0.996  # for 1000 epochs; 0.99 for 300 and 100

    views: ClassVar[tuple[str, ...]] = ("view1", "view2")
    chance_level: ClassVar[float] = 0.0  # the loss of equal embeddings: here it is complete collapse

    def __post_init__(self):
        _common.check_share(self, "decay")

    @property
    def teacher_networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": MLP(self.projector, hidden_bias=True)}

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {**self.teacher_networks, "predictor": MLP(self.predictor, hidden_bias=True)}

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        teacher = _common.make_teacher(self.teacher_networks, params, batch_stats)
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        online, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = _common.forward_teacher(
            self.teacher_networks, state["teacher"], batch["views"], axis_name=axis_name, together=False
        )
        (p1, p2), (t1, t2) = online["predictor"], targets["projector"]
        cosine = losses.negative_cosine(p1, t2, axis_name=axis_name)
        cosine += losses.negative_cosine(p2, t1, axis_name=axis_name)
        loss = 4.0 + 2.0 * cosine  # the paper's 2 - 2cos each way
        state = {"batch_stats": batch_stats, "teacher": teacher}
        return loss, (state, {"loss": loss, "embeddings": online["projector"]})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        decay = optim.cosine(self.decay, 1.0, step, self.run.steps)
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, decay)}

    backbone_variables = _common.online_backbone
    features = _common.features
