"""Counting."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import losses
from ssl_jax.methods import _common, _tiles
from ssl_jax.models.heads import MLP

FILTERS = ("linear", "cubic", "lanczos3", "area")  # by which an image is made smaller, one drawn for each
PARTS = 2  # tiles a side


@dataclasses.dataclass(frozen=True)
class Counting:
    """Counts something in an image, made half as large, that adds up over its four quarters.

    Counts are what a linear layer on the backbone gives, above 0. That all are 0 is kept away by a margin to the counts
    of another image. Each image is made smaller by a filter drawn for it, lest the filter's traces be counted.

    Source: Noroozi, Pirsiavash & Favaro 2017, arXiv:1708.06734, section 3.
    """

    backbone: nn.Module
    run: _common.Run
    width: int = 1000  # numbers that are counted
    margin: float = 10.0

    views: ClassVar[tuple[str, ...]] = ("view",)

    def __post_init__(self):
        _common.check_positive(self, "width", "margin")

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "counter": MLP((self.width,), output_bias=True)}

    @property
    def chance_level(self) -> float:
        return self.margin  # all counts being 0

    def init(self, rng, images):
        _check_even(images)
        params, batch_stats = _common.init(self.networks, rng, images[:, ::PARTS, ::PARTS])
        return params, {"batch_stats": batch_stats}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,) = batch["views"]
        rng_filter, rng_dropout = jax.random.split(rng)
        whole = self.shrink(rng_filter, batch["index"], images)
        quarters = _quarters(images)
        rows = jnp.concatenate([whole[:, None], quarters], axis=1)  # an image's five side by side
        outputs, batch_stats = _common.forward(
            self.networks, params, state["batch_stats"], _tiles.as_images(rows), axis_name=axis_name, rng=rng_dropout
        )
        counts = nn.relu(outputs["counter"]).reshape(len(images), 1 + PARTS**2, -1)
        of_whole, parts = counts[:, 0], counts[:, 1:]
        loss = losses.counting(of_whole, parts, _common.neighbors(of_whole), margin=self.margin, axis_name=axis_name)
        h = outputs["backbone"].reshape(len(images), 1 + PARTS**2, -1)
        metrics = {"loss": loss, "count": jnp.mean(of_whole), "embeddings": h[:, 0][None]}
        return loss, ({"batch_stats": batch_stats}, metrics)

    def shrink(self, rng: Any, index: Any, images: Any) -> Any:
        """Images of half the side, each by one of FILTERS."""
        size = (len(images), *(side // PARTS for side in images.shape[1:3]), images.shape[-1])
        made = [_area(images) if name == "area" else jax.image.resize(images, size, name) for name in FILTERS]
        drawn = _tiles.offsets(rng, index, (), len(FILTERS))[:, None, None, None]
        return jnp.select([drawn == i for i in range(len(FILTERS))], made)

    update = _common.keep_state
    backbone_variables = _common.online_backbone
    features = _common.features


def _area(images: Any) -> Any:
    """Each pixel the mean of PARTS x PARTS."""
    batch, height, width, channels = images.shape
    return jnp.mean(images.reshape(batch, height // PARTS, PARTS, width // PARTS, PARTS, channels), axis=(2, 4))


def _quarters(images: Any) -> Any:
    """[batch, 4, height / 2, width / 2, channels], row by row."""
    _check_even(images)
    batch, height, width, channels = images.shape
    x = images.reshape(batch, PARTS, height // PARTS, PARTS, width // PARTS, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, PARTS**2, height // PARTS, width // PARTS, channels)


def _check_even(images: Any) -> None:
    if images.shape[1] % PARTS or images.shape[2] % PARTS:
        raise ValueError(f"views of {images.shape[1]}x{images.shape[2]} pixels have no quarters; use even sides")
