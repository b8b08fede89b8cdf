"""Rotation (RotNet)."""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import losses
from ssl_jax.methods import _common, _tiles
from ssl_jax.models.heads import MLP, torch_init

ANGLES = 4  # quarter turns


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Tells by which of 0, 90, 180 and 270 degrees an image was turned.

    With `all_turns` all four copies of each image are in the batch, else one at random, with which features are worse.
    They are turned by moving pixels, without interpolation, whose traces would give the angle away; hence views are to
    be squares.

    Source: Gidaris, Singh & Komodakis 2018, arXiv:1803.07728, section 2.
    """

    backbone: nn.Module
    run: _common.Run
    all_turns: bool = True

    views: ClassVar[tuple[str, ...]] = ("view",)
    chance_level: ClassVar[float] = math.log(ANGLES)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "classifier": MLP((ANGLES,), output_bias=True, kernel_init=torch_init)}

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        rng, rng_turn = jax.random.split(rng)
        turned = _tiles.rotations(batch["views"][0])
        labels = jnp.tile(jnp.arange(ANGLES), (len(turned), 1))
        if not self.all_turns:
            labels = _tiles.offsets(rng_turn, batch["index"], (1,), ANGLES)
            turned = jnp.take_along_axis(turned, labels[:, :, None, None, None], axis=1)
        copies, labels = labels.shape[1], labels.reshape(-1)
        outputs, batch_stats = _common.forward(
            self.networks, params, state["batch_stats"], _tiles.as_images(turned), axis_name=axis_name, rng=rng
        )
        loss = losses.classification(outputs["classifier"], labels, axis_name=axis_name)
        metrics = {
            "loss": loss,
            "accuracy": _common.accuracy(outputs["classifier"], labels, axis_name),
            "embeddings": outputs["backbone"][None, ::copies],
        }
        return loss, ({"batch_stats": batch_stats}, metrics)

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
