"""SwAV."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax import losses
from ssl_jax.methods import _common, _prototypes, _queue


@dataclasses.dataclass(frozen=True)
class SwAV:
    """Predicts from each view the code of another: how the batch is shared out equally among prototypes.

    The prototypes are trained parameters, unit vectors again after each step of the optimizer, and do not move for the
    first `freeze_steps`. Codes are those of the two large crops; small ones only predict.

    The queue is for batches that are small beside the number of prototypes: it keeps the large crops' projections, each
    crop its own, from step `queue_start` on. Once it is full, they are compared with the prototypes as these are by
    then and take part in the Sinkhorn iterations, though not in the loss.

    A loss that stays at `chance_level` is a collapse: a smaller epsilon (0.03), fewer prototypes (some ten a class) or
    a longer freeze help.

    Source: Caron et al. 2020, arXiv:2006.09882, section 3, and the authors' code.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 128)
    prototypes: int = 3000
    local_views: int = 6
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    freeze_steps: int = 313  # an epoch of batches of 4096; 5005 are one of batches of 256
    queue_size: int = 0  # of each of the two crops; 0: none
    queue_start: int = 0

    def __post_init__(self):
        _common.check_positive(self, "temperature", "epsilon", "iterations")
        _prototypes.check_local_views(self.local_views)
        _common.check_queue(self.run, self.queue_size)
        if self.prototypes < 2:
            raise ValueError(f"prototypes must be at least 2, for there to be a choice, got {self.prototypes}")
        if min(self.queue_size, self.queue_start, self.freeze_steps) < 0:
            raise ValueError(
                "queue_size, queue_start and freeze_steps must be at least 0, "
                f"got {self.queue_size}, {self.queue_start}, {self.freeze_steps}"
            )

    @property
    def views(self) -> tuple[str, ...]:
        return _prototypes.views(self.local_views)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return _prototypes.networks(self.backbone, self.projector)

    @property
    def frozen_steps(self) -> dict[str, int]:
        return {"prototypes": self.freeze_steps}

    @property
    def chance_level(self) -> float:
        return math.log(self.prototypes)

    def init(self, rng, images):
        rng_networks, rng_prototypes, rng_queue = jax.random.split(rng, 3)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        params["prototypes"] = _prototypes.create(rng_prototypes, self.prototypes, self.projector[-1])
        state = {"batch_stats": batch_stats}
        if self.queue_size:
            queues = [_queue.create(key, self.queue_size, self.projector[-1]) for key in jax.random.split(rng_queue)]
            zero = jnp.zeros((), jnp.int32)
            state |= {"queues": queues, "step": zero, "pushed": jnp.zeros_like(zero)}
        return params, state

    def loss(self, params, state, batch, rng, *, axis_name=None):
        z, batch_stats = _prototypes.forward(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng
        )
        scores = _prototypes.scores(z, params["prototypes"])

        def swav(queue_scores=None):
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
            return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z[:2]})
        queues, pushed = state["queues"], state["pushed"]
        rows = jnp.stack([queue["rows"] for queue in queues])
        loss = lax.cond(
            pushed >= self.queue_size,
            lambda: swav(lax.stop_gradient(_prototypes.scores(rows, params["prototypes"]))),
            swav,
        )
        longer = [_queue.push(queue, z[crop], axis_name) for crop, queue in enumerate(queues)]
        queues, pushed = jax.tree.map(
            lambda new, old: jnp.where(state["step"] >= self.queue_start, new, old),
            (longer, jnp.minimum(pushed + _common.num_rows(z[0], axis_name), self.queue_size)),
            (queues, pushed),
        )
        state = {**state, "batch_stats": batch_stats, "queues": queues, "pushed": pushed}
        return loss, (state, {"loss": loss, "embeddings": z[:2]})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        return {**state, "step": step} if self.queue_size else state

    constrain = _prototypes.constrain
    backbone_variables = _common.online_backbone
    features = _common.features
