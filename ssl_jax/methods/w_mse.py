"""W-MSE."""

import dataclasses
import itertools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class WMSE:
    """Draws views together after whitening them, which leaves no room for a collapse.

    In each step the global batch is cut at random into sub-batches of `whiten_size` rows, the same for all views, each
    view of each is whitened by itself, and the distances of all pairs of views are averaged: `whiten_iterations` times,
    with new sub-batches of the same projections. The views pass the backbone one by one, the projector as one batch,
    as in the authors' code.

    Source: Ermolov et al. 2020, arXiv:2007.06346, sections 3 and 4.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (1024, 64)
    num_views: int = 2
    whiten_size: int = 128  # 256 for 128 dimensions
    whiten_iterations: int = 1  # 4 for 2 views of 128 dimensions
    eps: float = 0.0  # shrinkage of the covariance; 1e-4 if the whitening is unstable

    chance_level: ClassVar[float] = 2.0  # of whitened embeddings that have nothing to do with each other

    def __post_init__(self):
        _common.check_positive(self, "whiten_iterations")
        _common.check_share(self, "eps")
        if self.num_views < 2:
            raise ValueError(f"num_views must be at least 2, got {self.num_views}")
        dim = self.projector[-1]
        if self.whiten_size < 2 * dim:
            raise ValueError(
                f"whiten_size={self.whiten_size} rows are too few to whiten {dim} dimensions; use {2 * dim} or more, "
                f"or a projector that ends in {self.whiten_size // 2}"
            )
        if self.run.batch_size % self.whiten_size:
            nearest = max(round(self.run.batch_size / self.whiten_size), 1) * self.whiten_size
            raise ValueError(
                f"batch_size={self.run.batch_size} is no multiple of whiten_size={self.whiten_size}; "
                f"use batch_size {nearest}"
            )

    @property
    def views(self) -> tuple[str, ...]:
        return ("view",) * self.num_views

    @property
    def networks(self) -> dict[str, nn.Module]:
        projector = MLP(self.projector, hidden_bias=True, output_bias=True, kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        backbone, projector = ({name: module} for name, module in self.networks.items())
        outputs, batch_stats = _common.forward_views(
            backbone, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        rows = jnp.concatenate(outputs["backbone"])
        outputs, batch_stats = _common.forward(projector, params, batch_stats, rows, axis_name=axis_name)
        z = outputs["projector"].reshape(self.num_views, -1, self.projector[-1])
        # Every device whitens all sub-batches: they are of few numbers next to the backbone's.
        all_rows = z if axis_name is None else lax.all_gather(z, axis_name, axis=1, tiled=True)
        loss = self.whitened_distance(rng, all_rows)
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": z})

    def whitened_distance(self, rng: Key[Array, ""], z: Float[Array, "views batch dim"]) -> Float[Array, ""]:
        """The loss of the whole batch's projections."""
        keys = jax.random.split(rng, self.whiten_iterations)
        orders = jax.vmap(lambda key: jax.random.permutation(key, z.shape[1]))(keys)
        sub_batches = orders.reshape(-1, self.whiten_size)

        def distance(rows: Int[Array, " whiten_size"]) -> Float[Array, ""]:
            pairs = itertools.combinations(z[:, rows], 2)
            return jnp.mean(jnp.stack([losses.w_mse(z1, z2, eps=self.eps) for z1, z2 in pairs]))

        # Not jax.vmap: on CPUs JAX 0.10.2 hands a batch of triangular solves to the threads that wait for it, and on
        # eight simulated devices all of them wait for good.
        return jnp.mean(lax.map(distance, sub_batches))

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
