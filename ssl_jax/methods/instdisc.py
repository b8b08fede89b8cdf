"""InstDisc, also known as NPID."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import losses
from ssl_jax.methods import _common, _instances, _queue
from ssl_jax.models.heads import MLP, torch_init, unit


@dataclasses.dataclass(frozen=True)
class InstDisc:
    """Takes every image as a class of its own, whose weights are a bank's memory of its past embeddings.

    The loss is noise-contrastive estimation with a constant Z, estimated from the first batch and kept from then on
    (the authors' for ImageNet); with negatives=0 the cross entropy over the whole bank (theirs for CIFAR); with
    `softmax` that over the image's own row and the negatives (their later model: 65,536 negatives).

    The projector is one linear layer (the authors'; VISSL's NPID++ has the same). The bank, drawn as unit vectors where
    theirs is uniform of about unit norm, is moved after use. The first of the metrics' embeddings is the image's, the
    second the bank's row of it.

    Source: Wu et al. 2018, arXiv:1805.01978, section 3. proximal: the paper's lambda of section 3.3, which weights the
    squared distance to the image's own row; the authors' code has none.
    """

    backbone: nn.Module
    run: _common.Run
    dim: int = 128
    temperature: float = 0.07
    negatives: int = 4096  # 0: all images
    softmax: bool = False
    momentum: float = 0.5  # share of a row of the bank that it keeps
    proximal: float = 0.0

    views: ClassVar[tuple[str, ...]] = ("view",)

    def __post_init__(self):
        _common.check_positive(self, "temperature", "dim")
        _common.check_share(self, "momentum")
        _instances.check_negatives(self.negatives)
        if self.proximal < 0:
            raise ValueError(f"proximal must be at least 0, got {self.proximal}")

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": MLP((self.dim,), output_bias=True, kernel_init=torch_init)}

    @property
    def chance_level(self) -> float | None:
        if self.proximal:
            return None
        return _instances.chance_level(self.run.num_images, self.negatives, self.softmax)

    def init(self, rng, images):
        rng_networks, rng_bank = jax.random.split(rng)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "bank": _queue.create_bank(rng_bank, self.run.num_images, self.dim),
            "log_z": _instances.first_log_z(),
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        index, bank = batch["index"], state["bank"]
        rng_networks, rng_negatives = jax.random.split(rng)
        outputs, batch_stats = _common.forward(
            self.networks, params, state["batch_stats"], batch["views"][0], axis_name=axis_name, rng=rng_networks
        )
        z = unit(outputs["projector"])
        loss, log_z = _instances.loss(
            z,
            bank,
            index,
            rng_negatives,
            state["log_z"],
            negatives=self.negatives,
            softmax=self.softmax,
            temperature=self.temperature,
            axis_name=axis_name,
        )
        if self.proximal:
            loss += 2 * self.proximal * (1 + losses.negative_cosine(z, bank[index], axis_name=axis_name))
        bank_after = _queue.update_bank(bank, index, z, axis_name, momentum=self.momentum)
        metrics = {"loss": loss, "embeddings": jnp.stack([z, bank[index]])}
        return loss, ({"batch_stats": batch_stats, "bank": bank_after, "log_z": log_z}, metrics)

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
