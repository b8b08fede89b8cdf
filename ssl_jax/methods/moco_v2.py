"""MoCo v1 and v2."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import losses
from ssl_jax.methods import _common, _queue
from ssl_jax.models.heads import moco_head


@dataclasses.dataclass(frozen=True)
class MoCoV2:
    """Finds the key of a query's image among a queue of past keys, which a slowly moving encoder has made.

    So that BatchNorm cannot tell which key belongs to which query, the keys are encoded in another order than the
    queries, with statistics over groups of rows: give model.batch_norm="grouped" and model.batch_norm_groups (the
    authors' devices; 8), which gives the same on any number of devices. `shuffle` is the permutation.

    Source: He et al. 2019, arXiv:1911.05722, algorithm 1 and section 3.3; v2: Chen et al. 2020, arXiv:2003.04297.
    v1's head is one linear layer, projector=(128,), its temperature 0.07. `symmetric`: each view is query and key in
    turn, as in the authors' CIFAR demonstration. The loss is the sum of both directions, and the keys of both views
    join the queue, those of the first view first.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 128)
    temperature: float = 0.2
    decay: float = 0.999
    queue_size: int = 65_536
    symmetric: bool = False
    shuffle: bool = True

    views: ClassVar[tuple[str, ...]] = ("view", "view")

    def __post_init__(self):
        _common.check_positive(self, "temperature", "queue_size")
        _common.check_share(self, "decay")
        _common.check_queue(self.run, self.queue_size)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": moco_head(self.projector)}

    @property
    def chance_level(self) -> float:
        return math.log(1 + self.queue_size) * (2 if self.symmetric else 1)

    def init(self, rng, images):
        rng_networks, rng_queue = jax.random.split(rng)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": _common.make_teacher(self.networks, params, batch_stats),
            "queue": _queue.create(rng_queue, self.queue_size, self.projector[-1]),
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        x1, x2 = batch["views"]
        queries, keys = [x1], [x2]
        if self.symmetric:
            queries, keys = [x1, x2], [x2, x1]
        online, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], queries, axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = _common.forward_teacher(
            self.networks,
            state["teacher"],
            keys,
            axis_name=axis_name,
            together=False,
            shuffle=rng if self.shuffle else None,
        )
        q, k, queue = online["projector"], targets["projector"], state["queue"]
        pairs = [
            losses.info_nce(query, key, queue=queue["rows"], temperature=self.temperature, axis_name=axis_name)
            for query, key in zip(q, k, strict=True)
        ]
        loss = sum(pairs)
        for key in reversed(k):
            queue = _queue.push(queue, key, axis_name)
        state = {"batch_stats": batch_stats, "teacher": teacher, "queue": queue}
        return loss, (state, {"loss": loss, "embeddings": jnp.stack([q[0], k[0]])})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, self.decay)}

    backbone_variables = _common.online_backbone
    features = _common.features
