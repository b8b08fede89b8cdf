"""SimCLR."""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax import losses
from ssl_jax.methods._common import Run, train_apply
from ssl_jax.models.encoder import Encoder
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class SimCLR:
    """Pulls two views of an image together, away from all other images of the batch.

    The projector is the authors': linear layers without bias, each followed by BatchNorm, the last one's
    without offset; the representation h is taken before it.

    Source: Chen et al. 2020, arXiv:2002.05709, section 2.1.
    """

    backbone: nn.Module  # images [batch, height, width, channels] -> h [batch, dim]
    run: Run
    temperature: float = 0.1
    projector: tuple[int, ...] = (2048, 128)  # widths of its layers

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    views: ClassVar[tuple[str, ...]] = ("view", "view")  # two draws of one augmentation

    @property
    def encoder(self) -> nn.Module:
        return Encoder(self.backbone, MLP(self.projector, output_norm="scale"))

    @property
    def chance_level(self) -> float:
        return math.log(2 * self.run.batch_size - 1)

    def init(self, rng, images):
        variables = self.encoder.init(rng, images)
        return variables["params"], {"batch_stats": variables.get("batch_stats", {})}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        images = jnp.concatenate(batch["views"])  # one pass, so that BatchNorm's statistics span both views
        z, batch_stats = train_apply(self.encoder, params, state["batch_stats"], images, axis_name=axis_name)
        z1, z2 = jnp.split(z, 2)
        loss = losses.nt_xent(z1, z2, temperature=self.temperature, axis_name=axis_name)
        return loss, ({"batch_stats": batch_stats}, {"loss": loss, "embeddings": jnp.stack([z1, z2])})

    def update(self, params, state, step):
        return state

    def backbone_variables(self, params, state):
        return {"params": params["backbone"], "batch_stats": state["batch_stats"].get("backbone", {})}

    def features(self, params, state, images):
        return self.backbone.apply(self.backbone_variables(params, state), images)
