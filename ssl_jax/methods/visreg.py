"""VISReg."""

import dataclasses
from typing import Annotated

from jaxtyping import Array, Float

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Traffic
from ssl_jax.methods.lejepa import LeJEPA


@dataclasses.dataclass(frozen=True)
class VISReg(LeJEPA):
    """LeJEPA with scale and shape regularized apart, so that embeddings that have collapsed still get a gradient.

    loss = (1 - weight) * the mean over views, images and dimensions of (z - mean of the global views)^2
    + weight * `losses.visreg` of all views, whose directions are new in each step. The projector has GELUs. There is no
    teacher, no stopped gradient of embeddings and no schedule. Views of one size pass as one batch.

    Source: Wu et al. 2026, arXiv:2606.02572, section 3, and the authors' code.
    """

    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 2048, 256)
    num_global: Annotated[int, COUNT, "Large views of each image; the target is their mean."] = 4
    num_local: Annotated[int, NOT_NEGATIVE, "Small views of each image."] = 6
    weight: Annotated[float, SHARE, "Weight of the regularization: 0.9 on ImageNet, 0.6 for small data sets."] = 0.9
    directions: Annotated[int, COUNT, "Random directions along which the shape is compared with a normal one."] = 4096
    scale_weight: Annotated[float, NOT_NEGATIVE, "Weight of the deviations' distance from 1."] = 1.0
    shape_weight: Annotated[float, NOT_NEGATIVE, "Weight of the distance from a normal distribution."] = 1.0
    center_weight: Annotated[float, NOT_NEGATIVE, "Weight of the mean's distance from 0."] = 1.0

    activation = "gelu"

    def regularize(
        self, z: Float[Array, "views batch dim"], directions: Float[Array, "dim directions"], axis_name: str | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        value = losses.visreg(
            z,
            directions,
            scale=self.scale_weight,
            shape=self.shape_weight,
            center=self.center_weight,
            axis_name=axis_name,
        )
        return value, {"visreg": value}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # All rows are gathered to be sorted, and their gradient is scattered. Means and deviations of each view are
        # summed over devices, and so are their gradients.
        views, dim = len(self.views), self.projector[-1]
        rows = views * toolkit.row_bytes(self.schedule.batch_size, dim)
        return Traffic(passes=2 if self.num_local else 1, reduced=4 * views * dim * 8, gathered=rows, scattered=rows)
