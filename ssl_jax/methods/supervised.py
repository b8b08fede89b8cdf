"""Supervised pre-training."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses, ops
from ssl_jax.keys import NOT_NEGATIVE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import tiling
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class Supervised(Base):
    """Classifies images by their labels: the baseline that pre-training without labels is measured against.

    Images without a label (-1) are left out of the loss. With `mixup` or `cutmix` an image and its target are mixed
    with those of its neighbor in the batch, a random other image. With both keys, each image gets one of the two. If
    either image has no label, the mix is left out, too. The features are the backbone's, before the classifier, as in
    all other methods.

    Source: label smoothing: Szegedy et al. 2015, arXiv:1512.00567, section 7; mixup: Zhang et al. 2017,
    arXiv:1710.09412, section 2; cutmix: Yun et al. 2019, arXiv:1905.04899, section 3.1.
    """

    backbone: nn.Module
    schedule: Schedule
    label_smoothing: Annotated[
        float, Range(0.0, 1.0, below=True), "Share of each target that is spread evenly over all classes."
    ] = 0.0
    mixup: Annotated[
        float, NOT_NEGATIVE, "alpha of the Beta distribution of an image's own share in a mix; 0 for no mixup."
    ] = 0.0
    cutmix: Annotated[
        float, NOT_NEGATIVE, "alpha of the Beta distribution of the area that stays an image's own; 0 for no cutmix."
    ] = 0.0

    views = ("view",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule.num_classes < 2:
            raise ValueError(
                "supervised pre-training needs labels of at least 2 classes, "
                f"the data have {self.schedule.num_classes}; in a folder, sub-folders are the classes"
            )

    @property
    def networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "classifier": MLP((self.schedule.num_classes,), output_bias=True)}

    @property
    def chance_level(self) -> float:
        return math.log(self.schedule.num_classes)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        rng_mix, rng_dropout = jax.random.split(rng)
        images = batch["views"][0]
        labels = targets = batch["label"]
        if self.mixup or self.cutmix:
            images, share = self.mix(rng_mix, batch["index"], images)
            own = jax.nn.one_hot(labels, self.schedule.num_classes)
            targets = share[:, None] * own + (1.0 - share[:, None]) * toolkit.neighbors(own)
            both = (labels >= 0) & (toolkit.neighbors(labels) >= 0)
            targets = jnp.where(both[:, None], targets, 0.0)
        outputs, batch_stats = toolkit.forward(
            self.networks, params, state["batch_stats"], images, axis_name=axis_name, rng=rng_dropout
        )
        logits = outputs["classifier"]
        loss = losses.classification(logits, targets, label_smoothing=self.label_smoothing, axis_name=axis_name)
        metrics = {"accuracy": toolkit.accuracy(logits, labels, axis_name)}
        return Output(loss, {"batch_stats": batch_stats}, metrics, embeddings=outputs["backbone"][None])

    def mix(
        self, rng: Key[Array, ""], index: ops.Index, images: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch height width channels"], Float[Array, " batch"]]:
        """(mixed images, each image's own share in its mix)"""
        _, height, width, _ = images.shape
        keys = tiling.image_keys(rng, index)
        own = jax.vmap(lambda key: _shares(key, (height, width), self.mixup, self.cutmix))(keys)
        mixed = own[..., None] * images + (1.0 - own[..., None]) * toolkit.neighbors(images)
        return mixed, jnp.mean(own, axis=(1, 2))

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=1)


def _shares(key: Key[Array, ""], size: tuple[int, int], mixup: float, cutmix: float) -> Float[Array, "height width"]:
    """An image's own share in each of its pixels: with mixup one number, with cutmix 0 in a box and 1 around it."""
    key_kind, key_share, key_box = jax.random.split(key, 3)
    height, width = size
    use_cutmix = jax.random.bernoulli(key_kind, 0.5 if mixup and cutmix else float(cutmix > 0))
    share = jax.random.beta(key_share, mixup or 1.0, mixup or 1.0)
    side = jnp.sqrt(1.0 - jax.random.beta(key_share, cutmix or 1.0, cutmix or 1.0))
    center = jax.random.uniform(key_box, (2,)) * jnp.array(size)
    rows, columns = jnp.arange(height)[:, None] + 0.5, jnp.arange(width)[None] + 0.5
    box = (jnp.abs(rows - center[0]) < side * height / 2) & (jnp.abs(columns - center[1]) < side * width / 2)
    return jnp.where(use_cutmix, 1.0 - box, share)
