"""SMoG: synchronous momentum grouping."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax import losses
from ssl_jax.methods import _common, _kmeans, _queue
from ssl_jax.models.heads import MLP, torch_init, unit


@dataclasses.dataclass(frozen=True)
class SMoG:
    """Predicts which group the teacher's view belongs to, among groups that move with the batch before the loss.

    The gradient flows to the predictions and, through the groups' moves, to the projections. The two views take the
    student's place in turn, step by step. Every `reset_every` steps the groups become the centroids that spherical
    k-means finds among the last `queue_size` projections; with `reset_teacher` the student's weights become the
    teacher's at the same time (lightly's).

    The projections are unit vectors where groups are moved by them, so that they have the centroids' scale. Before the
    first reset the groups are random directions. `local_views`: small crops, which the student sees beside its large
    one: they predict the same group, and move none; the loss is the mean.

    Source: Pang et al. 2022, arXiv:2207.06167, section 3; swaps, cache and resets as in lightly, whose settings are
    not the paper's. There is no source for what the paper's small crops do to the groups.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 128)
    predictor: tuple[int, ...] = (2048, 128)
    groups: int = 3000
    temperature: float = 0.1
    beta: float = 0.99  # the groups' momentum
    decay: float = 0.99  # the teacher's
    queue_size: int = 65_536  # recent projections, for k-means
    reset_every: int = 300  # steps
    reset_teacher: bool = False
    iterations: int = 10  # of k-means
    local_views: int = 0

    def __post_init__(self):
        _common.check_positive(self, "temperature", "queue_size", "reset_every", "iterations")
        _common.check_share(self, "beta", "decay")
        _common.check_predictor(self)
        _common.with_local((), self.local_views)
        _common.check_queue(self.run, self.queue_size, of_negatives=False)
        if not 2 <= self.groups <= self.queue_size:
            raise ValueError(f"groups={self.groups} must be from 2 to queue_size={self.queue_size}, which they are of")
        if self.queue_size > self.reset_every * self.run.batch_size:
            raise ValueError(
                f"queue_size={self.queue_size} is not filled by the {self.reset_every} batches of "
                f"{self.run.batch_size} before the first reset; use {self.reset_every * self.run.batch_size} or less"
            )

    @property
    def views(self) -> tuple[str, ...]:
        return _common.with_local(("view", "view"), self.local_views)

    @property
    def encoder(self) -> dict[str, nn.Module]:
        projector = MLP(self.projector, output_norm="plain", kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {**self.encoder, "predictor": MLP(self.predictor, output_bias=True, kernel_init=torch_init)}

    @property
    def chance_level(self) -> float:
        return math.log(self.groups)

    def init(self, rng, images):
        rng_networks, rng_groups, rng_queue, rng_reset = jax.random.split(rng, 4)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        dim = self.projector[-1]
        return params, {
            "batch_stats": batch_stats,
            "teacher": _common.make_teacher(self.encoder, params, batch_stats),
            "groups": _queue.create_bank(rng_groups, self.groups, dim),
            "queue": _queue.create(rng_queue, self.queue_size, dim),
            "step": jnp.zeros((), jnp.int32),
            "rng": rng_reset,
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        x1, x2, *small = batch["views"]
        swap = state["step"] % 2 == 1
        x1, x2 = jnp.where(swap, x2, x1), jnp.where(swap, x1, x2)
        online, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], [x1, *small], axis_name=axis_name, rng=rng, together=True
        )
        targets, teacher = _common.forward_teacher(
            self.encoder, state["teacher"], [x2], axis_name=axis_name, together=False
        )
        z, (t,) = unit(online["projector"][0]), targets["projector"]
        terms, moved = zip(
            *(
                losses.smog(p, z, t, state["groups"], beta=self.beta, temperature=self.temperature, axis_name=axis_name)
                for p in online["predictor"]
            ),
            strict=True,
        )
        loss, groups = sum(terms) / len(terms), moved[0]
        state = {
            **state,
            "batch_stats": batch_stats,
            "teacher": teacher,
            "groups": groups,
            "queue": _queue.push(state["queue"], z, axis_name),
        }
        return loss, (state, {"loss": loss, "embeddings": jnp.stack([z, unit(t)])})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        reset = step % self.reset_every == 0
        groups = lax.cond(reset, self._cluster, lambda state, _: state["groups"], state, step)
        decay = jnp.where(reset, 0.0, self.decay) if self.reset_teacher else self.decay
        teacher = _common.move_teacher(state["teacher"], params, decay)
        return {**state, "teacher": teacher, "groups": groups, "step": jnp.asarray(step, jnp.int32)}

    def _cluster(self, state, step):
        rng = jax.random.fold_in(state["rng"], step)
        centroids, _ = _kmeans.kmeans(rng, state["queue"]["rows"], self.groups, iterations=self.iterations)
        return centroids

    backbone_variables = _common.online_backbone
    features = _common.features
