"""MoCo v2+: MoCo v2 with both views as queries."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import memories
from ssl_jax.models.heads import moco_head


@dataclasses.dataclass(frozen=True)
class MoCoV2Plus(Base):
    """MoCo v2 in which each view is query and key in turn, with a queue for the keys of each view.

    A query of one view is compared with the key and the queue of the other view. The loss is the mean of both
    directions. BatchNorm's statistics are of the whole batch, and the keys have the queries' order, unlike MoCo's. The
    decay goes from `decay` to `final_decay` by half a cosine.

    Source: Chen & He 2020, arXiv:2011.10566, table 4, name it as an improved MoCo v2. The two queues and all settings
    are from solo-learn's code of this name, solo/methods/mocov2plus.py.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 256)
    temperature: Annotated[float, POSITIVE, "Softmax temperature."] = 0.2
    decay: Annotated[float, SHARE, "The teacher's decay at the start."] = 0.99
    final_decay: Annotated[float, SHARE, "The teacher's decay at the end."] = 0.999
    queue_size: Annotated[int, COUNT, "Keys in each of the two queues: a multiple of the batch size."] = 65_536

    views = ("view", "view")

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_queue(self.schedule, self.queue_size)

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": moco_head(self.projector)}

    @property
    def chance_level(self) -> float:
        return math.log(1 + self.queue_size)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, *rng_queues = jax.random.split(rng, 3)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(self.networks, params, batch_stats),
            "queues": [memories.create(key, self.queue_size, self.projector[-1]) for key in rng_queues],
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        online, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = toolkit.forward_teacher(
            self.networks, state["teacher"], batch["views"], axis_name=axis_name, together=False
        )
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
        loss = sum(directions, start=jnp.zeros(())) / 2
        queues = [memories.push(queue, key, axis_name) for queue, key in zip(queues, keys, strict=True)]
        state = {"batch_stats": batch_stats, "teacher": teacher, "queues": queues}
        return Output(loss, state, {}, embeddings=jnp.stack([queries[0], keys[1]]))

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, self.final_decay, step, self.schedule.steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The keys of both views are gathered for their queues.
        keys = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(passes=2, teacher_passes=2, gathered=2 * keys)
