"""DCL and DCLW."""

import dataclasses
import functools
import itertools
import math

import flax.linen as nn

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class DCL:
    """SimCLR whose loss leaves an image's own two views out of those that they are to be told from.

    So a pair that is alike already does not weaken the push away from the other images, and small batches suffice.
    `weighted`: DCLW, where pairs that are less alike than others of the batch weigh more, by a softmax of temperature
    `sigma`. Network and views are SimCLR's. `local_views`: small crops, each of which is paired with each of the two
    large ones; the loss is the mean over all pairs. Views of one size pass as one batch.

    Source: Yeh et al. 2021, arXiv:2110.06848, section 3; there is no source for how small crops are paired.
    """

    backbone: nn.Module
    run: _common.Run
    temperature: float = 0.1
    weighted: bool = False
    sigma: float = 0.5
    projector: tuple[int, ...] = (2048, 128)
    local_views: int = 0

    def __post_init__(self):
        _common.check_positive(self, "temperature", "sigma")
        _common.with_local((), self.local_views)
        if self.run.batch_size < 2:
            raise ValueError(f"batch_size={self.run.batch_size} leaves no other image to differ from; use 2 or more")

    @property
    def views(self) -> tuple[str, ...]:
        return _common.with_local(("view", "view"), self.local_views)

    @property
    def networks(self) -> dict[str, nn.Module]:
        projector = MLP(self.projector, output_norm="scale", kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

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
        z, options = outputs["projector"], dict(temperature=self.temperature, axis_name=axis_name)
        pair_loss = functools.partial(losses.dclw, sigma=self.sigma) if self.weighted else losses.dcl
        pairs = [(0, 1), *itertools.product((0, 1), range(2, len(z)))]
        loss = sum(pair_loss(z[large], z[other], **options) for large, other in pairs) / len(pairs)
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z[:2]})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
