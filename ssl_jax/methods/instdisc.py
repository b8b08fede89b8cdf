"""InstDisc, also known as NPID."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import banks, instances, memories
from ssl_jax.models.heads import MLP, torch_init, unit


@dataclasses.dataclass(frozen=True)
class InstDisc(Base):
    """Takes every image as a class of its own. The weights of a class are a bank's memory of the image's embeddings.

    The loss is one of three. Noise-contrastive estimation is the authors' for ImageNet; its constant Z is estimated
    from the first batch and kept from then on. With negatives=0 it is the cross entropy over the whole bank, theirs for
    CIFAR. With `softmax` it is the cross entropy over the image's own row and the negatives, as in their later model
    with 65,536 negatives.

    The projector is one linear layer, as the authors' and that of VISSL's NPID++. The bank is moved after the loss. It
    starts as unit vectors; the authors' is uniform, of about unit length. The output's embeddings are the image's and
    its row of the bank.

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.
    """

    backbone: nn.Module
    schedule: Schedule
    dim: Annotated[int, COUNT, "Width of the embedding."] = 128
    temperature: Annotated[float, POSITIVE, "Softmax temperature."] = 0.07
    negatives: Annotated[int, NOT_NEGATIVE, "Rows of the bank drawn for each image; 0: the whole bank."] = 4096
    softmax: Annotated[bool, "Cross entropy in place of noise-contrastive estimation."] = False
    momentum: Annotated[float, SHARE, "Share of its old value that a row of the bank keeps."] = 0.5
    proximal: Annotated[
        float,
        NOT_NEGATIVE,
        "Weight of the squared distance to the image's own row: the paper's lambda (section 3.3), which the authors' "
        "code does not have.",
    ] = 0.0

    views = ("view",)

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": MLP((self.dim,), output_bias=True, kernel_init=torch_init)}

    @property
    def banks(self) -> Mapping[str, int]:
        return memories.named(self.schedule, "bank")

    @property
    def chance_level(self) -> float | None:
        if self.proximal:
            return None
        return instances.chance_level(self.schedule.num_images, self.negatives, self.softmax)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_bank = jax.random.split(rng)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "bank": memories.create_bank(rng_bank, self.schedule.num_images, self.dim),
            "log_z": instances.first_log_z(),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        index, bank = batch["index"], state["bank"]
        rng_networks, rng_negatives = jax.random.split(rng)
        outputs, batch_stats = toolkit.forward(
            self.networks, params, state["batch_stats"], batch["views"][0], axis_name=axis_name, rng=rng_networks
        )
        z = unit(outputs["projector"])
        loss, log_z = instances.loss(
            z,
            bank,
            index,
            rng_negatives,
            state["log_z"],
            num_images=self.schedule.num_images,
            negatives=self.negatives,
            softmax=self.softmax,
            temperature=self.temperature,
            axis_name=axis_name,
        )
        remembered = banks.take(bank, index)
        if self.proximal:
            loss += 2 * self.proximal * (1 + losses.negative_cosine(z, remembered, axis_name=axis_name))
        bank_after = memories.update_bank(bank, index, z, axis_name, momentum=self.momentum)
        state = {"batch_stats": batch_stats, "bank": bank_after, "log_z": log_z}
        return Output(loss, state, {}, embeddings=jnp.stack([z, remembered]))

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The embeddings and the images' indices are gathered for the bank.
        return Traffic(passes=1, gathered=toolkit.row_bytes(self.schedule.batch_size, self.dim + 1))
