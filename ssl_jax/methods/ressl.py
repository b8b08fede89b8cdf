"""ReSSL."""

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
class ReSSL(Base):
    """Matches how like a view is to past keys with the sharper likeness that a slowly moving teacher sees.

    The teacher's view is only cropped and flipped. Its key joins the queue after the loss, and is never compared with
    itself. So nothing is pushed apart. What prevents collapse is that `target_temperature` is below `temperature`.

    The student's views have augmentations of their own: config.augment.student, student_2 and so on. Each passes by
    itself and is to match the teacher's. The loss is their mean.

    The decay goes from `decay` to `final_decay` by half a cosine. The authors' decay is constant.

    As in MoCo, the keys are encoded in another order than the queries, and BatchNorm takes its statistics over groups
    of rows: give model.batch_norm="grouped" and model.batch_norm_groups, the number of the authors' devices, 8.

    Source: Zheng et al. 2021, arXiv:2107.09282, section 3.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (4096, 512)
    temperature: Annotated[float, POSITIVE, "Softmax temperature of the student."] = 0.1
    target_temperature: Annotated[float, POSITIVE, "Softmax temperature of the teacher, below the student's."] = 0.04
    decay: Annotated[float, SHARE, "The teacher's decay at the start."] = 0.999
    final_decay: Annotated[float, SHARE, "The teacher's decay at the end."] = 0.999
    queue_size: Annotated[int, COUNT, "Keys in the queue: a multiple of the batch size."] = 131_072
    shuffle: Annotated[bool, "Encodes the keys in a random order."] = True
    students: Annotated[int, COUNT, "Views of the student."] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_queue(self.schedule, self.queue_size, of_negatives=False)
        if self.target_temperature >= self.temperature:
            raise ValueError(
                f"target_temperature={self.target_temperature} must be below "
                f"temperature={self.temperature}, because otherwise all embeddings become equal; use "
                f"{0.4 * self.temperature:g}, the paper's ratio"
            )

    @property
    def views(self) -> tuple[str, ...]:
        return ("student", "teacher", *(f"student_{number}" for number in range(2, self.students + 1)))

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": moco_head(self.projector)}

    @property
    def chance_level(self) -> float:
        return math.log(self.queue_size)  # where the queue's embeddings are equal, too

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
        strong, weak, *others = batch["views"]
        online, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], [strong, *others], axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = toolkit.forward_teacher(
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
        loss = sum(terms, start=jnp.zeros(())) / len(terms)
        state = {"batch_stats": batch_stats, "teacher": teacher, "queue": memories.push(queue, k, axis_name)}
        return Output(loss, state, {}, embeddings=jnp.stack([q[0], k]))

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, self.final_decay, step, self.schedule.steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The teacher's images are gathered for the shuffle; their size is the first student's. The keys are gathered to
        # be put back in order, and again for the queue.
        images = toolkit.row_bytes(self.schedule.batch_size, math.prod(view))
        keys = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(
            passes=self.students,
            teacher_passes=1,
            grouped=True,
            gathered=images + 2 * keys if self.shuffle else keys,
            images=self.shuffle,
        )
