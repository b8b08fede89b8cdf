"""ReSSL."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import losses, optim
from ssl_jax.methods import _common, _queue
from ssl_jax.models.heads import moco_head


@dataclasses.dataclass(frozen=True)
class ReSSL:
    """Matches a view's likeness to past keys with the sharper one that a slowly moving teacher sees of a weak view.

    The teacher's view is cropped and flipped only. Its key joins the queue afterwards, and is never compared with
    itself, so that nothing is pushed apart; what prevents collapse is that `target_temperature` is below `temperature`.
    `students`: how many views the student has, of sizes of their own (config.augment.student, student_2, ...), each of
    which passes by itself and is to match the teacher's; the loss is their mean.

    The decay goes from `decay` to `final_decay` by half a cosine; the authors' is constant.

    As in MoCo, keys are encoded in another order than queries, with BatchNorm over groups of rows: give
    model.batch_norm="grouped" and model.batch_norm_groups (the authors' devices; 8). `shuffle` is the permutation.

    Source: Zheng et al. 2021, arXiv:2107.09282, section 3.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (4096, 512)
    temperature: float = 0.1
    target_temperature: float = 0.04
    decay: float = 0.999
    final_decay: float = 0.999
    queue_size: int = 131_072
    shuffle: bool = True
    students: int = 1

    def __post_init__(self):
        _common.check_positive(self, "temperature", "target_temperature", "queue_size", "students")
        _common.check_share(self, "decay", "final_decay")
        _common.check_queue(self.run, self.queue_size, of_negatives=False)
        if self.target_temperature >= self.temperature:
            raise ValueError(
                f"target_temperature={self.target_temperature} is not below temperature={self.temperature}, with which "
                f"all embeddings become equal; use {0.4 * self.temperature:g}, the paper's share"
            )

    @property
    def views(self) -> tuple[str, ...]:
        return ("student", "teacher", *(f"student_{number}" for number in range(2, self.students + 1)))

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": moco_head(self.projector)}

    @property
    def chance_level(self) -> float:
        return math.log(self.queue_size)  # the queue's embeddings being equal, too

    def init(self, rng, images):
        rng_networks, rng_queue = jax.random.split(rng)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": _common.make_teacher(self.networks, params, batch_stats),
            "queue": _queue.create(rng_queue, self.queue_size, self.projector[-1]),
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        strong, weak, *others = batch["views"]
        online, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], [strong, *others], axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = _common.forward_teacher(
            self.networks,
            state["teacher"],
            [weak],
            axis_name=axis_name,
            together=False,
            shuffle=rng if self.shuffle else None,
        )
        q, (k,), queue = online["projector"], targets["projector"], state["queue"]
        terms = [
            losses.ressl(
                query,
                k,
                queue["rows"],
                temperature=self.temperature,
                target_temperature=self.target_temperature,
                axis_name=axis_name,
            )
            for query in q
        ]
        loss = sum(terms) / len(terms)
        state = {"batch_stats": batch_stats, "teacher": teacher, "queue": _queue.push(queue, k, axis_name)}
        return loss, (state, {"loss": loss, "embeddings": jnp.stack([q[0], k])})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        decay = optim.cosine(self.decay, self.final_decay, step, self.run.steps)
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, decay)}

    backbone_variables = _common.online_backbone
    features = _common.features
