"""Segmentation by a small head on frozen patch features: whether they tell what is where."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped, UInt8

from ssl_jax.data.segmentation import IGNORE
from ssl_jax.evaluation import sweep
from ssl_jax.evaluation._checks import check_same_dim
from ssl_jax.evaluation.labels import draw_labels
from ssl_jax.evaluation.many_heads import Logits, Params, Shape
from ssl_jax.ops import check_finite

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
STEPS, BATCH_SIZE = 500, 16
HIDDEN = 128  # channels between the two layers of the convolutional head

Maps = Float[np.ndarray, "images rows columns dim"]
Masks = UInt8[np.ndarray, "images height width"]


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The result of a head on the test set, in percent.

    iou: for each class, the pixels that truth and prediction share, divided by those that either has; NaN if neither
      has any.
    shares: for each class, its share of the pixels that count. The largest one is the pixel accuracy of calling every
      pixel so.
    pixel_accuracy: the share of pixels whose class is right.
    learning_rate: the chosen one.
    predictions: classes of the test pixels.
    """

    iou: Float[np.ndarray, "classes"]
    shares: Float[np.ndarray, "classes"]
    pixel_accuracy: float
    learning_rate: float
    predictions: UInt8[np.ndarray, "test height width"]

    @property
    def mean_iou(self) -> float:
        """The mean over the classes that truth or prediction has."""
        return float(np.nanmean(self.iou))

    @property
    def largest(self) -> int:
        """The class with the most pixels."""
        return int(np.argmax(self.shares))

    @property
    def largest_mean_iou(self) -> float:
        """The mean IoU of calling every pixel of the largest class, over the classes that the truth has."""
        return float(self.shares.max() / np.count_nonzero(self.shares))


class Kind(NamedTuple):
    """A kind of head.

    first: (rng, dim, classes) -> its initial parameters.
    patches: (params, standardized features) -> logits of each patch. Their interpolation is the same for all kinds.
    """

    first: Callable[[Array, int, int], Params]
    patches: Callable[[Params, Float[Array, "batch rows columns dim"]], Float[Array, "batch rows columns classes"]]


def _first_linear(rng: Array, dim: int, classes: int) -> Params:
    return {"kernel": jnp.zeros((dim, classes)), "bias": jnp.zeros(classes)}


def _linear(params: Params, x: Float[Array, "batch rows columns dim"]) -> Float[Array, "batch rows columns classes"]:
    return jnp.matmul(x, params["kernel"], precision="highest") + params["bias"]


def _first_conv(rng: Array, dim: int, classes: int) -> Params:
    """He's initialization, and a last layer of zeros: training starts at equal probabilities, as of the linear head."""
    kernel = math.sqrt(2 / (9 * dim)) * jax.random.normal(rng, (3, 3, dim, HIDDEN))
    return {"conv_kernel": kernel, "conv_bias": jnp.zeros(HIDDEN), **_first_linear(rng, HIDDEN, classes)}


def _conv(params: Params, x: Float[Array, "batch rows columns dim"]) -> Float[Array, "batch rows columns classes"]:
    # As matrix products: on two CPU cores, a step of four heads with XLA's convolution takes 17 times as long (5 x 5
    # patches of 512 dimensions).
    parts = jnp.einsum("brcd,yxdh->yxbrch", x, params["conv_kernel"], precision="highest")
    around = jnp.pad(parts, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))  # by features of 0, their mean
    rows, columns = x.shape[1:3]
    hidden = sum(around[i, j, :, i : i + rows, j : j + columns] for i in range(3) for j in range(3))
    return _linear(params, jax.nn.gelu(hidden + params["conv_bias"]))


HEADS = {"linear": Kind(_first_linear, _linear), "conv": Kind(_first_conv, _conv)}


def _interpolated(
    kind: Kind, params: Params, fixed: Params, maps: Float[Array, "batch rows columns dim"], shape: Shape
) -> Float[Array, "batch height width classes"]:
    patches = kind.patches(params, sweep.standardize(fixed, maps))
    return jax.image.resize(patches, (*shape, patches.shape[-1]), "bilinear", precision=lax.Precision.HIGHEST)


# Made once, so that each is compiled once.
_LOGITS: Mapping[str, Logits] = {name: functools.partial(_interpolated, kind) for name, kind in HEADS.items()}


class Fitted(NamedTuple):
    """A trained head.

    parameters: of its kind, and the "mean" and "scale" that standardize features, float32.
    learning_rate: the chosen one.
    """

    parameters: dict[str, Float[np.ndarray, "..."]]
    learning_rate: float


def linear_segmentation(
    train_maps: Float[np.ndarray, "train rows columns dim"],
    train_masks: UInt8[np.ndarray, "train height width"],
    test_maps: Float[np.ndarray, "test rows columns dim"],
    test_masks: UInt8[np.ndarray, "test test_height test_width"],
    *,
    num_classes: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Segmentation:
    """Trains a linear classifier of each patch's features by `fit_head`, and measures it by `measure`.

    Args:
      test_maps, test_masks: as `train_maps` and `train_masks` of `fit_head`, where the other arguments are explained.
    Raises: ValueError as `fit_head`.
    Source: Oquab et al. 2023, arXiv:2304.07193, section 7.4, "Lin.": a linear layer on patch tokens, upsampled. (The
      authors have BatchNorm before it, and larger crops.)
    """
    check_masks("train", train_maps, train_masks, num_classes)
    check_masks("test", test_maps, test_masks, num_classes)
    check_same_dim(train_maps, test_maps)
    fitted = fit_head(
        "linear",
        train_maps,
        train_masks,
        num_classes=num_classes,
        learning_rates=learning_rates,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )
    predictions = predict_masks("linear", fitted.parameters, test_maps, test_masks.shape[1:])
    return measure(test_masks, predictions, num_classes, fitted.learning_rate)


def fit_head(
    head: str,
    maps: Maps,
    masks: Masks,
    *,
    num_classes: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    groups: Shaped[np.ndarray, "images"] | None = None,
) -> Fitted:
    """Trains a classifier of patches. Its logits are interpolated bilinearly to the mask's size.

    Features are standardized over all training patches. Heads are trained on the pixels' mean cross entropy, at all
    learning rates side by side. The rate with the least cross entropy on a fifth of the training images is chosen, and
    a head is trained with it on all of them.

    Args:
      head: "linear": a linear layer on each patch's features. "conv": a convolution of 3 x 3 patches to HIDDEN
        channels, GELU, and the linear layer, so that a patch's neighbors have a say.
      maps: finite; float16 halves their memory. They stay on the host except for one batch.
      masks: the class of each pixel, in 0 .. num_classes - 1, or 255: not counted.
      num_classes: 2 to 255, the background included.
      learning_rates, steps, batch_size: of AdamW, see `sweep.training`; the defaults are from no paper.
      seed: of the held-out images, the first weights and the order of the batches.
      groups: what each image belongs to; whole groups are held out. None if that is not known.
    Raises: ValueError for an unknown head, numbers out of range, images without exactly one mask each, a class out of
      range, fewer than two training images, features that are not finite.
    """
    check_head(head)
    check_masks("train", maps, masks, num_classes)
    if len(maps) < 2:
        raise ValueError("one training image leaves none to choose the learning rate on; give at least 2")
    index, held_out = draw_labels(np.zeros(len(maps), np.int32), 1, None, seed, groups)
    fixed = sweep.standardization(maps)
    params = HEADS[head].first(jax.random.key(seed), maps.shape[-1], num_classes)
    training = sweep.training(_LOGITS[head], params, fixed, maps, masks, steps=steps, batch_size=batch_size, seed=seed)
    heads, rate = sweep.choose_and_fit(
        training, learning_rates, index[~held_out], index[held_out], batch_size=batch_size
    )
    trained = {name: np.asarray(value[0]) for name, value in heads.params.items()}
    return Fitted({**trained, **{name: np.asarray(value) for name, value in fixed.items()}}, rate)


def predict_masks(
    head: str,
    parameters: Mapping[str, Float[np.ndarray, "..."]],
    maps: Maps,
    shape: tuple[int, ...],
    batch_size: int = 64,
) -> Masks:
    """The classes of the pixels of images of `shape`, (height, width). head, parameters: of `fit_head`.

    The logits are interpolated on the host, class by class, so that large images need little memory.
    """
    found = np.empty((len(maps), *shape), np.uint8)
    for start in range(0, len(maps), batch_size):
        logits = patch_logits(head, parameters, maps[start : start + batch_size])
        for row, of_patches in enumerate(logits, start):
            found[row] = classes_at(of_patches, shape)
    return found


def patch_logits(
    head: str,
    parameters: Mapping[str, Float[np.ndarray, "..."]],
    maps: Float[np.ndarray, "images rows columns dim"],
) -> Float[np.ndarray, "images rows columns classes"]:
    """The logits of each patch. head, parameters: of `fit_head`."""
    return np.asarray(_applied(head, dict(parameters), maps))


@functools.partial(jax.jit, static_argnames="head")
def _applied(head: str, parameters: Params, maps: Float[Array, "batch rows columns dim"]) -> Array:
    return HEADS[head].patches(parameters, sweep.standardize(parameters, maps))


def classes_at(
    logits: Float[np.ndarray, "rows columns classes"], shape: tuple[int, ...]
) -> UInt8[np.ndarray, "height width"]:
    """The class with the greatest logit, the first of several, where logits are interpolated to `shape`."""
    height, width = shape
    classes, most = np.zeros(shape, np.uint8), np.full(shape, -np.inf, np.float32)
    for number in range(logits.shape[-1]):
        one = np.ascontiguousarray(logits[..., number], np.float32)
        resized = cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR)
        classes[resized > most] = number
        np.maximum(most, resized, out=most)
    return classes


def measure(truth: Masks, predictions: Masks, num_classes: int, learning_rate: float) -> Segmentation:
    """Scores of the predictions. truth: the class of each pixel, or 255: not counted."""
    counts = confusion(truth, predictions, num_classes)
    hits, either = np.diagonal(counts), counts.sum(axis=0) + counts.sum(axis=1) - np.diagonal(counts)
    iou = np.divide(100.0 * hits, either, out=np.full(num_classes, math.nan), where=either > 0)
    shares = 100.0 * counts.sum(axis=1) / counts.sum()
    return Segmentation(iou, shares, float(100.0 * hits.sum() / counts.sum()), learning_rate, predictions)


def confusion(truth: Masks, predicted: Masks, num_classes: int) -> Int[np.ndarray, "classes classes"]:
    """[i, j]: how many pixels of class i were predicted as class j. Pixels of class 255 are not counted."""
    pairs = np.zeros(num_classes**2, np.int64)
    for one, other in zip(truth, predicted, strict=True):  # one image at a time, as int64 takes eight times the memory
        counts = one != IGNORE
        pairs += np.bincount(num_classes * one[counts].astype(np.int64) + other[counts], minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def check_head(head: str) -> None:
    """Raises: ValueError for what is no name in HEADS."""
    if head not in HEADS:
        raise ValueError(f"there is no head {head!r}; choose from {', '.join(HEADS)}")


def check_masks(name: str, maps: Maps, masks: UInt8[np.ndarray, "masks height width"], num_classes: int) -> None:
    """Raises: ValueError unless there is a mask for each map, of classes in range, and the maps are finite."""
    if not 2 <= num_classes <= IGNORE:
        raise ValueError(f"num_classes must be in 2..{IGNORE}, got {num_classes}; {IGNORE} itself means not counted")
    if len(maps) != len(masks):
        raise ValueError(
            f"{name}: feature maps of {len(maps)} images but {len(masks)} masks; give one mask for each image"
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
    check_finite(name, maps)
