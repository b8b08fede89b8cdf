"""DenseCL."""

import dataclasses
import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import memories
from ssl_jax.models.abilities import without_noise
from ssl_jax.models.heads import moco_head


@dataclasses.dataclass(frozen=True)
class DenseCL(Base):
    """MoCo v2 of images and, at the same time, of the positions of their feature maps: for detection and segmentation.

    A second projector, of the same widths, maps each position. A position's key is the position of the other view whose
    features are most like its own; the backbones' features are compared, not the projections. Its negatives are a
    second queue, of keys averaged over the positions of their image.
    loss = (1 - dense_weight) * loss of images + dense_weight * loss of positions.

    Give model.batch_norm="grouped", as for MoCo v2.

    Source: Wang et al. 2020, arXiv:2011.09157, section 3.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the layers of each of the two projectors."] = (2048, 128)
    temperature: Annotated[float, POSITIVE, "Softmax temperature."] = 0.2
    dense_weight: Annotated[
        float, SHARE, "Weight of the loss of positions; the loss of images has the rest, up to 1."
    ] = 0.5
    decay: Annotated[float, SHARE, "The teacher's decay."] = 0.999
    queue_size: Annotated[int, COUNT, "Keys in each of the two queues: a multiple of the batch size."] = 65_536
    shuffle: Annotated[bool, "Encodes the keys in a random order."] = True

    views = ("view", "view")

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_queue(self.schedule, self.queue_size)
        toolkit.check_feature_map(self)

    @property
    def networks(self) -> toolkit.Networks:
        # OpenSelfSup has its own initialization of linear layers. Its dense projector consists of 1x1 convolutions, to
        # which that does not apply: they keep torch's.
        projector = moco_head(self.projector, nn.initializers.variance_scaling(2.0, "fan_in", "normal"))
        return {"backbone": self.backbone, "projector": projector, "dense_projector": moco_head(self.projector)}

    @property
    def chance_level(self) -> float:
        return math.log(1 + self.queue_size)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_dense, *rng_queues = jax.random.split(rng, 4)
        dense, others = self.networks["dense_projector"], toolkit.select(self.networks, ["backbone", "projector"])
        params, batch_stats = toolkit.init(others, rng_networks, images)
        params["dense_projector"] = dense.init(rng_dense, jnp.zeros((1, self.backbone.dim)))["params"]
        batch_stats["dense_projector"] = {}
        queue, dense_queue = (memories.create(key, self.queue_size, self.projector[-1]) for key in rng_queues)
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(self.networks, params, batch_stats),
            "queue": queue,
            "dense_queue": dense_queue,
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        x1, x2 = batch["views"]
        q, batch_stats = self.forward(self.backbone, params, state["batch_stats"], x1, axis_name, rng)
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
            "queue": memories.push(queue, k["image"], axis_name),
            "dense_queue": memories.push(dense_queue, jnp.mean(k["dense"], axis=1), axis_name),
        }
        metrics = {"image_loss": image_loss, "dense_loss": dense_loss}
        return Output(loss, state, metrics, embeddings=jnp.stack([q["image"], k["image"]]))

    def forward(
        self,
        backbone: nn.Module,
        params: Params,
        batch_stats: State,
        images: Float[Array, "batch height width channels"],
        axis_name: str | None,
        rng: Key[Array, ""] | None,
    ) -> tuple[dict[str, Float[Array, "batch ..."]], dict[str, Any]]:
        """(outputs, new batch_stats) of the networks in training mode. rng: of the backbone's stochastic depth.

        outputs: "features" [batch, positions, channels], their projections "dense" [batch, positions, dim], and "image"
        [batch, dim], the projection of their mean.
        """
        feature_map, batch_stats = toolkit.forward_map(
            backbone, params, batch_stats, images, axis_name=axis_name, rng=rng
        )
        features = feature_map.reshape(len(images), -1, self.backbone.dim)
        inputs = {"dense_projector": features, "projector": jnp.mean(features, axis=1)}
        made = {}
        for name, h in inputs.items():
            made[name], batch_stats[name] = toolkit.train_apply(
                self.networks[name], params[name], batch_stats[name], h, axis_name=axis_name
            )
        return {"features": features, "dense": made["dense_projector"], "image": made["projector"]}, batch_stats

    def forward_teacher(
        self,
        teacher: toolkit.Variables,
        images: Float[Array, "batch height width channels"],
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[dict[str, Float[Array, "batch ..."]], dict[str, Any]]:
        """As `forward`, without gradient and stochastic depth, its rows in a random order.

        Returns: (outputs, the teacher with new statistics).
        """
        order = jnp.arange(ops.num_rows(images, axis_name))
        if self.shuffle:
            order = jax.random.permutation(rng, order)
            images = toolkit.take_rows(images, order, axis_name)
        backbone = without_noise(self.backbone)
        outputs, batch_stats = self.forward(
            backbone, teacher["params"], teacher["batch_stats"], images, axis_name, None
        )
        if self.shuffle:
            outputs = {name: toolkit.take_rows(x, jnp.argsort(order), axis_name) for name, x in outputs.items()}
        return lax.stop_gradient((outputs, {**teacher, "batch_stats": batch_stats}))

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, self.decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Each queue takes a key of each image. The keys' images are gathered for the shuffle. The teacher's outputs are
        # gathered to be put back in order: features and projection of each position, and the image's projection.
        batch_size, dim = self.schedule.batch_size, self.projector[-1]
        gathered = 2 * toolkit.row_bytes(batch_size, dim)
        if self.shuffle:
            positions = math.prod(toolkit.map_size(self.backbone, view))
            outputs = positions * (self.backbone.dim + dim) + dim
            gathered += toolkit.row_bytes(batch_size, math.prod(view)) + toolkit.row_bytes(batch_size, outputs)
        return Traffic(passes=1, teacher_passes=1, grouped=True, gathered=gathered, images=self.shuffle)
