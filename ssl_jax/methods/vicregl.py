"""VICRegL."""

import dataclasses
import itertools
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit.covariance import covariance_bytes
from ssl_jax.methods.toolkit.places import map_positions
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class VICRegL(Base):
    """VICReg of the pooled features and, at the same time, of matched positions of the views' feature maps.

    loss = alpha * `losses.vicregl_global` + (1 - alpha) * the mean of `losses.vicregl_local` over the ordered pairs of
    a global view and any other view. The views of each size take turns between two augmentations. Each view passes by
    itself.

    The backbone needs a feature map. The place of each position in the image is right for mirrored views, too. By
    default, the authors' code ignores that a view is mirrored (--no-flip-grid). It measures distances in pixels; here
    they are shares of the image's sides.

    Source: Bardes et al. 2022, arXiv:2210.01571, section 3.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[
        tuple[int, ...],
        COUNT,
        "Widths of the layers of the pooled features' projector.",
    ] = (8192, 8192, 8192)
    local_projector: Annotated[
        tuple[int, ...],
        COUNT,
        "Widths of the layers of the projector for each position of a feature map.",
    ] = (512, 512, 512)
    num_local: Annotated[int, NOT_NEGATIVE, "Small views, besides the two global ones."] = 0
    alpha: Annotated[
        float,
        SHARE,
        "Weight of the loss of pooled features; the loss of positions has the rest, up to 1. 0.9 for classification.",
    ] = 0.75
    matches: Annotated[
        tuple[int, int], COUNT, "Pairs by location that are kept: from the first map's positions, from the second's."
    ] = (20, 4)
    invariance: Annotated[float, POSITIVE, "Weight of the distance between the views."] = 25.0
    variance: Annotated[
        float,
        POSITIVE,
        "Weight of the variance of each dimension. Without this term all embeddings may become equal.",
    ] = 25.0
    covariance: Annotated[float, POSITIVE, "Weight of the covariance of different dimensions."] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_feature_map(self)

    @property
    def views(self) -> tuple[str, ...]:
        return ("global1", "global2", *(("local1", "local2")[i % 2] for i in range(self.num_local)))

    @property
    def networks(self) -> toolkit.Networks:
        return {
            "backbone": self.backbone,
            "projector": MLP(self.projector, hidden_bias=True, kernel_init=torch_init),
            "local_projector": MLP(self.local_projector, hidden_bias=True, kernel_init=torch_init),
        }

    @property
    def chance_level(self) -> float:
        """The hinge of a variance of 0 is 1 - sqrt(1e-4): once in the global loss, twice in the local one.

        The local loss has it for matches by location and for matches by features. All other terms are 0.
        """
        return 0.99 * self.variance * (self.alpha + 2.0 * (1.0 - self.alpha))

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_global, rng_local = jax.random.split(rng)
        networks = dict(self.networks)
        local = {"local_projector": networks.pop("local_projector")}
        params, batch_stats = toolkit.init(networks, rng_global, images)
        local_params, local_stats = toolkit.init(local, rng_local, jnp.zeros((1, self.backbone.dim)))
        return params | local_params, {"batch_stats": batch_stats | local_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        batch_stats, z, maps, positions = state["batch_stats"], [], [], []
        for number, (x, boxes) in enumerate(zip(batch["views"], batch["boxes"], strict=True)):
            outputs, batch_stats = self.forward(
                params, batch_stats, x, axis_name=axis_name, rng=jax.random.fold_in(rng, number)
            )
            z.append(outputs["projector"])
            local = outputs["local_projector"]
            rows, columns = local.shape[1:3]
            maps.append(local.reshape(len(x), rows * columns, -1))
            height, width = x.shape[1:3]
            positions.append(map_positions(boxes, (rows, columns), width / height))
        z = jnp.stack(z)
        weights = dict(invariance=self.invariance, variance=self.variance, covariance=self.covariance)
        global_loss = losses.vicregl_global(z, num_global=2, axis_name=axis_name, **weights)
        pairs = [
            losses.vicregl_local(
                maps[i], maps[j], positions[i], positions[j], matches=self.matches, axis_name=axis_name, **weights
            )
            for i, j in itertools.product(range(2), range(len(maps)))
            if i != j
        ]
        local_loss = sum(pairs[1:], start=pairs[0]) / len(pairs)
        loss = self.alpha * global_loss + (1.0 - self.alpha) * local_loss
        metrics = {"global_loss": global_loss, "local_loss": local_loss}
        return Output(loss, {"batch_stats": batch_stats}, metrics, embeddings=z)

    def forward(
        self,
        params: Params,
        batch_stats: toolkit.Variables,
        x: Float[Array, "batch _ _ channels"],
        *,
        axis_name: str | None,
        rng: Key[Array, ""],
    ) -> tuple[dict[str, Float[Array, "batch ..."]], toolkit.Variables]:
        """Passes one view -> ({"projector": [batch, dim], "local_projector": [batch, rows, columns, dim]}, statistics).

        The statistics are the new ones of all networks' BatchNorm.
        """
        h, new_stats = toolkit.forward_map(self.backbone, params, batch_stats, x, axis_name=axis_name, rng=rng)
        heads = {"projector": jnp.mean(h, axis=(1, 2)), "local_projector": h}
        outputs = {}
        for name, features in heads.items():
            outputs[name], new_stats[name] = toolkit.train_apply(
                self.networks[name], params[name], batch_stats[name], features, axis_name=axis_name
            )
        return outputs, new_stats

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The covariance of each view's pooled projections, and that of each matched position: `matches` by location and
        # all by features, from either map to the other. No local view has a larger map than the first view.
        views, positions = len(self.views), math.prod(toolkit.map_size(self.backbone, view))
        pairs = 2 * (views - 1)
        matched = pairs * 2 * (sum(min(count, positions) for count in self.matches) + 2 * positions)
        pooled = covariance_bytes(self.projector[-1], times=views)
        return Traffic(passes=views, reduced=pooled + covariance_bytes(self.local_projector[-1], times=matched))
