"""W-MSE."""

import dataclasses
import itertools
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class WMSE(Base):
    """Draws views together after it whitened them: whitened embeddings cannot collapse.

    Each step divides the global batch at random into sub-batches of `whiten_size` rows, the same for all views. It
    whitens each view of each sub-batch by itself and averages the distances of all pairs of views. It does so
    `whiten_iterations` times, with new sub-batches of the same projections. The views pass the backbone one by one and
    the projector as one batch, as in the authors' code.

    Source: Ermolov et al. 2020, arXiv:2007.06346, sections 3 and 4.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (1024, 64)
    num_views: Annotated[int, Range(2), "Views of each image."] = 2
    whiten_size: Annotated[
        int,
        COUNT,
        "Rows that are whitened together: 128 for 64 dimensions, 256 for 128. batch_size is a multiple of it.",
    ] = 128
    whiten_iterations: Annotated[
        int, COUNT, "How often the batch is divided into sub-batches in a step; 4 for 2 views of 128 dimensions."
    ] = 1
    eps: Annotated[
        float, SHARE, "Shrinkage of the covariance towards the identity; 1e-4 if the whitening is unstable."
    ] = 0.0

    chance_level = 2.0  # of whitened embeddings that are independent of each other

    def __post_init__(self) -> None:
        super().__post_init__()
        dim = self.projector[-1]
        if self.whiten_size < 2 * dim:
            raise ValueError(
                f"whiten_size={self.whiten_size} rows are too few to whiten {dim} dimensions; use {2 * dim} or more, "
                f"or a projector that ends in {self.whiten_size // 2}"
            )
        if self.schedule.batch_size % self.whiten_size:
            nearest = max(round(self.schedule.batch_size / self.whiten_size), 1) * self.whiten_size
            raise ValueError(
                f"batch_size={self.schedule.batch_size} is not a multiple of "
                f"whiten_size={self.whiten_size}; use batch_size {nearest}"
            )

    @property
    def views(self) -> tuple[str, ...]:
        return ("view",) * self.num_views

    @property
    def networks(self) -> toolkit.Networks:
        projector = MLP(self.projector, hidden_bias=True, output_bias=True, kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        backbone, projector = ({name: module} for name, module in self.networks.items())
        outputs, batch_stats = toolkit.forward_views(
            backbone, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        rows = jnp.concatenate(outputs["backbone"])
        outputs, batch_stats = toolkit.forward(projector, params, batch_stats, rows, axis_name=axis_name)
        z = outputs["projector"].reshape(self.num_views, -1, self.projector[-1])
        # Every device whitens all sub-batches. They are few numbers next to the backbone's.
        all_rows = z if axis_name is None else lax.all_gather(z, axis_name, axis=1, tiled=True)
        loss = self.whitened_distance(rng, all_rows)
        return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z)

    def whitened_distance(self, rng: Key[Array, ""], z: Float[Array, "views batch dim"]) -> Float[Array, ""]:
        """The loss of the projections of the whole batch."""
        keys = jax.random.split(rng, self.whiten_iterations)
        orders = jax.vmap(lambda key: jax.random.permutation(key, z.shape[1]))(keys)
        sub_batches = orders.reshape(-1, self.whiten_size)

        def distance(rows: Int[Array, " whiten_size"]) -> Float[Array, ""]:
            pairs = itertools.combinations(z[:, rows], 2)
            return jnp.mean(jnp.stack([losses.w_mse(z1, z2, eps=self.eps) for z1, z2 in pairs]))

        # Not jax.vmap. On CPUs, JAX 0.10.2 gives a batch of triangular solves to the same threads that wait for the
        # result. With eight simulated devices all threads wait forever.
        return jnp.mean(lax.map(distance, sub_batches))

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The projections of all views are gathered, and their gradient is scattered.
        rows = self.num_views * toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(passes=self.num_views, gathered=rows, scattered=rows)
