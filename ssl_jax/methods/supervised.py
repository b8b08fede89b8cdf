"""Supervised pre-training."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.methods import _common, _tiles
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Classifies images by their labels: the baseline that pre-training without labels is measured against.

    Images without a label (-1) are left out of the loss. With `mixup` or `cutmix` an image is mixed with the neighbor
    in its batch, which is a random other one, and its target with that one's; with both, each image has either. What is
    mixed with an image without a label is left out, too.
    Its features are the backbone's, before the classifier, as those of all other methods.

    Source: label smoothing: Szegedy et al. 2015, arXiv:1512.00567, section 7; mixup: Zhang et al. 2017,
    arXiv:1710.09412, section 2; cutmix: Yun et al. 2019, arXiv:1905.04899, section 3.1.
    """

    backbone: nn.Module
    run: _common.Run
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of the Beta distribution of an image's share; 0: none
    cutmix: float = 0.0  # as much, of the area that stays; 0: none

    views: ClassVar[tuple[str, ...]] = ("view",)

    def __post_init__(self):
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.run.num_classes < 2:
            raise ValueError(
                f"supervised pre-training needs labels of at least 2 classes, the data have {self.run.num_classes}; "
                "in a folder, sub-folders are the classes"
            )

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "classifier": MLP((self.run.num_classes,), output_bias=True)}

    @property
    def chance_level(self) -> float:
        return math.log(self.run.num_classes)

    def init(self, rng, images):
        params, batch_stats = _common.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        rng_mix, rng_dropout = jax.random.split(rng)
        images = batch["views"][0]
        labels = targets = batch["label"]
        if self.mixup or self.cutmix:
            images, share = self.mix(rng_mix, batch["index"], images)
            own = jax.nn.one_hot(labels, self.run.num_classes)
            targets = share[:, None] * own + (1.0 - share[:, None]) * _common.neighbors(own)
            both = (labels >= 0) & (_common.neighbors(labels) >= 0)
            targets = jnp.where(both[:, None], targets, 0.0)
        outputs, batch_stats = _common.forward(
            self.networks, params, state["batch_stats"], images, axis_name=axis_name, rng=rng_dropout
        )
        logits = outputs["classifier"]
        loss = losses.classification(logits, targets, label_smoothing=self.label_smoothing, axis_name=axis_name)
        accuracy = _common.accuracy(logits, labels, axis_name)
        return loss, (
            {"batch_stats": batch_stats},
            {"loss": loss, "accuracy": accuracy, "embeddings": outputs["backbone"][None]},
        )

    def mix(
        self, rng: Key[Array, ""], index: Int[Array, " batch"], images: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch height width channels"], Float[Array, " batch"]]:
        """(mixed images, the share of each that is its own)"""
        keys = _tiles.image_keys(rng, index)
        one = jax.vmap(lambda key: _shares(key, images.shape[1:3], self.mixup, self.cutmix))
        own = one(keys)  # [batch, height, width]
        mixed = own[..., None] * images + (1.0 - own[..., None]) * _common.neighbors(images)
        return mixed, jnp.mean(own, axis=(1, 2))

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features


def _shares(key: Any, size: tuple[int, int], mixup: float, cutmix: float) -> Float[Array, "height width"]:
    """The share that an image has in each of its pixels: one number by mixup, 0 in a box by cutmix."""
    key_kind, key_share, key_box = jax.random.split(key, 3)
    height, width = size
    use_cutmix = jax.random.bernoulli(key_kind, 0.5 if mixup and cutmix else float(cutmix > 0))
    share = jax.random.beta(key_share, mixup or 1.0, mixup or 1.0)
    side = jnp.sqrt(1.0 - jax.random.beta(key_share, cutmix or 1.0, cutmix or 1.0))
    center = jax.random.uniform(key_box, (2,)) * jnp.array(size)
    rows, columns = jnp.arange(height)[:, None] + 0.5, jnp.arange(width)[None] + 0.5
    box = (jnp.abs(rows - center[0]) < side * height / 2) & (jnp.abs(columns - center[1]) < side * width / 2)
    return jnp.where(use_cutmix, 1.0 - box, share)
