"""DCL and DCLW."""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class DCL:
    """SimCLR whose loss leaves an image's own two views out of those that they are to be told from.

    So a pair that is alike already does not weaken the push away from the other images, and small batches suffice.
    `weighted`: DCLW, where pairs that are less alike than others of the batch weigh more, by a softmax of temperature
    `sigma`. Network and views are SimCLR's.

    Source: Yeh et al. 2021, arXiv:2110.06848, section 3.
    """

    backbone: nn.Module
    run: _common.Run
    temperature: float = 0.1
    weighted: bool = False
    sigma: float = 0.5
    projector: tuple[int, ...] = (2048, 128)

    views: ClassVar[tuple[str, ...]] = ("view", "view")

    def __post_init__(self):
        _common.check_positive(self, "temperature", "sigma")
        if self.run.batch_size < 2:
            raise ValueError(f"batch_size={self.run.batch_size} leaves no other image to differ from; use 2 or more")

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": MLP(self.projector, output_norm="scale")}

    @property
    def chance_level(self) -> float:
        return math.log(2 * self.run.batch_size - 2)  # of DCLW, too: equal pairs have the weight 1

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=True
        )
        z1, z2 = z = outputs["projector"]
        if self.weighted:
            loss = losses.dclw(z1, z2, temperature=self.temperature, sigma=self.sigma, axis_name=axis_name)
        else:
            loss = losses.dcl(z1, z2, temperature=self.temperature, axis_name=axis_name)
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
