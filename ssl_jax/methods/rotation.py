"""Rotation (RotNet)."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import tiling
from ssl_jax.models.heads import MLP, torch_init

ANGLES = 4  # quarter turns


@dataclasses.dataclass(frozen=True)
class Rotation(Base):
    """Tells by which of 0, 90, 180 and 270 degrees an image was turned.

    A turn moves pixels and does not interpolate, because traces of an interpolation would give the angle away. So views
    must be squares. They are not turned or put upside down before: the turn could no longer be told.

    Source: Gidaris, Singh & Komodakis 2018, arXiv:1803.07728, section 2.
    """

    backbone: nn.Module
    schedule: Schedule
    all_turns: Annotated[
        bool, "All four turns of each image are in the batch. False: one at random, which gives worse features."
    ] = True

    views = ("view",)
    upright = True
    chance_level = math.log(ANGLES)

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "classifier": MLP((ANGLES,), output_bias=True, kernel_init=torch_init)}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        rng, rng_turn = jax.random.split(rng)
        turned = tiling.rotations(batch["views"][0])
        labels = jnp.tile(jnp.arange(ANGLES), (len(turned), 1))
        if not self.all_turns:
            labels = tiling.offsets(rng_turn, batch["index"], (1,), ANGLES)
            turned = jnp.take_along_axis(turned, labels[:, :, None, None, None], axis=1)
        copies, labels = labels.shape[1], labels.reshape(-1)
        outputs, batch_stats = toolkit.forward(
            self.networks, params, state["batch_stats"], tiling.as_images(turned), axis_name=axis_name, rng=rng
        )
        loss = losses.classification(outputs["classifier"], labels, axis_name=axis_name)
        metrics = {"accuracy": toolkit.accuracy(outputs["classifier"], labels, axis_name)}
        return Output(loss, {"batch_stats": batch_stats}, metrics, embeddings=outputs["backbone"][None, ::copies])

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1)
