"""SimCLR."""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class SimCLR:
    """Pulls two views of an image together, away from all other images of the batch.

    The projector is the authors': linear layers without bias, each followed by BatchNorm, the last one's
    without offset; the representation h is taken before it. Both views pass as one batch.

    Source: Chen et al. 2020, arXiv:2002.05709, section 2.1.
    """

    backbone: nn.Module  # images [batch, height, width, channels] -> h [batch, dim]
    run: _common.Run
    temperature: float = 0.1
    projector: tuple[int, ...] = (2048, 128)  # widths of its layers

    views: ClassVar[tuple[str, ...]] = ("view", "view")  # two draws of one augmentation

    def __post_init__(self):
        _common.check_positive(self, "temperature")

    @property
    def networks(self):
        return {"backbone": self.backbone, "projector": MLP(self.projector, output_norm="scale")}

    @property
    def chance_level(self) -> float:
        return math.log(2 * self.run.batch_size - 1)

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=True
        )
        z1, z2 = z = outputs["projector"]
        loss = losses.nt_xent(z1, z2, temperature=self.temperature, axis_name=axis_name)
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
