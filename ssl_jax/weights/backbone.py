"""`Backbone`: a network and its weights, images in, features out."""

# pyright: reportUnknownMemberType=false

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ssl_jax import compiled
from ssl_jax.data.normalization import Normalization
from ssl_jax.models import maps

Variables = Mapping[str, Any]  # {"params": ..., "batch_stats": ...}, nested dicts of arrays
Function = Callable[[Variables, Array], Array]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen backbone: images in, features out.

    mean, std: of each channel, of images in 0..1; () if unknown. To change the normalization: dataclasses.replace.
    image_size: (height, width) that it was trained at; None if unknown. It takes other sizes if its model does.
    facts: what else its file says about it: model, method, step, and the data that it was trained on.
    value_range, dtype, nodata: of the images it was trained on, as `data.Normalization` has them.
    """

    model: nn.Module
    variables: Variables
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    value_range: tuple[float, ...] = ()
    dtype: str = "uint8"
    nodata: tuple[float, ...] = ()

    @property
    def normalization(self) -> Normalization:
        """Raises: ValueError for weights that do not say their normalization."""
        if not self.mean:
            raise ValueError(
                "these weights do not say how their images were normalized; pass normalized=True, or say it: "
                "dataclasses.replace(backbone, mean=..., std=...), one number for each channel, of images in 0..1"
            )
        return Normalization(self.mean, self.std, self.value_range, self.dtype, self.nodata)

    @property
    def dim(self) -> int:
        return self.model.dim

    def described(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """What it is and how it is given images of this (height, width), as JSON has it: "model", "method" if it is of
        a run, "image_size", "channels", and the fields of `Normalization` but nodata."""
        known = {key: self.facts[key] for key in ("model", "method") if self.facts.get(key)}
        normalized = self.normalization
        found = {
            "model": {"name": type(self.model).__name__},
            **known,
            "image_size": image_size,
            "channels": normalized.channels,
            **{name: getattr(normalized, name) for name in ("dtype", "value_range", "mean", "std")},
        }
        return json.loads(json.dumps(found, default=str))

    def preprocess(
        self, images: Num[np.ndarray | Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Normalizes images as in training. Returns float32.

        Args:
          images: of the type of the training images (`dtype`), or, where that is an integer type, floats in 0..1.
        Raises: ValueError for other values, another number of channels, or weights whose normalization is unknown.
        """
        normalization = self.normalization
        if images.shape[-1] != len(self.mean):
            raise ValueError(f"these weights take images of {len(self.mean)} channels, got {images.shape}")
        unit = images.dtype != self.dtype and self.dtype != "float32"
        if unit and images.size and not (images.min() > -0.01 and images.max() < 1.01):
            raise ValueError(
                f"images must be {normalization.accepted}, got {images.dtype} in {images.min():g}..{images.max():g}; "
                "images that are normalized already take normalized=True"
            )
        return self._normalize(images)

    def features(
        self,
        images: Num[np.ndarray | Array, "batch height width channels"],
        normalized: bool = False,
        batch_size: int = 256,
    ) -> Float[np.ndarray, "batch dim"]:
        """Features, float32 (ResNet: averaged over positions; ViT: as the model pools).

        Args:
          images: see `preprocess`.
          normalized: whether images are normalized floats already, so that `preprocess` is skipped.
          batch_size: images on the device at once. A smaller last batch is padded, so that it is compiled once.
        Raises: ValueError as `preprocess`, and for images that the model cannot take.
        """
        return self._by_batches(self._apply, images, normalized, batch_size)

    def patch_features(
        self,
        images: Num[np.ndarray | Array, "batch height width channels"],
        normalized: bool = False,
        batch_size: int = 256,
    ) -> Float[np.ndarray, "batch rows columns dim"]:
        """Features of each patch or position, float32: `models.maps.patch_map`. Arguments are those of `features`.

        Raises: ValueError as `features`, and for a model that has none.
        """
        function = cast(Function, functools.partial(maps.patch_map, self.model))
        return self._by_batches(function, images, normalized, batch_size)

    def block_features(
        self,
        images: Num[np.ndarray | Array, "batch height width channels"],
        normalized: bool = False,
        batch_size: int = 256,
        *,
        blocks: int = 4,
        pool: str = "cls",
        norm: bool = True,
    ) -> Float[np.ndarray, "batch dims"]:
        """Features of a ViT's last blocks, concatenated, float32: see `models.maps.block_features`, also for `blocks`,
        `pool` and `norm`. The other arguments are those of `features`.

        Raises: ValueError as `features`, for a model that is no ViT, and for blocks or tokens that it has not.
        """
        options = dict(blocks=blocks, pool=pool, norm=norm)
        function = cast(Function, functools.partial(maps.block_features, self.model, **options))
        return self._by_batches(function, images, normalized, batch_size)

    def class_attention(
        self,
        images: Num[np.ndarray | Array, "batch height width channels"],
        normalized: bool = False,
        batch_size: int = 256,
    ) -> Float[np.ndarray, "batch heads rows columns"]:
        """Attention of a ViT's class token in the last block: `models.maps.class_attention`. Arguments are those of
        `features`.

        Raises: ValueError as `features`, and for a model without a class token.
        """
        function = cast(Function, functools.partial(maps.class_attention, self.model))
        return self._by_batches(function, images, normalized, batch_size)

    def _by_batches(self, function: Function, images: Any, normalized: bool, batch_size: int) -> np.ndarray:
        """Applies `function` to the variables and the images, batch by batch."""
        outputs: list[np.ndarray] = []
        waiting: Array | None = None
        for start in range(0, len(images), batch_size):
            x = images[start : start + batch_size]
            if start and len(x) < batch_size:
                x = np.concatenate([x, np.zeros((batch_size - len(x), *x.shape[1:]), x.dtype)])
            found = function(self.variables, jnp.asarray(x, jnp.float32) if normalized else self.preprocess(x))
            # The device computes this batch while the one before is fetched.
            if waiting is not None:
                outputs.append(np.asarray(waiting, np.float32))
            waiting = found
        if waiting is None:
            example = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
            return np.empty((0, *jax.eval_shape(function, self.variables, example).shape[1:]), np.float32)
        return np.concatenate([*outputs, np.asarray(waiting, np.float32)])[: len(images)]

    @functools.cached_property
    def _normalize(self) -> Callable[[Any], Array]:
        normalization = self.normalization

        def normalize(images: Array) -> Array:
            return jnp.asarray(normalization(images))

        return jax.jit(normalize)

    @functools.cached_property
    def _apply(self) -> Function:
        return jax.jit(self.model.apply, compiler_options=compiled.options_of_steps(jax.default_backend()))
