"""DCL and DCLW."""

import dataclasses
import functools
import itertools
import math
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class DCL(Base):
    """SimCLR without an image's own views among the negatives: the other images of the batch are all of them.

    So a pair that is alike already does not weaken the push away from the other images, and small batches suffice. In
    DCLW (`weighted`) pairs that are less alike than others of the batch weigh more. Networks and views are SimCLR's.

    Each small crop is paired with each of the two large views, and the loss is the mean over all pairs. Views of one
    size pass as one batch.

    Source: Yeh et al. 2021, arXiv:2110.06848, section 3. How small crops are paired has no source.
    """

    backbone: nn.Module
    schedule: Schedule
    temperature: Annotated[float, POSITIVE, "Softmax temperature."] = 0.1
    weighted: Annotated[bool, "Weights the pairs: DCLW."] = False
    sigma: Annotated[float, POSITIVE, "Temperature of the softmax that gives DCLW's weights."] = 0.5
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 128)
    local_views: Annotated[int, NOT_NEGATIVE, "Small crops of each image."] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule.batch_size < 2:
            raise ValueError(
                f"batch_size={self.schedule.batch_size} leaves no second image to contrast with; use 2 or more"
            )

    @property
    def views(self) -> tuple[str, ...]:
        return toolkit.with_local(("view", "view"), self.local_views)

    @property
    def networks(self) -> toolkit.Networks:
        projector = MLP(self.projector, output_norm="scale", kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    @property
    def chance_level(self) -> float:
        return math.log(2 * self.schedule.batch_size - 2)  # DCLW's, too: equal pairs have the weight 1

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=True
        )
        z = outputs["projector"]
        pair_loss = functools.partial(losses.dclw, sigma=self.sigma) if self.weighted else losses.dcl
        pairs = [
            pair_loss(z[large], z[other], temperature=self.temperature, axis_name=axis_name)
            for large, other in [(0, 1), *itertools.product((0, 1), range(2, len(z)))]
        ]
        loss = sum(pairs, start=jnp.zeros(())) / len(pairs)
        return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z[:2])

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Views of one size pass together. Each pair gathers both projections, and scatters their gradient.
        pairs = 1 + 2 * self.local_views
        rows = 2 * pairs * toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(passes=2 if self.local_views else 1, gathered=rows, scattered=rows)
