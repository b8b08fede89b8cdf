"""NNSiam."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import memories
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class NNSiam(Base):
    """SimSiam with another target: the past projection nearest to the network's own projection of the other view.

    So a view predicts another image like it. The queue holds projections of the first views of earlier batches. Heads,
    and the predictor's constant learning rate, are SimSiam's.

    Source: the neighbors are NNCLR's, Dwibedi et al. 2021, arXiv:2104.14548. No paper trains it with SimSiam's loss,
    Chen & He 2020, arXiv:2011.10566; solo-learn does, and lightly shows how.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 2048, 2048)
    predictor: Annotated[
        tuple[int, ...], COUNT, "Widths of the predictor's layers. The last is that of the projector."
    ] = (4096, 2048)
    queue_size: Annotated[
        int,
        COUNT,
        "Projections in the queue: a multiple of the batch size. One longer than the data set holds projections of the "
        "same image, too.",
    ] = 65_536

    views = ("view1", "view2")
    chance_level = -1.0
    constant_lr = ("predictor",)

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_predictor(self)
        toolkit.check_queue(self.schedule, self.queue_size, of_negatives=False)

    @property
    def networks(self) -> toolkit.Networks:
        return {
            "backbone": self.backbone,
            "projector": MLP(self.projector, output_norm="plain", kernel_init=torch_init),
            "predictor": MLP(self.predictor, output_bias=True, kernel_init=torch_init),
        }

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
        z, (p1, p2), queue = outputs["projector"], outputs["predictor"], state["queue"]
        near1, near2 = (memories.nearest(of_view, queue["rows"]) for of_view in z)
        cosine = losses.negative_cosine(p1, near2, axis_name=axis_name)
        cosine += losses.negative_cosine(p2, near1, axis_name=axis_name)
        state = {"batch_stats": batch_stats, "queue": memories.push(queue, z[0], axis_name)}
        return Output(cosine / 2, state, {}, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The projections of the first view are gathered for the queue.
        rows = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(passes=2, gathered=rows)
