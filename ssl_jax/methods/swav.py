"""SwAV."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import memories, prototype_heads, transport


@dataclasses.dataclass(frozen=True)
class SwAV(Base):
    """Predicts from each view the code of another view. The codes share the batch out equally among prototypes.

    The prototypes are parameters. After each step of the optimizer they are scaled to unit vectors again, and they do
    not move for the first `freeze_steps`. The two large crops have codes. Small crops only predict.

    The queue is for batches that are small beside the number of prototypes. From step `queue_start` on, it keeps the
    projections of the large crops, each crop its own. Once the queue is full, its rows take part in the Sinkhorn
    iterations, with their scores for the current prototypes, but not in the loss.

    A loss that stays at `chance_level` is a collapse. A smaller epsilon (0.03), fewer prototypes (some ten a class) or
    a longer freeze helps.

    Source: Caron et al. 2020, arXiv:2006.09882, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 128)
    prototypes: Annotated[int, Range(2), "Number of prototypes."] = 3000
    local_views: Annotated[int, NOT_NEGATIVE, "Small crops of each image, beside the two large ones."] = 6
    temperature: Annotated[float, POSITIVE, "Softmax temperature of the predictions."] = 0.1
    epsilon: Annotated[float, POSITIVE, "Weight of the codes' entropy: towards 0 the codes become hard."] = 0.05
    iterations: Annotated[int, COUNT, "Sinkhorn iterations for the codes."] = 3
    freeze_steps: Annotated[
        int,
        NOT_NEGATIVE,
        "Steps before the prototypes move. One epoch has 313 steps with batches of 4096, 5005 with batches of 256.",
    ] = 313
    queue_size: Annotated[int, NOT_NEGATIVE, "Past projections kept for each of the two large crops; 0: no queue."] = 0
    queue_start: Annotated[int, NOT_NEGATIVE, "Step from which on projections join the queue."] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_queue(self.schedule, self.queue_size)

    @property
    def views(self) -> tuple[str, ...]:
        return prototype_heads.views(self.local_views)

    @property
    def networks(self) -> toolkit.Networks:
        return prototype_heads.networks(self.backbone, self.projector)

    @property
    def frozen_steps(self) -> Mapping[str, int]:
        return {"prototypes": self.freeze_steps}

    @property
    def chance_level(self) -> float:
        return math.log(self.prototypes)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_prototypes, rng_queue = jax.random.split(rng, 3)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        params["prototypes"] = prototype_heads.create(rng_prototypes, self.prototypes, self.projector[-1])
        state: dict[str, Any] = {"batch_stats": batch_stats}
        if self.queue_size:
            queues = [memories.create(key, self.queue_size, self.projector[-1]) for key in jax.random.split(rng_queue)]
            zero = jnp.zeros((), jnp.int32)
            state |= {"queues": queues, "step": zero, "pushed": jnp.zeros_like(zero)}
        return params, state

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        z, batch_stats = prototype_heads.forward(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng
        )
        scores = prototype_heads.scores(z, params["prototypes"])

        def swav(queue_scores: Float[Array, "2 queue prototypes"] | None = None) -> Float[Array, ""]:
            return losses.swav(
                scores[:2],
                scores[2:] if self.local_views else None,
                queue_scores=queue_scores,
                temperature=self.temperature,
                epsilon=self.epsilon,
                iterations=self.iterations,
                axis_name=axis_name,
            )

        if not self.queue_size:
            loss = swav()
            return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z[:2])
        queues, pushed = state["queues"], state["pushed"]
        rows = jnp.stack([queue["rows"] for queue in queues])
        loss = lax.cond(
            pushed >= self.queue_size,
            lambda: swav(lax.stop_gradient(prototype_heads.scores(rows, params["prototypes"]))),
            swav,
        )
        longer = [memories.push(queue, z[crop], axis_name) for crop, queue in enumerate(queues)]
        queues, pushed = jax.tree.map(
            lambda new, old: jnp.where(state["step"] >= self.queue_start, new, old),
            (longer, jnp.minimum(pushed + ops.num_rows(z[0], axis_name), self.queue_size)),
            (queues, pushed),
        )
        state = {**state, "batch_stats": batch_stats, "queues": queues, "pushed": pushed}
        return Output(loss, state, {}, embeddings=z[:2])

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return {**state, "step": step} if self.queue_size else state

    def constrain(self, params: Params) -> Params:
        return prototype_heads.constrain(params)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Sinkhorn's iterations are over the global batch, for each large crop. With a queue, the projections of both
        # crops are gathered for it; once it is full their scores, for iterations that every device makes by itself.
        passes = prototype_heads.passes(self.local_views)
        sinkhorn = 2 * transport.sinkhorn_bytes(self.prototypes, self.iterations)
        width = self.projector[-1] + self.prototypes if self.queue_size else 0
        gathered = 2 * toolkit.row_bytes(self.schedule.batch_size, width)
        return Traffic(passes=passes, reduced=sinkhorn, gathered=gathered)
