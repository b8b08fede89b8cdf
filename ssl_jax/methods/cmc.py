"""CMC."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import instances, memories
from ssl_jax.models.heads import torch_dense, unit
from ssl_jax.models.split import SplitResNet


class HalvesProjector(nn.Module):
    """h [batch, 2 * features] -> a linear layer for each half -> [2, batch, dim]."""

    dim: int

    @nn.compact
    def __call__(
        self, h: Float[Array, "batch features"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "2 batch dim"]:
        halves = zip(("first", "second"), jnp.split(h, 2, axis=-1), strict=True)
        return jnp.stack([torch_dense(self.dim, half.shape[-1], name)(half) for name, half in halves])


@dataclasses.dataclass(frozen=True)
class CMC(Base):
    """Finds an image's colors by its lightness, and the other way round, each in a bank of all images.

    The paper's two views are two parts of one augmented image: its lightness and its colors. The backbone separates
    them, and has a half for each: model.name="split_resnet50" and the like. The loss compares the first half's
    embedding with the bank of the second half, as InstDisc does, and the second's with the bank of the first. It is the
    sum of both. Both have the same images as negatives, and each has a constant Z of its own.

    Source: Tian et al. 2019, arXiv:1906.05849, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    dim: Annotated[int, COUNT, "Width of each half's embedding."] = 128
    temperature: Annotated[float, POSITIVE, "Softmax temperature."] = 0.07
    negatives: Annotated[int, NOT_NEGATIVE, "Rows of a bank drawn for each image; 0: the whole bank."] = 16_384
    softmax: Annotated[bool, "Cross entropy in place of noise-contrastive estimation, as in InstDisc."] = False
    momentum: Annotated[float, SHARE, "Share of its old value that a row of a bank keeps."] = 0.5

    views = ("view",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.backbone, SplitResNet):
            raise ValueError(
                f"cmc needs a backbone of two halves, got a {type(self.backbone).__name__}; "
                "use a model.name such as split_resnet50"
            )

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": HalvesProjector(self.dim)}

    @property
    def banks(self) -> Mapping[str, int]:
        return memories.named(self.schedule, "banks")

    @property
    def chance_level(self) -> float:
        return 2 * instances.chance_level(self.schedule.num_images, self.negatives, self.softmax)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, *rngs_banks = jax.random.split(rng, 3)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "banks": [memories.create_bank(rng_bank, self.schedule.num_images, self.dim) for rng_bank in rngs_banks],
            "log_z": [instances.first_log_z() for _ in range(2)],  # two buffers, as they are donated
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        index, banks = batch["index"], state["banks"]
        rng_networks, rng_negatives = jax.random.split(rng)
        outputs, batch_stats = toolkit.forward(
            self.networks, params, state["batch_stats"], batch["views"][0], axis_name=axis_name, rng=rng_networks
        )
        z = unit(outputs["projector"])
        found = [
            instances.loss(
                half,
                other_bank,
                index,
                rng_negatives,
                log_z,
                num_images=self.schedule.num_images,
                negatives=self.negatives,
                softmax=self.softmax,
                temperature=self.temperature,
                axis_name=axis_name,
            )
            for half, other_bank, log_z in zip(z, reversed(banks), state["log_z"], strict=True)
        ]
        (loss_first, log_z_first), (loss_second, log_z_second) = found
        banks = [
            memories.update_bank(bank, index, half, axis_name, momentum=self.momentum)
            for bank, half in zip(banks, z, strict=True)
        ]
        state = {"batch_stats": batch_stats, "banks": banks, "log_z": [log_z_first, log_z_second]}
        metrics = {"loss_first": loss_first, "loss_second": loss_second}
        return Output(loss_first + loss_second, state, metrics, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The embeddings of both halves and the images' indices are gathered for the banks.
        return Traffic(passes=1, gathered=toolkit.row_bytes(self.schedule.batch_size, 2 * self.dim + 1))
