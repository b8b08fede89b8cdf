"""Alignment and uniformity on the hypersphere."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import memories
from ssl_jax.models.heads import MLP, moco_head


@dataclasses.dataclass(frozen=True)
class Hypersphere(Base):
    """Draws two views of an image together on the sphere, and spreads the images over it as heat would.

    These are the two effects of a contrastive loss, each with a term of its own. The projector is the authors' fully
    connected layers. Both views pass as one batch.

    With a queue this is the authors' variant of MoCo. A slowly moving teacher makes the embeddings of the second view,
    and the queue holds its past ones. The first view's embeddings are drawn to the teacher's of their own image, and
    spread away from each other and from the queue. The projector is MoCo v2's, and keys are encoded in another order:
    see `MoCoV2` on model.batch_norm.

    Source: Wang & Isola 2020, arXiv:2005.10242, section 5, and the authors' code for STL-10. With a queue: the
    appendix, equation 18, and their code for ImageNet (ssnl/moco_align_uniform).
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (4096, 4096, 128)
    uniformity: Annotated[float, POSITIVE, "Weight of the uniformity; the alignment's is 1."] = 1.0
    t: Annotated[float, POSITIVE, "Inverse width of the kernel of the uniformity."] = 2.0
    alpha: Annotated[float, POSITIVE, "Power of the distance between two views in the alignment."] = 2.0
    queue_size: Annotated[
        int, NOT_NEGATIVE, "Keys in the queue: a multiple of the batch size. 0: no queue and no teacher."
    ] = 0
    decay: Annotated[float, SHARE, "The teacher's decay, where there is a queue."] = 0.999
    shuffle: Annotated[bool, "Encodes the keys in a random order, where there is a queue."] = True

    views = ("view", "view")
    chance_level = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queue_size:
            toolkit.check_queue(self.schedule, self.queue_size)

    @property
    def networks(self) -> toolkit.Networks:
        projector = moco_head(self.projector) if self.queue_size else MLP(self.projector, output_bias=True)
        return {"backbone": self.backbone, "projector": projector}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        if not self.queue_size:
            params, batch_stats = toolkit.init(self.networks, rng, images)
            return params, {"batch_stats": batch_stats}
        rng, rng_queue = jax.random.split(rng)
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(self.networks, params, batch_stats),
            "queue": memories.create(rng_queue, self.queue_size, self.projector[-1]),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        views, queue = batch["views"], None
        online = views[:1] if self.queue_size else views
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], online, axis_name=axis_name, rng=rng, together=True
        )
        z, state = outputs["projector"], {**state, "batch_stats": batch_stats}
        if self.queue_size:
            made, state["teacher"] = toolkit.forward_teacher(
                self.networks,
                state["teacher"],
                views[1:],
                axis_name=axis_name,
                together=False,
                shuffle=rng if self.shuffle else None,
            )
            queue = state["queue"]["rows"]
            z = jnp.concatenate([z, made["projector"]])
            state["queue"] = memories.push(state["queue"], z[1], axis_name)
        loss = losses.hypersphere(
            z[0], z[1], queue=queue, t=self.t, weight=self.uniformity, alpha=self.alpha, axis_name=axis_name
        )
        return Output(loss, state, {}, embeddings=z)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        if not self.queue_size:
            return state
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, self.decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        rows = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        if not self.queue_size:
            # Both views pass together. All projections are gathered, and their gradient is scattered.
            return Traffic(passes=1, gathered=2 * rows, scattered=2 * rows)
        # The first view's projections are gathered, and their gradient is scattered. The keys are gathered as MoCo's.
        images = toolkit.row_bytes(self.schedule.batch_size, math.prod(view))
        keys = images + 2 * rows if self.shuffle else rows
        return Traffic(
            passes=1, teacher_passes=1, grouped=True, gathered=rows + keys, scattered=rows, images=self.shuffle
        )
