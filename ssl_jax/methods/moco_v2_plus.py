"""MoCo v2+, MoCo v2 with both views as queries."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import losses, optim
from ssl_jax.methods import _common, _queue
from ssl_jax.models.heads import moco_head


@dataclasses.dataclass(frozen=True)
class MoCoV2Plus:
    """MoCo v2 whose views are each query and key in turn, with a queue of its own for the keys of either view.

    A query of one view is compared with the key and the queue of the other. The loss is the mean of both directions.
    BatchNorm is the whole batch's, without MoCo's other order for keys. The decay goes from `decay` to `final_decay` by
    half a cosine.

    Source: named in Chen & He 2020, arXiv:2011.10566, table 4, as an improved MoCo v2; the two queues and all settings
    are solo-learn's, whose code has them under this name (solo/methods/mocov2plus.py).
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 256)
    temperature: float = 0.2
    decay: float = 0.99
    final_decay: float = 0.999
    queue_size: int = 65_536  # of each queue

    views: ClassVar[tuple[str, ...]] = ("view", "view")

    def __post_init__(self):
        _common.check_positive(self, "temperature", "queue_size")
        _common.check_share(self, "decay", "final_decay")
        _common.check_queue(self.run, self.queue_size)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": moco_head(self.projector)}

    @property
    def chance_level(self) -> float:
        return math.log(1 + self.queue_size)

    def init(self, rng, images):
        rng_networks, *rng_queues = jax.random.split(rng, 3)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": _common.make_teacher(self.networks, params, batch_stats),
            "queues": [_queue.create(key, self.queue_size, self.projector[-1]) for key in rng_queues],
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        options = dict(axis_name=axis_name, together=False)
        online, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], rng=rng, **options
        )
        targets, teacher = _common.forward_teacher(self.networks, state["teacher"], batch["views"], **options)
        queries, keys, queues = online["projector"], targets["projector"], state["queues"]
        directions = [
            losses.info_nce(
                queries[view],
                keys[1 - view],
                queue=queues[1 - view]["rows"],
                temperature=self.temperature,
                axis_name=axis_name,
            )
            for view in (0, 1)
        ]
        loss = sum(directions) / 2
        queues = [_queue.push(queue, key, axis_name) for queue, key in zip(queues, keys, strict=True)]
        state = {"batch_stats": batch_stats, "teacher": teacher, "queues": queues}
        return loss, (state, {"loss": loss, "embeddings": jnp.stack([queries[0], keys[1]])})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        decay = optim.cosine(self.decay, self.final_decay, step, self.run.steps)
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, decay)}

    backbone_variables = _common.online_backbone
    features = _common.features
