"""NNCLR."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import memories
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class NNCLR(Base):
    """Contrasts the prediction from one view with the nearest neighbor, among past projections, of the other view.

    So positives are other images, too. Let n_i be the nearest neighbor of the first view's projection of image i, and
    p_j the prediction from the second view of image j. The loss is the cross entropy of n_i . p_j / temperature over
    the batch, where j = i is right. It is computed with the views exchanged, too, and the mean of both is taken. After
    that the projections of the first view join the queue. Predictions from small crops are contrasted with the
    neighbors of both large views. The mean is then over all pairs.

    Source: Dwibedi et al. 2021, arXiv:2104.14548, section 3 and algorithm 1. There is no authors' code. lightly's code
    differs from the paper and from this: there, the other images' neighbors are negatives, too. The paper has
    multi-crop, but does not say how its crops are paired.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[
        tuple[int, ...], COUNT, "Widths of the projector's layers. BatchNorm follows each, the last one included."
    ] = (2048, 2048, 256)
    predictor: Annotated[tuple[int, ...], COUNT, "Widths of the predictor's layers."] = (4096, 256)
    temperature: Annotated[float, POSITIVE, "Softmax temperature."] = 0.1
    queue_size: Annotated[
        int,
        COUNT,
        "Projections in the queue: a multiple of the batch size. A small queue has only poor neighbors; a queue longer "
        "than the data set holds old views of the same image.",
    ] = 98_304
    local_views: Annotated[int, NOT_NEGATIVE, "Small crops of each image."] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_predictor(self)
        toolkit.check_queue(self.schedule, self.queue_size, of_negatives=False)

    @property
    def views(self) -> tuple[str, ...]:
        return toolkit.with_local(("view1", "view2"), self.local_views)

    @property
    def networks(self) -> toolkit.Networks:
        return {
            "backbone": self.backbone,
            "projector": MLP(
                self.projector, hidden_bias=True, output_bias=True, output_norm="full", kernel_init=torch_init
            ),
            "predictor": MLP(self.predictor, hidden_bias=True, output_bias=True, kernel_init=torch_init),
        }

    @property
    def chance_level(self) -> float:
        return math.log(self.schedule.batch_size)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_queue = jax.random.split(rng)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        queue = memories.create(rng_queue, self.queue_size, self.projector[-1])
        return params, {"batch_stats": batch_stats, "queue": queue}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z, p, queue = outputs["projector"][:2], outputs["predictor"], state["queue"]
        neighbors = [memories.nearest(large, queue["rows"]) for large in z]
        pairs = [
            losses.info_nce(neighbor, prediction, temperature=self.temperature, axis_name=axis_name)
            for i, neighbor in enumerate(neighbors)
            for j, prediction in enumerate(p)
            if i != j
        ]
        loss = sum(pairs, start=jnp.zeros(())) / len(pairs)
        state = {"batch_stats": batch_stats, "queue": memories.push(queue, z[0], axis_name)}
        return Output(loss, state, {}, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Each view passes by itself. Each pair gathers its predictions, and scatters their gradient. The queue takes
        # the projections of one view.
        views = len(self.views)
        pairs = 2 * (views - 1)
        rows = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(passes=views, gathered=(pairs + 1) * rows, scattered=pairs * rows)
