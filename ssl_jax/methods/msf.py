"""MSF."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import memories
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class MSF(Base):
    """Mean Shift: moves an image's prediction towards the mean of its teacher's projection and that one's neighbors.

    The teacher's projections join the queue before the neighbors are sought in it. So the first of the `neighbors` is
    the projection of the image itself, and with neighbors=1 this is BYOL from one view to the other. The teacher's view
    is only cropped and flipped (the authors' weak/strong). Its decay is constant.

    BatchNorm is over the global batch. The authors' is over each device's part, so they shuffle the teacher's images
    among devices; here an order would change nothing.

    Source: Koohpayegani et al. 2021, arXiv:2105.07269, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[
        tuple[int, ...], COUNT, "Widths of the projector's layers: 2 and 1/4 times the features' width."
    ] = (4096, 512)
    predictor: Annotated[tuple[int, ...], COUNT, "Widths of the predictor's layers."] = (4096, 512)
    neighbors: Annotated[int, COUNT, "Neighbors of a target, itself included; the paper's k."] = 5
    decay: Annotated[float, SHARE, "The teacher's decay."] = 0.99
    queue_size: Annotated[int, COUNT, "Projections in the queue: a multiple of the batch size."] = 1_024_000

    views = ("student", "teacher")
    chance_level = 0.0  # the loss of equal embeddings: here it is complete collapse

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_predictor(self)
        toolkit.check_queue(self.schedule, self.queue_size, of_negatives=False)
        if self.neighbors > self.queue_size:
            raise ValueError(
                f"neighbors={self.neighbors} are more than the queue_size={self.queue_size}; use {self.queue_size} or "
                "less"
            )

    @property
    def teacher_networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": _mlp(self.projector)}

    @property
    def networks(self) -> toolkit.Networks:
        return {**self.teacher_networks, "predictor": _mlp(self.predictor)}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_queue = jax.random.split(rng)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(self.teacher_networks, params, batch_stats),
            "queue": memories.create(rng_queue, self.queue_size, self.projector[-1]),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        strong, weak = batch["views"]
        online, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], [strong], axis_name=axis_name, rng=rng, together=False
        )
        targets, teacher = toolkit.forward_teacher(
            self.teacher_networks, state["teacher"], [weak], axis_name=axis_name, together=False
        )
        (z,), (p,), (t,) = online["projector"], online["predictor"], targets["projector"]
        queue = memories.push(state["queue"], t, axis_name)
        loss = losses.mean_shift(p, t, queue["rows"], neighbors=self.neighbors, axis_name=axis_name)
        state = {"batch_stats": batch_stats, "teacher": teacher, "queue": queue}
        return Output(loss, state, {}, embeddings=jnp.stack([z, t]))

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, self.decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The teacher's projections are gathered for the queue.
        rows = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(passes=1, teacher_passes=1, gathered=rows)


def _mlp(widths: tuple[int, ...]) -> MLP:
    return MLP(widths, hidden_bias=True, output_bias=True, kernel_init=torch_init)
