"""CMC."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax.methods import _common, _instances, _queue
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
class CMC:
    """Finds an image's colors by its lightness, and the other way round, each in a bank of all images.

    The backbone has a half for each: model.name="split_resnet50" and the like, which splits the images. So the two
    views of the paper are two parts of one augmented image. The loss is InstDisc's, by noise-contrastive estimation, of
    the first half's embedding with the bank of the second's, plus that of the second's with the bank of the first's;
    both have the same images as negatives and each a constant Z of its own. `softmax`: see InstDisc.

    Source: Tian et al. 2019, arXiv:1906.05849, section 3, and the authors' code. The metrics' embeddings are the
    halves'.
    """

    backbone: nn.Module
    run: _common.Run
    dim: int = 128
    temperature: float = 0.07
    negatives: int = 16_384
    softmax: bool = False
    momentum: float = 0.5  # share of a row of a bank that it keeps

    views: ClassVar[tuple[str, ...]] = ("view",)

    def __post_init__(self):
        _common.check_positive(self, "temperature", "dim")
        _common.check_share(self, "momentum")
        _instances.check_negatives(self.negatives)
        if not isinstance(self.backbone, SplitResNet):
            raise ValueError(f"a {type(self.backbone).__name__} has no halves; use a model.name such as split_resnet50")

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": HalvesProjector(self.dim)}

    @property
    def chance_level(self) -> float:
        return 2 * _instances.chance_level(self.run.num_images, self.negatives, self.softmax)

    def init(self, rng, images):
        rng_networks, *rngs_banks = jax.random.split(rng, 3)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        return params, {
            "batch_stats": batch_stats,
            "banks": [_queue.create_bank(rng_bank, self.run.num_images, self.dim) for rng_bank in rngs_banks],
            "log_z": [_instances.first_log_z() for _ in range(2)],  # two buffers: they are donated
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        index, banks = batch["index"], state["banks"]
        rng_networks, rng_negatives = jax.random.split(rng)
        outputs, batch_stats = _common.forward(
            self.networks, params, state["batch_stats"], batch["views"][0], axis_name=axis_name, rng=rng_networks
        )
        z = unit(outputs["projector"])
        found = [
            _instances.loss(
                half,
                other_bank,
                index,
                rng_negatives,
                log_z,
                negatives=self.negatives,
                softmax=self.softmax,
                temperature=self.temperature,
                axis_name=axis_name,
            )
            for half, other_bank, log_z in zip(z, reversed(banks), state["log_z"], strict=True)
        ]
        losses, log_z = zip(*found, strict=True)
        banks = [
            _queue.update_bank(bank, index, half, axis_name, momentum=self.momentum)
            for bank, half in zip(banks, z, strict=True)
        ]
        loss = sum(losses)
        metrics = {"loss": loss, "loss_first": losses[0], "loss_second": losses[1], "embeddings": z}
        return loss, ({"batch_stats": batch_stats, "banks": banks, "log_z": list(log_z)}, metrics)

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features
