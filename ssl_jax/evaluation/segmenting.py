"""Trains segmenters on images with masks, and measures them.

found = segment(backbone, data.masked(images, masks), data.masked(test_images, test_masks), head="conv")
found.save("runs/a-segmenter")
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from ssl_jax import paths
from ssl_jax.data import segmentation as reading
from ssl_jax.data.crop import resize
from ssl_jax.data.segmentation import Masked
from ssl_jax.data.sources import spread
from ssl_jax.data.uniform import Uniform
from ssl_jax.evaluation import segmentation, sweep
from ssl_jax.evaluation.evaluation import image_size_of
from ssl_jax.evaluation.saving import as_json, described
from ssl_jax.evaluation.segmentation import BATCH_SIZE, LEARNING_RATES, STEPS, Segmentation
from ssl_jax.evaluation.segmenter import BATCH, Segmenter, patch_maps
from ssl_jax.weights import Backbone
from ssl_jax.workdir import files

SCORES = "scores.json"
SHOWN = 8  # test images in `Segmented.samples`


class Samples(NamedTuple):
    """Some test images, at equal distances, to be looked at.

    images: red, green and blue, or gray; of three or more channels the first three.
    truth: the class of each pixel, or 255. predicted: the class of each pixel.
    """

    names: list[str]
    images: UInt8[np.ndarray, "images height width shown"]
    truth: UInt8[np.ndarray, "images height width"]
    predicted: UInt8[np.ndarray, "images height width"]


@dataclasses.dataclass(frozen=True)
class Segmented:
    """A trained segmenter and its scores.

    scores: "learning_rate", "steps", numbers of images; on test images, in percent, "mean_iou" and "pixel_accuracy",
      "majority": the class with the most pixels, with its share of them ("percent") and the mean IoU of calling every
      pixel so; and "classes": name -> its "iou" (None if neither truth nor prediction has it) and its "percent" of the
      pixels. All are counted in pixels of the size that images are read at.
    samples: of the test images; None without them.
    """

    segmenter: Segmenter
    scores: dict[str, Any]
    samples: Samples | None = None

    def save(self, directory: str | os.PathLike[str]) -> None:
        """As `Segmenter.save`; also writes the scores to scores.json."""
        self.segmenter.save(directory)
        files.write(paths.path(directory) / SCORES, as_json(self.scores))


def segment(
    backbone: Backbone,
    train: Masked,
    test: Masked | None = None,
    *,
    head: str = "linear",
    image_size: tuple[int, int] | None = None,
    mask_values: Sequence[int] = (),
    class_names: Sequence[str] = (),
    learning_rates: Sequence[float] = LEARNING_RATES,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Segmented:
    """Trains a head on the frozen backbone's patches to name the class of each pixel: `segmentation.fit_head`.

    The features of all patches are computed once and kept in float16: rows * columns * dim * 2 bytes an image.

    Args:
      backbone: stays as it is.
      train: images with masks, see `data.masked`; at least two. If they have groups, the learning rate is chosen on
        whole ones.
      test: only serves to measure; None for no scores.
      head: "linear", a linear layer on each patch; or "conv", 3 x 3 patches to 128 channels, GELU, a linear layer.
      image_size: (height, width) in pixels that whole images, and masks, are resized to; the backbone's own if not
        given.
      mask_values: values of the pixels of class 0, of class 1, ...; () if the values are classes. 255 is for pixels
        that do not count, unless it is among them.
      class_names: one for each class; "0", "1", ... if not given.
      learning_rates, steps, batch_size: of AdamW; the rate is chosen on a fifth of the training images.
      seed: of the held-out images, the first weights and the order of the images.
    Raises: ValueError for numbers out of range, an unknown image size or normalization, a model without patches, and
      masks that do not fit: see `data.segmentation.read_masks`, `class_names` and `read_pairs`.
    """
    segmentation.check_head(head)
    sweep.check_steps(steps, batch_size)
    sweep.check_rates(learning_rates)
    _ = backbone.normalization  # raises if it is unknown
    size = image_size_of(backbone, image_size)
    backbone = dataclasses.replace(backbone, image_size=size)
    backbone.patch_features(np.zeros((0, *size, len(backbone.mean))))  # raises, before any work, if it cannot
    pairs = [train] if test is None else [train, test]
    masks = [reading.read_masks(one, size, mask_values) for one in pairs]
    names = reading.class_names(masks, mask_values, class_names)
    maps, truth, index = _features(backbone, train, masks[0], size)
    groups = None if train.images.groups is None else train.images.groups[index]
    fitted = segmentation.fit_head(
        head,
        maps,
        truth,
        num_classes=len(names),
        learning_rates=learning_rates,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        groups=groups,
    )
    facts = {
        "train": _described(train),
        "test": None if test is None else _described(test),
        "mask_values": list(mask_values),
        "seed": seed,
        "learning_rate": fitted.learning_rate,
        "steps": steps,
        "backbone": dict(backbone.facts),
    }
    segmenter = Segmenter(backbone, head, fitted.parameters, names, facts)
    scores: dict[str, Any] = {
        "head": head,
        "image_size": list(size),
        "learning_rate": fitted.learning_rate,
        "steps": steps,
        "train_images": len(maps),
        "images_without_mask": sum(one.without for one in pairs),
    }
    if test is None:
        return Segmented(segmenter, scores)
    del maps
    maps, truth, index = _features(backbone, test, masks[1], size)
    segmentation.check_masks("test", maps, truth, len(names))
    predictions = segmentation.predict_masks(head, fitted.parameters, maps, size)
    found = segmentation.measure(truth, predictions, len(names), fitted.learning_rate)
    scores |= {"test_images": len(maps), **_scores(found, names)}
    return Segmented(segmenter, scores, _samples(backbone, test, index, truth, predictions, size))


def _features(
    backbone: Backbone, pairs: Masked, masks: reading.Masks, size: tuple[int, int]
) -> tuple[
    Float[np.ndarray, "images rows columns dim"], UInt8[np.ndarray, "images height width"], Int[np.ndarray, " images"]
]:
    """(float16 maps, masks, indices) of the pairs that can be read."""
    uniform = dataclasses.replace(pairs, images=Uniform(pairs.images, backbone.normalization))
    maps: Float[np.ndarray, "images rows columns dim"] | None = None
    kept: list[int] = []
    for images, rows in reading.read_pairs(uniform, masks, size, BATCH):
        found = patch_maps(backbone, images, len(masks.rows))
        if maps is None:
            maps = np.empty((len(masks.rows), *found.shape[1:]), np.float16)
        with np.errstate(over="ignore"):  # an infinity is refused, with what to do
            maps[len(kept) : len(kept) + len(rows)] = found
        kept += map(int, rows)
    assert maps is not None  # read_pairs gives at least one batch
    return maps[: len(kept)], masks.masks[kept], masks.rows[kept]


def _scores(found: Segmentation, names: tuple[str, ...]) -> dict[str, Any]:
    iou = [None if math.isnan(value) else value for value in found.iou.tolist()]
    largest = {"class": names[found.largest], "percent": float(found.shares.max()), "mean_iou": found.largest_mean_iou}
    return {
        "mean_iou": found.mean_iou,
        "pixel_accuracy": found.pixel_accuracy,
        "majority": largest,
        "classes": {
            name: {"iou": one, "percent": share}
            for name, one, share in zip(names, iou, found.shares.tolist(), strict=True)
        },
    }


def _samples(
    backbone: Backbone,
    pairs: Masked,
    index: Int[np.ndarray, " images"],
    truth: UInt8[np.ndarray, "images height width"],
    predicted: UInt8[np.ndarray, "images height width"],
    size: tuple[int, int],
) -> Samples:
    chosen = spread(len(index), SHOWN)
    source = Uniform(pairs.images, backbone.normalization)
    found = [resize(source.read(int(row))[0], size) for row in index[chosen]]
    shown = backbone.normalization.to_uint8(np.stack(found))
    shown = shown[..., :3] if shown.shape[-1] >= 3 else shown[..., :1]
    return Samples([source.image_name(int(row)) for row in index[chosen]], shown, truth[chosen], predicted[chosen])


def _described(pairs: Masked) -> dict[str, Any]:
    return {**described(pairs.images), "masks_digest": pairs.masks_digest, "without_mask": pairs.without}
