"""Segmentation by a linear head on frozen patch features: whether they tell what is where."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from ssl_jax.evaluation import sweep
from ssl_jax.evaluation._checks import check_same_dim
from ssl_jax.evaluation.labels import draw_labels
from ssl_jax.evaluation.many_heads import Params, Shape
from ssl_jax.ops import check_finite

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
IGNORE = 255  # the class of pixels that are not counted


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The result of a head on the test set, in percent.

    iou: for each class, the pixels that truth and prediction share, divided by those that either has; NaN if neither
      has any.
    pixel_accuracy: the share of pixels whose class is right.
    learning_rate: the chosen one.
    predictions: classes of the test pixels.
    """

    iou: Float[np.ndarray, "classes"]
    pixel_accuracy: float
    learning_rate: float
    predictions: UInt8[np.ndarray, "test height width"]

    @property
    def mean_iou(self) -> float:
        """The mean over the classes that truth or prediction has."""
        return float(np.nanmean(self.iou))


def linear_segmentation(
    train_maps: Float[np.ndarray, "train rows columns dim"],
    train_masks: UInt8[np.ndarray, "train height width"],
    test_maps: Float[np.ndarray, "test rows columns dim"],
    test_masks: UInt8[np.ndarray, "test test_height test_width"],
    *,
    num_classes: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    steps: int = 500,
    batch_size: int = 16,
    seed: int = 0,
) -> Segmentation:
    """Trains a linear classifier of each patch's features. Its logits are interpolated bilinearly to the mask's size.

    Features are standardized over all training patches. Heads are trained on the pixels' mean cross entropy, at all
    learning rates side by side. The rate with the least cross entropy on a fifth of the training images is chosen, and
    a head is trained with it on all of them.

    Args:
      train_maps, test_maps: finite; float16 halves their memory. They stay on the host except for one batch.
      train_masks, test_masks: the class of each pixel, in 0 .. num_classes - 1, or 255: not counted.
      num_classes: 2 to 255, the background included.
      learning_rates, steps, batch_size: of AdamW, see `sweep.training`; the defaults are from no paper.
      seed: of the held-out images and the order of the batches.

    Raises: ValueError for numbers out of range, images without exactly one mask each, a class out of range, fewer than
      two training images, features that are not finite.
    Source: Oquab et al. 2023, arXiv:2304.07193, section 7.4, "Lin.": a linear layer on patch tokens, upsampled. (The
      authors have BatchNorm before it, and larger crops.)
    """
    if not 2 <= num_classes <= IGNORE:
        raise ValueError(f"num_classes must be in 2..{IGNORE}, got {num_classes}; {IGNORE} itself means not counted")
    for name, maps, masks in (("train", train_maps, train_masks), ("test", test_maps, test_masks)):
        _check_masks(name, len(maps), masks, num_classes)
        check_finite(name, maps)
    if len(train_maps) < 2:
        raise ValueError("one training image leaves none to choose the learning rate on; give at least 2")
    check_same_dim(train_maps, test_maps)
    dim = train_maps.shape[-1]
    index, held_out = draw_labels(np.zeros(len(train_maps), np.int32), 1, None, seed)
    fixed = sweep.standardization(train_maps)
    params = {"kernel": jnp.zeros((dim, num_classes)), "bias": jnp.zeros(num_classes)}
    training = sweep.training(
        _logits, params, fixed, train_maps, train_masks, steps=steps, batch_size=batch_size, seed=seed
    )
    fitted, rate = sweep.choose_and_fit(
        training, learning_rates, index[~held_out], index[held_out], batch_size=batch_size
    )
    batches = training.predict(fitted, test_maps, test_masks.shape[1:], batch_size=batch_size)
    predictions = np.concatenate([batch.astype(np.uint8) for batch in batches])
    counts = confusion(test_masks, predictions, num_classes)
    hits, either = np.diagonal(counts), counts.sum(axis=0) + counts.sum(axis=1) - np.diagonal(counts)
    iou = np.divide(100.0 * hits, either, out=np.full(num_classes, math.nan), where=either > 0)
    return Segmentation(iou, float(100.0 * hits.sum() / counts.sum()), rate, predictions)


def confusion(
    truth: UInt8[np.ndarray, "images height width"],
    predicted: UInt8[np.ndarray, "images height width"],
    num_classes: int,
) -> Int[np.ndarray, "classes classes"]:
    """[i, j]: how many pixels of class i were predicted as class j. Pixels of class 255 are not counted."""
    pairs = np.zeros(num_classes**2, np.int64)
    for one, other in zip(truth, predicted, strict=True):  # one image at a time, as int64 takes eight times the memory
        counts = one != IGNORE
        pairs += np.bincount(num_classes * one[counts].astype(np.int64) + other[counts], minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def _logits(
    params: Params, fixed: Params, maps: Float[Array, "batch rows columns dim"], shape: Shape
) -> Float[Array, "batch height width classes"]:
    patches = jnp.matmul(sweep.standardize(fixed, maps), params["kernel"], precision="highest") + params["bias"]
    return jax.image.resize(patches, (*shape, patches.shape[-1]), "bilinear", precision=lax.Precision.HIGHEST)


def _check_masks(name: str, images: int, masks: UInt8[np.ndarray, "masks height width"], num_classes: int) -> None:
    if images != len(masks):
        raise ValueError(
            f"{name}: feature maps of {images} images but {len(masks)} masks; give one mask for each image"
        )
    found = np.bincount(masks.ravel(), minlength=IGNORE + 1)
    if found[num_classes:IGNORE].any():
        highest = int(np.flatnonzero(found[:IGNORE])[-1])
        raise ValueError(
            f"{name}: a mask has class {highest}, too large for num_classes={num_classes}; classes "
            f"count from 0, and {IGNORE} is for pixels that do not count"
        )
    if not found[:num_classes].any():
        raise ValueError(f"{name}: no pixel of the masks has a class; {IGNORE} means not counted")
