"""MMCR."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax import losses
from ssl_jax.methods import _common
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class MMCR:
    """Spreads the images' centroids, the means over views, in all directions, by the nuclear norm of their matrix.

    The centroids are longest where an image's views agree. Views of the two augmentations take turns. With `momentum`
    a slowly moving teacher's embeddings of the same views have half of each centroid, as in the authors' later code.
    All views pass as one batch.

    Source: Yerxa et al. 2023, arXiv:2303.03307, section 2, as in the authors' code: embeddings are normalized, and
    the manifolds' own nuclear norms have the weight 0.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (8192, 8192, 512)
    num_views: int = 2
    weight: float = 0.0  # of the nuclear norm of each image's views: the paper's lambda
    momentum: bool = False
    decay: float = 0.99  # of the teacher's weights

    def __post_init__(self):
        _common.check_share(self, "decay")
        if self.num_views < 2:
            raise ValueError(f"num_views must be at least 2, got {self.num_views}")
        if self.weight < 0.0:
            raise ValueError(f"weight must be at least 0, got {self.weight}")

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(("view1", "view2")[i % 2] for i in range(self.num_views))

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": MLP(self.projector, kernel_init=torch_init)}

    @property
    def chance_level(self) -> float:
        embeddings = self.num_views * (2 if self.momentum else 1)
        return self.weight * math.sqrt(embeddings) - math.sqrt(self.run.batch_size)

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        state = {"batch_stats": batch_stats}
        if self.momentum:
            state["teacher"] = _common.make_teacher(self.networks, params, batch_stats)
        return params, state

    def loss(self, params, state, batch, rng, *, axis_name=None):
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=True
        )
        state, targets = {**state, "batch_stats": batch_stats}, None
        if self.momentum:
            made, state["teacher"] = _common.forward_teacher(
                self.networks, state["teacher"], batch["views"], axis_name=axis_name, together=True
            )
            targets = jnp.moveaxis(made["projector"], 0, 1)
        z = outputs["projector"]
        loss = losses.mmcr(jnp.moveaxis(z, 0, 1), targets, weight=self.weight, axis_name=axis_name)
        return loss, (state, {"loss": loss, "embeddings": z})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        if not self.momentum:
            return state
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, self.decay)}

    backbone_variables = _common.online_backbone
    features = _common.features
