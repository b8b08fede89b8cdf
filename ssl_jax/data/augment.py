"""Random views of images, made on the device: jitted and batched. Each row has its own random numbers.

The operations are written for one image, [channels, height, width]; `jax.vmap` maps them over the batch. A view of an
example depends only on rng, the example's index and the view's number, not on the rest of the batch.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float, Key

from ssl_jax import ops
from ssl_jax.data import geometric, photometric
from ssl_jax.data.augmentation import Augmentation
from ssl_jax.data.crop import RandomCrop
from ssl_jax.data.draws import draw, own_key
from ssl_jax.data.masks import Mask, random_masks
from ssl_jax.data.normalization import Normalization

# What an augmentation with `shift` has from the first view.
GEOMETRY = ("size", "crop_area", "crop_aspect", "interpolation", "flip", "flip_vertical", "quarter_turns", "rotate")


@dataclass(frozen=True)
class OwnAugmentation:
    """How a user's function makes one view.

    function: (rng, image) -> view, of one example, jittable. image: float32 [*size, channels] in 0..1, whole, as
    data/crop.py's `center_crop` gives it. The view is float32 in 0..1, of any size, and is normalized afterwards.
    size: (height, width) of the image.
    """

    function: Callable[[Key[Array, ""], Float[Array, "height width channels"]], Float[Array, "_ _ channels"]]
    size: tuple[int, int]

    @property
    def crop(self) -> RandomCrop:
        """The whole image."""
        height, width = self.size
        return RandomCrop(size=self.size, area=(1.0, 1.0), aspect=(width / height, width / height))

    def check(self, channels: int) -> None:
        """Any image will do."""


def own_view(
    key: Key[Array, ""], image: Float[Array, "height width channels"], *, augmentation: OwnAugmentation
) -> tuple[Float[Array, "new_height new_width channels"], Float[Array, "6"]]:
    """Like `random_view`. The box is that of the whole image, whichever part of it the function uses."""
    return augmentation.function(key, image), jnp.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0])


def make_augment(
    augmentations: Sequence[Augmentation | OwnAugmentation],
    normalization: Normalization,
    *,
    masks: Sequence[Mask | None] = (),
) -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
    """The function `augment(rng, batch) -> batch`. Each of `augmentations` makes one view of every image.

    `augment` is pure, and works on a whole batch or on one device's rows of it. `rng` is the key of the step. `batch`
    has "index", see `ops.Index`, and either
      "image": [batch, height, width, channels] of the type of `normalization`, which `augment` crops; or
      "crops": a tuple of such [batch, *size, channels], one for each view, which the host has cropped; with
      "boxes": a tuple of float32 [batch, 4].
    The returned batch has, in their place,
      "views": a tuple of float32 [batch, *size, channels], normalized;
      "boxes": a tuple of float32 [batch, 6]: where each view lies in its image. Top, left, height and width are shares
        of the image's sides; then 1 if the view is mirrored left and right, else 0, and the degrees by which it was
        turned counterclockwise after that. Upside down is mirrored and turned by 180;
      "masks": a tuple of bool [batch, patches], True where a patch is masked: one for each view whose entry of `masks`
        is not None.

    When traced, `augment` raises ValueError if an augmentation does not fit the images (see `Augmentation.check`).

    Raises: ValueError for an augmentation with `shift` that is the first, or whose geometry is not the first's.
    """
    augmentations = tuple(augmentations)
    check_shifts(augmentations)
    masks = tuple(masks) or (None,) * len(augmentations)

    def augment(rng: Key[Array, ""], batch: dict[str, Any]) -> dict[str, Any]:
        batch = dict(batch)
        cropped = "crops" in batch
        images = batch.pop("crops") if cropped else (batch.pop("image"),) * len(augmentations)
        host_boxes = batch.pop("boxes") if cropped else (None,) * len(augmentations)
        views: list[Array] = []
        boxes: list[Array] = []
        for number, (augmentation, image, box) in enumerate(zip(augmentations, images, host_boxes, strict=True)):
            augmentation.check(image.shape[-1])
            if isinstance(augmentation, OwnAugmentation):
                one = functools.partial(own_view, augmentation=augmentation)
            else:
                one = functools.partial(random_view, augmentation=augmentation, cropped=cropped)
            view_keys = _keys(rng, batch["index"], number)
            shifted = isinstance(augmentation, Augmentation) and augmentation.shift
            first = (_keys(rng, batch["index"], 0),) if shifted else ()
            view, new_box = jax.vmap(one)(view_keys, jnp.asarray(normalization.unit(image)), *first)
            views.append(jnp.asarray(normalization.of_unit(view)))
            if isinstance(augmentation, Augmentation) and augmentation.channel_drop:
                views[-1] = _drop_channels(view_keys, views[-1], augmentation.channel_drop)
            boxes.append(new_box if box is None else new_box.at[:, :4].set(box))
        made = [
            random_masks(_keys(rng, batch["index"], len(views) + number), augmentations[number].size, mask)
            for number, mask in enumerate(masks)
            if mask is not None
        ]
        return batch | {"views": tuple(views), "boxes": tuple(boxes), "masks": tuple(made)}

    return augment


def check_shifts(augmentations: Sequence[Augmentation | OwnAugmentation]) -> None:
    """Raises: ValueError for an augmentation with `shift` that is the first, or whose geometry is not the first's."""
    first = augmentations[0]
    for number, one in enumerate(augmentations):
        if not isinstance(one, Augmentation) or not one.shift:
            continue
        if number == 0:
            raise ValueError(f"shift={one.shift} moves the first view's crop, and this is the first; use shift=0.0")
        for name in GEOMETRY:
            own, wanted = getattr(one, name), getattr(first, name, None)
            if own != wanted:
                raise ValueError(
                    f"shift={one.shift} moves the first view's crop, whose {name} is {wanted}; use the same, got {own}"
                )


def random_view(
    key: Key[Array, ""],
    image: Float[Array, "height width channels"],
    first: Key[Array, ""] | None = None,
    *,
    augmentation: Augmentation,
    cropped: bool = False,
) -> tuple[Float[Array, "new_height new_width channels"], Float[Array, "6"]]:
    """(a random view of the image; its box in the image, see `make_augment`). Both images are in 0..1.

    first: with `shift`, the key of the first view. cropped: the image is a crop already, and has the view's size.
    """
    draws = of_place = draw(key)
    if first is not None:
        of_place = {**draw(first), "shift": random.uniform(own_key(key, "shift"), (2,))}
    placing = key if first is None else first
    image, box = geometric.place(placing, image.transpose(2, 0, 1), of_place, augmentation, cropped=cropped)
    return photometric.change(key, image, draws, augmentation).transpose(1, 2, 0), box


def _keys(rng: Key[Array, ""], index: ops.Index, number: int) -> Key[Array, "batch"]:
    """A key for view `number` of each example, made from the example's index."""
    return jax.vmap(random.fold_in, (0, None))(ops.example_keys(rng, index), number)


def _drop_channels(
    view_keys: Key[Array, "batch"], views: Float[Array, "batch height width channels"], probability: float
) -> Float[Array, "batch height width channels"]:
    kept = functools.partial(photometric.kept_channels, channels=views.shape[-1], probability=probability)
    return jnp.where(jax.vmap(kept)(view_keys)[:, None, None, :], views, 0.0)
