"""DenseCL."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax import losses
from ssl_jax.methods import _common, _queue
from ssl_jax.models.heads import moco_head
from ssl_jax.models.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class DenseCL:
    """MoCo v2 for images and, at the same time, for positions of the feature map: for detection and segmentation.

    A second projector, of the same widths, maps each position. The key of a position is that of the other view's map
    where the backbones' features, not the projections, are most alike; its negatives are a second queue of keys, each
    the mean over an image's positions. loss = (1 - dense_weight) * that of images + dense_weight * that of positions.

    `shuffle` and model.batch_norm="grouped": as for MoCo v2.

    Source: Wang et al. 2020, arXiv:2011.09157, section 3.
    """

    backbone: nn.Module
    run: _common.Run
    projector: tuple[int, ...] = (2048, 128)
    temperature: float = 0.2
    dense_weight: float = 0.5
    decay: float = 0.999
    queue_size: int = 65_536  # of each of the two
    shuffle: bool = True

    views: ClassVar[tuple[str, ...]] = ("view", "view")

    def __post_init__(self):
        _common.check_positive(self, "temperature", "queue_size")
        _common.check_share(self, "decay", "dense_weight")
        _common.check_queue(self.run, self.queue_size)
        if not isinstance(self.backbone, ResNet):
            raise ValueError(f"densecl needs a feature map, which {type(self.backbone).__name__} has not; use a ResNet")

    @property
    def networks(self) -> dict[str, nn.Module]:
        # OpenSelfSup initializes linear layers; the dense one's are convolutions of 1x1, which keep torch's own.
        projector = moco_head(self.projector, nn.initializers.variance_scaling(2.0, "fan_in", "normal"))
        return {"backbone": self.backbone, "projector": projector, "dense_projector": moco_head(self.projector)}

    @property
    def chance_level(self) -> float:
        return math.log(1 + self.queue_size)

    def init(self, rng, images):
        rng_networks, rng_dense, *rng_queues = jax.random.split(rng, 4)
        dense, others = self.networks["dense_projector"], _common.select(self.networks, ["backbone", "projector"])
        params, batch_stats = _common.init(others, rng_networks, images)
        params["dense_projector"] = dense.init(rng_dense, jnp.zeros((1, self.backbone.dim)))["params"]
        batch_stats["dense_projector"] = {}
        queue, dense_queue = (_queue.create(key, self.queue_size, self.projector[-1]) for key in rng_queues)
        return params, {
            "batch_stats": batch_stats,
            "teacher": _common.make_teacher(self.networks, params, batch_stats),
            "queue": queue,
            "dense_queue": dense_queue,
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        x1, x2 = batch["views"]
        q, batch_stats = self.forward(params, state["batch_stats"], x1, axis_name)
        k, teacher = self.forward_teacher(state["teacher"], x2, rng, axis_name)
        queue, dense_queue = state["queue"], state["dense_queue"]
        image_loss = losses.info_nce(
            q["image"], k["image"], queue=queue["rows"], temperature=self.temperature, axis_name=axis_name
        )
        dense_loss = losses.dense_info_nce(
            q["dense"],
            k["dense"],
            q["features"],
            k["features"],
            dense_queue["rows"],
            temperature=self.temperature,
            axis_name=axis_name,
        )
        loss = (1.0 - self.dense_weight) * image_loss + self.dense_weight * dense_loss
        state = {
            "batch_stats": batch_stats,
            "teacher": teacher,
            "queue": _queue.push(queue, k["image"], axis_name),
            "dense_queue": _queue.push(dense_queue, jnp.mean(k["dense"], axis=1), axis_name),
        }
        metrics = {"loss": loss, "image_loss": image_loss, "dense_loss": dense_loss}
        return loss, (state, {**metrics, "embeddings": jnp.stack([q["image"], k["image"]])})

    def forward(self, params, batch_stats, images, axis_name):
        """({"features": [batch, positions, channels], "dense": [batch, positions, dim], "image": [batch, dim]},
        new batch_stats)"""
        outputs, batch_stats = {}, dict(batch_stats)

        def apply(name, *inputs, **options):
            output, batch_stats[name] = _common.train_apply(
                self.networks[name], params[name], batch_stats[name], *inputs, axis_name=axis_name, **options
            )
            return output

        feature_map = apply("backbone", images, pool=False)
        outputs["features"] = feature_map.reshape(len(images), -1, self.backbone.dim)
        outputs["dense"] = apply("dense_projector", outputs["features"])
        outputs["image"] = apply("projector", jnp.mean(outputs["features"], axis=1))
        return outputs, batch_stats

    def forward_teacher(self, teacher, images, rng, axis_name):
        """As `forward`, without gradient and in a random order of rows -> (outputs, the teacher with new statistics)"""
        order = jnp.arange(_common.num_rows(images, axis_name))
        if self.shuffle:
            order = jax.random.permutation(rng, order)
            images = _common.take_rows(images, order, axis_name)
        outputs, batch_stats = self.forward(teacher["params"], teacher["batch_stats"], images, axis_name)
        if self.shuffle:
            outputs = {name: _common.take_rows(x, jnp.argsort(order), axis_name) for name, x in outputs.items()}
        return lax.stop_gradient((outputs, {**teacher, "batch_stats": batch_stats}))

    def update(self, params: Any, state: Any, step: Any) -> Any:
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, self.decay)}

    backbone_variables = _common.online_backbone
    features = _common.features
