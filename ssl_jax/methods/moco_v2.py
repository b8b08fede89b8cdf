"""MoCo v1 and v2."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import memories
from ssl_jax.models.heads import moco_head


@dataclasses.dataclass(frozen=True)
class MoCoV2(Base):
    """Finds the key of a query's image among a queue of past keys, which a slowly moving encoder has made.

    BatchNorm must not give away which key belongs to which query. So the keys are encoded in another order than the
    queries, and BatchNorm takes its statistics over groups of rows: give model.batch_norm="grouped" and
    model.batch_norm_groups, the number of the authors' devices, 8. The groups are the same on any number of devices.

    With `symmetric` the loss is the sum of both directions, and the keys of both views join the queue, those of the
    first view first.

    Source: He et al. 2019, arXiv:1911.05722, algorithm 1 and section 3.3; v2: Chen et al. 2020, arXiv:2003.04297.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[
        tuple[int, ...], COUNT, "Widths of the projector's layers. (128,) is v1's, one linear layer."
    ] = (2048, 128)
    temperature: Annotated[float, POSITIVE, "Softmax temperature; 0.07 in v1."] = 0.2
    decay: Annotated[float, SHARE, "The teacher's decay."] = 0.999
    queue_size: Annotated[int, COUNT, "Keys in the queue: a multiple of the batch size."] = 65_536
    symmetric: Annotated[bool, "Each view is query and key in turn, as in the authors' CIFAR demonstration."] = False
    shuffle: Annotated[bool, "Encodes the keys in a random order."] = True

    views = ("view", "view")

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_queue(self.schedule, self.queue_size)

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": moco_head(self.projector)}

    @property
    def chance_level(self) -> float:
        return math.log(1 + self.queue_size) * (2 if self.symmetric else 1)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_queue = jax.random.split(rng)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(self.networks, params, batch_stats),
            "queue": memories.create(rng_queue, self.queue_size, self.projector[-1]),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        x1, x2 = batch["views"]
        queries, keys = [x1], [x2]
        if self.symmetric:
            queries, keys = [x1, x2], [x2, x1]
        online, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], queries, axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = toolkit.forward_teacher(
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
        loss = sum(pairs, start=jnp.zeros(()))
        for key in reversed(k):
            queue = memories.push(queue, key, axis_name)
        state = {"batch_stats": batch_stats, "teacher": teacher, "queue": queue}
        return Output(loss, state, {}, embeddings=jnp.stack([q[0], k[0]]))

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, self.decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # In each direction one view passes as queries, the other as keys. The keys' images are gathered for the
        # shuffle. The keys are gathered to be put back in order, and again for the queue.
        directions = 2 if self.symmetric else 1
        images = toolkit.row_bytes(self.schedule.batch_size, math.prod(view))
        keys = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(
            passes=directions,
            teacher_passes=directions,
            grouped=True,
            gathered=directions * (images + 2 * keys if self.shuffle else keys),
            images=self.shuffle,
        )
