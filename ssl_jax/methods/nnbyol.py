"""NNBYOL."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax

from ssl_jax import losses, optim
from ssl_jax.methods import _common, _queue
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class NNBYOL:
    """BYOL whose target is not the teacher's projection of the other view, but its nearest neighbor among past ones.

    So that a view predicts another image like it. The queue holds projections of first views, of earlier batches;
    one longer than the data set holds those of the same image, too.
    Heads, teacher and the decay's way from `decay` to 1 are BYOL's.

    Source: Dwibedi et al. 2021, arXiv:2104.14548 (the neighbors, in NNCLR); with BYOL's loss as solo-learn has it.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (4096, 256)
    predictor: tuple[int, ...] = (4096, 256)
    decay: float = 0.99
    queue_size: int = 65_536

    views: ClassVar[tuple[str, ...]] = ("view1", "view2")
    chance_level: ClassVar[float] = 0.0  # the loss of equal embeddings: here it is complete collapse

    def __post_init__(self):
        _common.check_predictor(self)
        _common.check_share(self, "decay")
        _common.check_positive(self, "queue_size")
        _common.check_queue(self.run, self.queue_size, of_negatives=False)

    @property
    def teacher_networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": MLP(self.projector, hidden_bias=True)}

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {**self.teacher_networks, "predictor": MLP(self.predictor, hidden_bias=True)}

    def init(self, rng, images):
        rng_networks, rng_queue = jax.random.split(rng)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": _common.make_teacher(self.teacher_networks, params, batch_stats),
            "queue": _queue.create(rng_queue, self.queue_size, self.projector[-1]),
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        online, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = _common.forward_teacher(
            self.teacher_networks, state["teacher"], batch["views"], axis_name=axis_name, together=False
        )
        (p1, p2), (t1, t2) = online["predictor"], targets["projector"]
        near1, near2 = (_queue.nearest(t, state["queue"]["rows"]) for t in (t1, t2))
        cosine = losses.negative_cosine(p1, near2, axis_name=axis_name)
        cosine += losses.negative_cosine(p2, near1, axis_name=axis_name)
        loss = 4.0 + 2.0 * cosine  # BYOL's 2 - 2cos each way
        queue = _queue.push(state["queue"], t1, axis_name)
        state = {"batch_stats": batch_stats, "teacher": teacher, "queue": queue}
        return loss, (state, {"loss": loss, "embeddings": online["projector"]})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        decay = optim.cosine(self.decay, 1.0, step, self.run.steps)
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, decay)}

    backbone_variables = _common.online_backbone
    features = _common.features
