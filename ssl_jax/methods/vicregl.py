"""VICRegL."""

import dataclasses
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP, torch_init
from ssl_jax.models.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class VICRegL:
    """VICReg of the pooled features and, at the same time, of matched positions of the views' feature maps.

    loss = alpha * `losses.vicregl_global` + (1 - alpha) * the mean of `losses.vicregl_local` over the ordered pairs of
    a global view and any other view. The views of each size take turns between two augmentations, and each passes by
    itself. A map's positions are where they lie in the image, whether the view is mirrored or not; in the authors'
    code they are taken as not mirrored by default (--no-flip-grid), and distances are in pixels, where here they are
    in shares of the image's sides.

    Source: Bardes et al. 2022, arXiv:2210.01571, section 3.
    """

    backbone: nn.Module  # a ResNet: it has a feature map
    run: _common.Run
    projector: tuple[int, ...] = (8192, 8192, 8192)  # of the pooled features
    local_projector: tuple[int, ...] = (512, 512, 512)  # of each position
    num_local: int = 0  # views beside the two global ones
    alpha: float = 0.75  # 0.9 for classification
    matches: tuple[int, int] = (20, 4)  # pairs by location from the first map's positions and from the second's
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def __post_init__(self):
        _common.check_share(self, "alpha")
        _common.check_positive(self, "invariance", "variance", "covariance")
        if not isinstance(self.backbone, ResNet):
            raise ValueError(f"vicregl needs a feature map, which {type(self.backbone).__name__} has not; use a resnet")
        if self.num_local < 0:
            raise ValueError(f"num_local must be at least 0, got {self.num_local}")
        if len(self.matches) != 2 or min(self.matches) < 1:
            raise ValueError(f"matches must be two numbers of at least 1, got {self.matches}")

    @property
    def views(self) -> tuple[str, ...]:
        return ("global1", "global2", *(("local1", "local2")[i % 2] for i in range(self.num_local)))

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {
            "backbone": self.backbone,
            "projector": MLP(self.projector, hidden_bias=True, kernel_init=torch_init),
            "local_projector": MLP(self.local_projector, hidden_bias=True, kernel_init=torch_init),
        }

    @property
    def chance_level(self) -> float:
        """The hinge at no variance, 1 - sqrt(1e-4), of the global loss and of both kinds of matches; the rest is 0."""
        return 0.99 * self.variance * (self.alpha + 2.0 * (1.0 - self.alpha))

    def init(self, rng, images):
        rng_global, rng_local = jax.random.split(rng)
        networks = self.networks
        local = {"local_projector": networks.pop("local_projector")}
        params, batch_stats = _common.init(networks, rng_global, images)
        local_params, local_stats = _common.init(local, rng_local, jnp.zeros((1, self.backbone.dim)))
        return params | local_params, {"batch_stats": batch_stats | local_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        batch_stats, z, maps, positions = state["batch_stats"], [], [], []
        for number, (x, boxes) in enumerate(zip(batch["views"], batch["boxes"], strict=True)):
            outputs, batch_stats = self.forward(
                params, batch_stats, x, axis_name=axis_name, rng=jax.random.fold_in(rng, number)
            )
            z.append(outputs["projector"])
            local = outputs["local_projector"]
            maps.append(local.reshape(len(x), -1, local.shape[-1]))
            positions.append(map_positions(boxes, local.shape[1:3]))
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
        local_loss = sum(pairs) / len(pairs)
        loss = self.alpha * global_loss + (1.0 - self.alpha) * local_loss
        metrics = {"loss": loss, "embeddings": z, "global_loss": global_loss, "local_loss": local_loss}
        return loss, ({"batch_stats": batch_stats}, metrics)

    def forward(
        self,
        params: Any,
        batch_stats: Any,
        x: Float[Array, "batch _ _ channels"],
        *,
        axis_name: str | None,
        rng: Key[Array, ""],
    ) -> tuple[dict[str, Float[Array, "batch ..."]], Any]:
        """One view -> ({"projector": [batch, dim], "local_projector": [batch, height', width', dim]}, batch_stats)."""
        new_stats, outputs = {}, {}
        h, new_stats["backbone"] = _common.train_apply(
            self.backbone, params["backbone"], batch_stats["backbone"], x, axis_name=axis_name, rng=rng, pool=False
        )
        heads = {"projector": jnp.mean(h, axis=(1, 2)), "local_projector": h}
        for name, features in heads.items():
            outputs[name], new_stats[name] = _common.train_apply(
                self.networks[name], params[name], batch_stats[name], features, axis_name=axis_name
            )
        return outputs, new_stats

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features


def map_positions(boxes: Float[Array, "batch 5"], grid: tuple[int, int]) -> Float[Array, "batch positions 2"]:
    """Where the middle of each position of a view's feature map lies in the image: row and column, shares of its sides.

    boxes: top, left, height, width of the view as such shares, and 1 where it is mirrored. grid: (height, width) of the
    map, whose positions come row by row.
    """
    top, left, height, width, mirrored = boxes.T[..., None]  # [batch, 1] each
    down, across = ((jnp.arange(size) + 0.5) / size for size in grid)
    rows = top + height * down
    columns = left + width * jnp.where(mirrored > 0.5, 1.0 - across, across)
    both = jnp.broadcast_arrays(rows[:, :, None], columns[:, None, :])
    return jnp.stack(both, axis=-1).reshape(len(boxes), -1, 2)
