"""SupCon."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, OneOf
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.models.heads import moco_head

# Where the positives are summed: outside or inside of the logarithm.
POSITIVES = {"outside": losses.supcon, "inside": losses.supcon_inside}


@dataclasses.dataclass(frozen=True)
class SupCon(Base):
    """SimCLR with labels: all views of all images of a class are drawn together, away from the rest of the batch.

    It is supervised: it measures what labels add. The only positives of an image labeled -1 are its own other views.
    The loss is multiplied by temperature / base_temperature, as in the authors' code, so that the temperature does not
    change the size of the gradient. Their projector has no BatchNorm. Views of one size pass as one batch.

    Source: Khosla et al. 2020, arXiv:2004.11362, section 3.
    """

    backbone: nn.Module
    schedule: Schedule
    temperature: Annotated[float, POSITIVE, "Softmax temperature."] = 0.1
    base_temperature: Annotated[
        float, POSITIVE, "The loss is multiplied by temperature / base_temperature; 0.07 in the authors' code."
    ] = 0.07
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 128)
    positives: Annotated[
        str,
        OneOf(tuple(POSITIVES)),
        "Where the positives are summed: outside of the logarithm (eq. 2, L_out) or inside, as in solo-learn.",
        "Either loss is multiplied by temperature / base_temperature: for solo-learn's loss give both one value.",
    ] = "outside"
    local_views: Annotated[
        int,
        NOT_NEGATIVE,
        "Small crops. They are anchors and positives, as the two large views are.",
        "This is solo-learn's multi-crop; the paper has none.",
    ] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule.num_classes == 0:
            raise ValueError("supcon learns from labels, and this data set has none (num_classes=0); use simclr")

    @property
    def views(self) -> tuple[str, ...]:
        return toolkit.with_local(("view", "view"), self.local_views)

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": moco_head(self.projector)}

    @property
    def chance_level(self) -> float | None:
        if self.positives == "inside":
            return None  # depends on how many images of a class are in the batch
        return math.log(len(self.views) * self.schedule.batch_size - 1) * self.temperature / self.base_temperature

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=True
        )
        z = outputs["projector"]  # [views, batch, dim]
        loss = POSITIVES[self.positives](
            jnp.swapaxes(z, 0, 1), batch["label"], temperature=self.temperature, axis_name=axis_name
        )
        loss *= self.temperature / self.base_temperature
        return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z[:2])

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # All projections and labels are gathered. The gradient of the projections is scattered; with positives outside
        # of the logarithm twice, since positives and negatives are separate sums.
        rows = len(self.views) * toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        labels = toolkit.row_bytes(self.schedule.batch_size)
        sums = 2 if self.positives == "outside" else 1
        return Traffic(passes=2 if self.local_views else 1, gathered=rows + labels, scattered=sums * rows)
