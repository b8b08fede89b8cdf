"""Segmenters: a frozen backbone and a small head that names the class of each pixel, their files and their masks.

masks = load_segmenter("runs/a-segmenter").masks(images)
"""

# pyright: reportUnknownMemberType=false

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float, Num, UInt8

from ssl_jax import paths
from ssl_jax.data.mask_files import stem
from ssl_jax.data.segmentation import read_images
from ssl_jax.data.sources import Source
from ssl_jax.data.uniform import Uniform
from ssl_jax.evaluation import saving, segmentation
from ssl_jax.evaluation.evaluation import image_size_of
from ssl_jax.evaluation.segmentation import HEADS
from ssl_jax.weights import Backbone
from ssl_jax.workdir import files

NAME = "segmenter"
FILE, FACTS = f"{NAME}.safetensors", f"{NAME}.json"
BATCH = 64  # images per call of the backbone: the features of all their patches are kept for a moment


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A backbone and a head on its patches: images in, the class of each pixel out.

    head: name in `segmentation.HEADS`.
    parameters: of the head, and the mean and scale of the features, as `segmentation.fit_head` gives them.
    facts: how it was made: the images and masks, the backbone, learning rate and steps.
    """

    backbone: Backbone
    head: str
    parameters: Mapping[str, Float[np.ndarray, "..."]]
    class_names: tuple[str, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def masks(
        self,
        images: Num[np.ndarray, "batch height width channels"],
        normalized: bool = False,
        batch_size: int = BATCH,
        *,
        size: tuple[int, int] | None = None,
    ) -> UInt8[np.ndarray, "batch mask_height mask_width"]:
        """The class of each pixel, an index into class_names.

        Args:
          images, normalized, batch_size: see `Backbone.features`. Images of the size in training, the backbone's
            `image_size`, are segmented best; others are taken if its model takes them.
          size: (height, width) of the masks; that of the images if not given.
        Raises: ValueError as `Backbone.features`.
        """
        maps = self.backbone.patch_features(images, normalized, batch_size)
        shape = (images.shape[1], images.shape[2]) if size is None else size
        return segmentation.predict_masks(self.head, self.parameters, maps, shape, batch_size)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes backbone.safetensors with backbone.json, segmenter.safetensors (parameters by their names) and
        segmenter.json, each whole or not at all.

        Raises: ValueError for a backbone whose image size is unknown.
        """
        said = {"head": self.head, "classes": list(self.class_names), "facts": dict(self.facts)}
        saving.save(paths.path(directory), self.backbone, NAME, self.parameters, said)


def load_segmenter(directory: str | os.PathLike[str], model: nn.Module | None = None) -> Segmenter:
    """Reads what `Segmenter.save` wrote.

    model: the backbone's module, if it is one of your own.
    Raises: FileNotFoundError if there is no segmenter; ValueError for damaged files, or files of another backbone.
    """

    def parse(backbone: Backbone, said: Any, parameters: Mapping[str, np.ndarray]) -> Any:
        head, names, facts = str(said["head"]), tuple(map(str, said["classes"])), dict(said["facts"])
        return head, names, facts, parameters, _shapes(head, backbone.dim, len(names))

    directory = paths.path(directory)
    backbone, parsed = saving.load(directory, NAME, "segment", model, parse)
    head, names, facts, parameters, wanted = parsed
    found = {name: value.shape for name, value in parameters.items()}
    if found != wanted:
        raise ValueError(
            f"{directory / FILE} has parameters {found}, but a {head} head on features of {backbone.dim} dimensions, "
            f"for the {len(names)} classes of {FACTS}, has {wanted}; copy the whole directory again, or run ssl_jax "
            "segment again"
        )
    return Segmenter(backbone, head, parameters, names, facts)


def has_segmenter(directory: str | os.PathLike[str]) -> bool:
    """Whether the directory is one that `Segmenter.save` wrote."""
    return (paths.path(directory) / FACTS).is_file()


def patch_maps(
    backbone: Backbone, images: Num[np.ndarray, "batch height width channels"], total: int
) -> Float[np.ndarray, "batch rows columns dim"]:
    """`Backbone.patch_features` of at most BATCH images of `total`. If there is more than one batch, a smaller one is
    padded, so that the backbone is compiled once."""
    rows = len(images)
    if total > BATCH > rows:
        images = np.pad(images, ((0, BATCH - rows), (0, 0), (0, 0), (0, 0)))
    return backbone.patch_features(images, batch_size=BATCH)[:rows]


def predictions(segmenter: Segmenter, source: Source) -> Iterator[tuple[int, UInt8[np.ndarray, "height width"]]]:
    """(index, mask at the image's own size) of each image that can be decoded; others are named and left out.

    Raises: ImagesError if none can be decoded, or none has the backbone's number of channels.
    """
    size = image_size_of(segmenter.backbone, None)
    source = Uniform(source, segmenter.backbone.normalization)
    for images, rows, shapes in read_images(source, size, BATCH):
        maps = patch_maps(segmenter.backbone, images, len(source))
        logits = segmentation.patch_logits(segmenter.head, segmenter.parameters, maps)
        for row, of_patches, shape in zip(rows, logits, shapes, strict=True):
            yield int(row), segmentation.classes_at(of_patches, shape)


def write_masks(segmenter: Segmenter, source: Source, directory: str | os.PathLike[str]) -> int:
    """Writes a gray PNG for each image that can be decoded, whose values are classes: DIRECTORY/scans/1.png for the
    image scans/1.jpg. Returns how many.

    Raises: as `predictions`; ValueError for two images whose masks would have one name.
    """
    directory = paths.path(directory)
    places: dict[str, int] = {}
    for index in range(len(source)):
        other = places.setdefault(stem(source.image_name(index)), index)
        if other != index:
            raise ValueError(
                f"{source.image_name(other)} and {source.image_name(index)} would have one mask, "
                f"{stem(source.image_name(index))}.png; put them into different folders"
            )
    count = 0
    for index, mask in predictions(segmenter, source):
        path = directory / f"{stem(source.image_name(index))}.png"
        paths.make_directory(path.parent)
        with files.replacing(path) as file:
            file.write(cv2.imencode(".png", mask)[1].tobytes())
        count += 1
    return count


def _shapes(head: str, dim: int, classes: int) -> dict[str, tuple[int, ...]]:
    """name -> shape of the parameters of a head. Raises: KeyError for an unknown one."""
    kind = HEADS[head]

    def first(rng: Any) -> Any:
        return kind.first(rng, dim, classes)

    found: Any = jax.eval_shape(first, jax.random.key(0))
    return {"mean": (dim,), "scale": (dim,), **{name: value.shape for name, value in found.items()}}
