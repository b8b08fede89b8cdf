"""EMP-SSL."""

import dataclasses
import math

import flax.linen as nn

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class EMPSSL:
    """Draws many patches of an image to their mean, and lets every patch position's embeddings fill all the volume.

    With some 20 patches, crops of a quarter of the image each, few epochs suffice. All patches pass as one batch.
    The paper evaluates the features averaged over patches of the test image, taken after the projector's first layer;
    here they are those of the backbone, of the whole image.

    Source: Tong et al. 2023, arXiv:2304.03977, section 2. The projector ends in 1024 dimensions, as in the authors'
    code; ports have 512.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (4096, 4096, 1024)
    num_patches: int = 20
    eps: float = 0.2  # the distortion up to which the coding rate codes
    invariance: float = 200.0

    def __post_init__(self):
        _common.check_positive(self, "eps", "invariance")
        if self.num_patches < 2:
            raise ValueError(f"num_patches must be at least 2, got {self.num_patches}")

    @property
    def views(self) -> tuple[str, ...]:
        return ("patch",) * self.num_patches

    @property
    def networks(self) -> dict[str, nn.Module]:
        projector = MLP(self.projector, hidden_bias=True, output_bias=True, kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    @property
    def chance_level(self) -> float:
        return -0.5 * math.log(1.0 + self.projector[-1] / self.eps) - self.invariance

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=True
        )
        z = outputs["projector"]
        loss = losses.emp_ssl(z, eps=self.eps, invariance=self.invariance, axis_name=axis_name)
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z})

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
