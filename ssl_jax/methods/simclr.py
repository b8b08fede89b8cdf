"""SimCLR."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, POSITIVE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class SimCLR(Base):
    """Pulls two views of an image together, away from all other images of the batch.

    The projector is the authors': linear layers without bias, each followed by BatchNorm, the last one's without
    offset. The representation h is taken before it. Both views pass as one batch.

    SimCLRv2 is this method with a deeper projector, whose first layer belongs to the backbone (model.head_layers=1),
    and with larger networks, of selective kernels: the scales imagenet_r50_v2 and imagenet_r152x3_sk_v2.

    Source: Chen et al. 2020, arXiv:2002.05709, section 2.1; SimCLRv2: Chen et al. 2020, arXiv:2006.10029, section 2.
    """

    backbone: nn.Module
    schedule: Schedule
    temperature: Annotated[float, POSITIVE, "Softmax temperature; 0.1 on ImageNet, 0.5 on CIFAR-10 (table 5)."] = 0.1
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 128)

    views = ("view", "view")  # two draws of one augmentation

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": MLP(self.projector, output_norm="scale")}

    @property
    def chance_level(self) -> float:
        return math.log(2 * self.schedule.batch_size - 1)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=True
        )
        z1, z2 = z = outputs["projector"]
        loss = losses.nt_xent(z1, z2, temperature=self.temperature, axis_name=axis_name)
        return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Both views pass together. All projections are gathered, and their gradient is scattered.
        rows = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(passes=1, gathered=2 * rows, scattered=2 * rows)
