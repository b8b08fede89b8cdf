"""EMP-SSL."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, POSITIVE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit.covariance import covariance_bytes
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class EMPSSL(Base):
    """Draws the patches of an image to their mean, and spreads the images' embeddings over all the volume.

    A patch is a crop of a quarter of the image. With some 20 patches, few epochs suffice. All patches pass as one
    batch. The volume is measured for the first patches of all images, for the second ones, and so on.

    The paper evaluates features after the projector's first layer, averaged over patches of the test image. Here
    features are the backbone's, of the whole image.

    Source: Tong et al. 2023, arXiv:2304.03977, section 2, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[
        tuple[int, ...],
        COUNT,
        "Widths of the projector's layers. The last is 1024 in the authors' code, 512 in ports of it.",
    ] = (4096, 4096, 1024)
    num_patches: Annotated[int, Range(2), "Patches of each image."] = 20
    eps: Annotated[float, POSITIVE, "Distortion that the coding rate allows."] = 0.2
    invariance: Annotated[float, POSITIVE, "Weight of the patches' cosine with their mean."] = 200.0

    @property
    def views(self) -> tuple[str, ...]:
        return ("patch",) * self.num_patches

    @property
    def networks(self) -> toolkit.Networks:
        projector = MLP(self.projector, hidden_bias=True, output_bias=True, kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    @property
    def chance_level(self) -> float:
        return -0.5 * math.log(1.0 + self.projector[-1] / self.eps) - self.invariance

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
        loss = losses.emp_ssl(z, eps=self.eps, invariance=self.invariance, axis_name=axis_name)
        return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Each patch's second moment is a sum over the global batch. Where the batch has fewer rows than dimensions, the
        # rows are gathered in its place, and their gradient is scattered.
        dim, batch_size = self.projector[-1], self.schedule.batch_size
        if dim <= batch_size:
            return Traffic(passes=1, reduced=covariance_bytes(dim, times=self.num_patches))
        rows = self.num_patches * toolkit.row_bytes(batch_size, dim)
        return Traffic(passes=1, gathered=rows, scattered=rows)
