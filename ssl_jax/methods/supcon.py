"""SupCon."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models._options import check_choice
from ssl_jax.models.heads import moco_head

POSITIVES = {"outside": losses.supcon, "inside": losses.supcon_inside}  # of the logarithm


@dataclasses.dataclass(frozen=True)
class SupCon:
    """SimCLR with labels: all views of all images of a class are drawn together, away from the rest of the batch.

    Supervised: a measure of what labels add, not a method without them. An image labeled -1 has its own other view as
    its only positive. The loss is multiplied by temperature / base_temperature, as in the authors' code, so that the
    temperature leaves the size of the gradient as it is; the projector is theirs, without BatchNorm. Views of one size
    pass as one batch. `local_views`: small crops, which are anchors and positives as the large ones are (solo-learn's
    multi-crop; the paper has none).

    positives: "outside" of the logarithm, eq. 2 (L_out), or "inside" (losses.supcon_inside): solo-learn's, which is
    multiplied by temperature / base_temperature as well: give both the same number for its form.

    Source: Khosla et al. 2020, arXiv:2004.11362, section 3.
    """

    backbone: nn.Module
    run: _common.Run
    temperature: float = 0.1
    base_temperature: float = 0.07
    projector: tuple[int, ...] = (2048, 128)
    positives: str = "outside"
    local_views: int = 0

    def __post_init__(self):
        _common.check_positive(self, "temperature", "base_temperature")
        check_choice("positives", self.positives, POSITIVES)
        _common.with_local((), self.local_views)
        if self.run.num_classes == 0:
            raise ValueError("supcon learns from labels, and this data set has none (num_classes=0); use simclr")

    @property
    def views(self) -> tuple[str, ...]:
        return _common.with_local(("view", "view"), self.local_views)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": moco_head(self.projector)}

    @property
    def chance_level(self) -> float | None:
        if self.positives == "inside":
            return None  # it depends on how many images a class has in the batch
        return math.log(len(self.views) * self.run.batch_size - 1) * self.temperature / self.base_temperature

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=True
        )
        z = outputs["projector"]  # [views, batch, dim]
        loss = POSITIVES[self.positives](
            jnp.swapaxes(z, 0, 1), batch["label"], temperature=self.temperature, axis_name=axis_name
        )
        loss *= self.temperature / self.base_temperature
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z[:2]})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
