"""Alignment and uniformity on the hypersphere."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import losses
from ssl_jax.methods import _common, _queue
from ssl_jax.models.heads import MLP, moco_head


@dataclasses.dataclass(frozen=True)
class Hypersphere:
    """Draws two views of an image together on the sphere, and spreads the images over it as heat would.

    The two effects of a contrastive loss, each by itself. The projector is the authors' fully connected layers; both
    views pass as one batch.

    With a queue it is the authors' variant of MoCo: the first view's embeddings are drawn to those that a slowly moving
    teacher makes of the second view, and spread away from each other and from a queue of the teacher's past ones. The
    projector is MoCo v2's then, and keys are encoded in another order: see `MoCoV2` on model.batch_norm and `shuffle`.

    Source: Wang & Isola 2020, arXiv:2005.10242, section 5, and the authors' code for STL-10; with a queue: appendix,
    equation 18, and their code for ImageNet (ssnl/moco_align_uniform).
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (4096, 4096, 128)
    uniformity: float = 1.0  # weight; that of the alignment is 1
    t: float = 2.0  # inverse width of the kernel
    alpha: float = 2.0  # power of the distance of two views
    queue_size: int = 0  # 0: none, and no teacher
    decay: float = 0.999  # of the teacher's weights
    shuffle: bool = True

    views: ClassVar[tuple[str, ...]] = ("view", "view")
    chance_level: ClassVar[float] = 0.0

    def __post_init__(self):
        _common.check_positive(self, "uniformity", "t", "alpha")
        _common.check_share(self, "decay")
        if self.queue_size:
            _common.check_queue(self.run, self.queue_size)

    @property
    def networks(self) -> dict[str, nn.Module]:
        projector = moco_head(self.projector) if self.queue_size else MLP(self.projector, output_bias=True)
        return {"backbone": self.backbone, "projector": projector}

    def init(self, rng, images):
        if not self.queue_size:
            params, batch_stats = _common.init(self.networks, rng, images)
            return params, {"batch_stats": batch_stats}
        rng, rng_queue = jax.random.split(rng)
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": _common.make_teacher(self.networks, params, batch_stats),
            "queue": _queue.create(rng_queue, self.queue_size, self.projector[-1]),
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        views, queue = batch["views"], None
        online = views[:1] if self.queue_size else views
        outputs, batch_stats = _common.forward_views(
            self.networks, params, state["batch_stats"], online, axis_name=axis_name, rng=rng, together=True
        )
        z, state = outputs["projector"], {**state, "batch_stats": batch_stats}
        if self.queue_size:
            made, state["teacher"] = _common.forward_teacher(
                self.networks,
                state["teacher"],
                views[1:],
                axis_name=axis_name,
                together=False,
                shuffle=rng if self.shuffle else None,
            )
            queue = state["queue"]["rows"]
            z = jnp.concatenate([z, made["projector"]])
            state["queue"] = _queue.push(state["queue"], z[1], axis_name)
        loss = losses.hypersphere(
            *z, queue=queue, t=self.t, weight=self.uniformity, alpha=self.alpha, axis_name=axis_name
        )
        return loss, (state, {"loss": loss, "embeddings": z})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        if not self.queue_size:
            return state
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, self.decay)}

    backbone_variables = _common.online_backbone
    features = _common.features
