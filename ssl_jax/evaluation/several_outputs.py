"""The method that fine-tunes on several labels an image, or on measurements."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from ssl_jax import ops
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class SeveralOutputs(Base):
    """Predicts `outputs` numbers of each image: the backbone's features, and a linear layer.

    What is to be predicted lies in the state, "table" [images, outputs], where batch["index"] finds it; whoever trains
    puts it there. NaN is not known, and not part of the loss. The loss is the mean over the known numbers of the global
    batch: of labels (`binary`, 1 or 0) the cross entropy of each, of others the squared error.
    """

    backbone: nn.Module
    schedule: Schedule
    outputs: int
    binary: bool

    views = ("view",)

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "classifier": MLP((self.outputs,), output_bias=True)}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        table = jnp.full((self.schedule.num_images, self.outputs), jnp.nan)
        return params, {"batch_stats": batch_stats, "table": table}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        found, batch_stats = toolkit.forward(
            self.networks, params, state["batch_stats"], batch["views"][0], axis_name=axis_name, rng=rng
        )
        predicted, wanted = found["classifier"], state["table"][batch["index"]]
        known = jnp.isfinite(wanted)
        wanted = jnp.where(known, wanted, 0.0)
        errors = (
            optax.sigmoid_binary_cross_entropy(predicted, wanted) if self.binary else jnp.square(predicted - wanted)
        )
        loss = ops.mean_where(errors, known, axis_name)
        state = {**state, "batch_stats": batch_stats}
        return Output(loss, state, {}, embeddings=found["backbone"][None])
