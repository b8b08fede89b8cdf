"""Images with masks, which say the class of each pixel: pairs, the values of masks, and both at one size.

pairs = masked(images, masks)                           # arrays
pairs = masked(open_data("photos"), "masks")            # photos/street/1.jpg has the mask masks/street/1.png

A mask has one number for each pixel: its class, or 255 where it does not count.
"""

import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from jaxtyping import Int, Num, UInt8
from tqdm import tqdm

from ssl_jax.data.crop import resize
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.given import as_source
from ssl_jax.data.mask_files import files_of, mask_file, numbered, read_mask, stem
from ssl_jax.data.reader import ImagesError
from ssl_jax.data.sources import DIGITS, Source, Subset, digest_of
from ssl_jax.data.threads import default_threads, in_order

R = TypeVar("R")
IGNORE = 255  # the value of pixels that do not count
NAMED = 3  # files, or values, that an error names


@dataclasses.dataclass(frozen=True)
class Masked:
    """Images, and a mask for each.

    Attributes:
      images: those that have a mask.
      mask: index -> the mask of that image, [height, width], numbers of any type. Raises: UndecodableImage.
      mask_name: index -> what the mask is called, for errors.
      masks_digest: 12 hexadecimal digits that tell these masks from others.
      without: how many images were left out as they have no mask.
    """

    images: Source
    mask: Callable[[int], Num[np.ndarray, "height width"]]
    mask_name: Callable[[int], str]
    masks_digest: str
    without: int = 0

    def digest(self) -> str:
        """12 hexadecimal digits that tell these images and masks, in this order, from others."""
        return digest_of([self.images.digest(), self.masks_digest])


class Masks(NamedTuple):
    """Masks at one size, of the images whose indices are `rows`.

    masks: classes, or 255: not counted. shapes: of the masks as stored. seen: value that a mask as stored has -> what
    the first such mask is called.
    """

    masks: UInt8[np.ndarray, "images height width"]
    rows: Int[np.ndarray, " images"]
    shapes: list[tuple[int, int]]
    seen: dict[int, str]


def masked(images: Any, masks: Any) -> Masked:
    """Images with masks.

    Args:
      images: see `as_source`.
      masks: [images, height, width] integers; or a folder of files, of which each has the path of its image below that
        folder, with another ending (PNG, TIFF or another lossless format). Images without a mask are left out.
    Raises: FileNotFoundError if there is no such folder; ValueError if no image has a mask, for two masks of one image,
      for masks that are stored with a loss, for arrays that do not fit, and for windows of larger images.
    """
    source = as_source(images)
    if source.image_of is not None:
        raise ValueError(
            f"{source.name} gives windows of larger images, which have no masks of their own; give whole images, or "
            "cut images and masks into files of that size"
        )
    if isinstance(masks, (str, Path)):
        return _of_folder(source, Path(masks).expanduser())
    found = np.asarray(masks)
    if found.ndim != 3 or len(found) != len(source) or found.dtype.kind not in "bui":
        raise ValueError(
            f"masks of {len(source)} images must be integers [{len(source)}, height, width], got {found.dtype} "
            f"{list(found.shape)}"
        )
    digest = hashlib.sha256(f"{found.shape} {found.dtype}".encode() + np.ascontiguousarray(found).tobytes())
    return Masked(source, lambda index: found[index], lambda index: f"mask {index}", digest.hexdigest()[:DIGITS])


def read_masks(pairs: Masked, size: tuple[int, int], values: Sequence[int] = ()) -> Masks:
    """All masks that can be read, resized to `size`, (height, width), by the nearest pixel. Others are named.

    Args:
      values: of the pixels of class 0, of class 1, ...; () if values are classes. 255 is for pixels that do not count,
        unless it is among them.
    Raises: ValueError for values that are not different, and for a mask with another value; ImagesError if none can be
      read.
    """
    if values and (len(set(values)) < len(values) or not 2 <= len(values) <= IGNORE):
        raise ValueError(
            f"mask_values must be 2 to {IGNORE} different integers, one for each class, got {tuple(values)}"
        )
    kept: list[np.ndarray] = []
    index: list[int] = []
    shapes: list[tuple[int, int]] = []
    seen: dict[int, str] = {}

    def read(row: int) -> tuple[np.ndarray, list[int], tuple[int, int]]:
        classes, found = _classes(pairs.mask(row), values, pairs.mask_name(row))
        resized = cv2.resize(classes, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return resized, found, (classes.shape[0], classes.shape[1])

    for row, (resized, found, shape) in _each(pairs.images, read, "masks"):
        for value in found:
            seen.setdefault(value, pairs.mask_name(row))
        index.append(row)
        kept.append(resized)
        shapes.append(shape)
    if not index:
        raise ImagesError(f"none of the {len(pairs.images)} masks of {pairs.images.name} can be read")
    return Masks(np.stack(kept), np.array(index), shapes, seen)


def class_names(found: Sequence[Masks], values: Sequence[int] = (), names: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of the classes that masks of all splits have; "0", "1", ... if they have no `names`.

    values: see `read_masks`.
    Raises: ValueError for masks of fewer than two classes, of more than `names`, or with numbers that look as if they
      were no classes: 0 and 255, or some with gaps between them.
    """
    if len(set(names)) < len(names) or not all(names):
        raise ValueError(f"names of classes must be different and not empty, got {', '.join(map(repr, names))}")
    seen = {value: name for one in reversed(found) for value, name in one.seen.items()}
    if values:
        if names and len(names) != len(values):
            raise ValueError(f"{len(values)} values of masks need as many names of classes, got {', '.join(names)}")
        present = [value for value in values if value in seen]
        if len(present) < 2:
            raise ValueError(
                f"of the values {_listed(values)} the masks have only {_listed(present) or 'none'}; there is nothing "
                "to tell apart"
            )
        return tuple(names) or tuple(map(str, range(len(values))))
    classes = sorted(value for value in seen if value != IGNORE)
    if classes in ([], [0]) and IGNORE in seen:
        raise ValueError(
            f"the masks have only the values {_listed(seen)}, and {IGNORE} is for pixels that do not count; if it is "
            f"the object, give mask_values={','.join(map(str, [*classes, IGNORE] if classes else [0, IGNORE]))}"
        )
    if len(classes) < 2:
        raise ValueError(f"the masks have only the class {_listed(classes)}; there is nothing to tell apart")
    if names:
        if classes[-1] >= len(names):
            raise ValueError(
                f"{seen[classes[-1]]} has the value {classes[-1]}, but there are {len(names)} names of classes, for 0 "
                f"to {len(names) - 1}; name all classes, or give mask_values, the values of classes 0, 1, ..."
            )
        return tuple(names)
    if classes != list(range(len(classes))):
        first = next(value for number, value in enumerate(classes) if value != number)
        raise ValueError(
            f"{seen[first]} has the value {first}, and no mask has {classes.index(first)}; give mask_values="
            f"{','.join(map(str, classes))} if these are classes 0 to {len(classes) - 1}, or the names of all classes"
        )
    return tuple(map(str, classes))


class Images(NamedTuple):
    """Images at one size, their indices in the source (rows), and their own sizes (height, width)."""

    images: Num[np.ndarray, "batch height width channels"]
    rows: Int[np.ndarray, " batch"]
    shapes: list[tuple[int, int]]


def read_images(source: Source, size: tuple[int, int], batch_size: int) -> Iterator[Images]:
    """All images that can be read, in order, each resized as a whole to `size`, (height, width). Others are named.

    Raises: ImagesError if none can be read.
    """

    def read(index: int) -> tuple[np.ndarray, tuple[int, int]]:
        image, _ = source.read(index)
        return resize(image, size), (image.shape[0], image.shape[1])

    any_read = False
    each = _each(source, read, "images")
    while batch := list(itertools.islice(each, batch_size)):
        any_read = True
        images, shapes = zip(*(found for _, found in batch), strict=True)
        yield Images(np.stack(images), np.array([index for index, _ in batch]), list(shapes))
    if not any_read:
        raise ImagesError(f"none of the {len(source)} images of {source.name} can be read; the warnings say why")


def read_pairs(
    pairs: Masked, masks: Masks, size: tuple[int, int], batch_size: int
) -> Iterator[tuple[Num[np.ndarray, "batch height width channels"], Int[np.ndarray, " batch"]]]:
    """(images, their rows in `masks`), see `read_images`.

    Raises: ValueError for an image of another size than its mask; ImagesError if no image can be read.
    """
    for images, rows, shapes in read_images(Subset(pairs.images, masks.rows), size, batch_size):
        for row, shape in zip(map(int, rows), shapes, strict=True):
            if shape != masks.shapes[row]:
                index, wanted = int(masks.rows[row]), masks.shapes[row]
                raise ValueError(
                    f"{pairs.images.image_name(index)} is {shape[0]} x {shape[1]} pixels, but {pairs.mask_name(index)} "
                    f"is {wanted[0]} x {wanted[1]}; make the mask again, at the size of the image"
                )
        yield images, rows


def _each(source: Source, read: Callable[[int], R], what: str) -> Iterator[tuple[int, R]]:
    """(index, read(index)) of each that can be read, in order, read ahead by threads. Others are named."""

    def tried(index: int) -> R | None:
        try:
            return read(index)
        except UndecodableImage as error:
            logging.warning("skipped %s", error)
            return None

    named, threads = f"reading {what} of {source.name}", default_threads()
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(desc=named, total=len(source), unit=f" {what}", delay=1, leave=False) as progress,
    ):
        for index, found in in_order(pool, tried, range(len(source)), 4 * threads):
            progress.update()
            if found is not None:
                yield index, found


def _classes(
    mask: Num[np.ndarray, "height width"], values: Sequence[int], name: str
) -> tuple[UInt8[np.ndarray, "height width"], list[int]]:
    """(classes; the values that the mask has). Raises: ValueError for a value of no class."""
    found = np.unique(mask)
    allowed = np.isin(found, [*values, IGNORE]) if values else np.isin(found, range(IGNORE + 1))
    if not allowed.all():
        wanted = f"{_listed(values)}, and {IGNORE} for pixels that do not count" if values else f"0 to {IGNORE}"
        raise ValueError(
            f"{name} has the value {found[~allowed][0]:g}, and masks have {wanted}; mask_values are the values of "
            "classes 0, 1, ..."
        )
    seen = [int(value) for value in found]
    if not values:
        return mask.astype(np.uint8), seen
    classes = np.full(mask.shape, IGNORE, np.uint8)
    for number, value in enumerate(values):
        classes[mask == value] = number
    return classes, seen


def _of_folder(source: Source, folder: Path) -> Masked:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r} (looked from {Path.cwd()})")
    listing = functools.cache(files_of)
    files = [mask_file(folder, source.image_name(index), listing) for index in range(len(source))]
    index = [k for k, file in enumerate(files) if file is not None]
    if not index:
        there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())[:NAMED]
        wanted = stem(source.image_name(0)).partition("#")[0]
        raise ValueError(
            f"no image of {source.name} has a mask in {folder}, which has {', '.join(there) or 'no files'}; the mask "
            f"of {source.image_name(0)} is {wanted}.png, or .tif, or of another lossless format"
        )
    names = [str(files[k]) for k in index]
    images = source if len(index) == len(source) else Subset(source, np.array(index))

    def mask(position: int) -> np.ndarray:
        _, number = numbered(images.image_name(position))
        return read_mask(folder / names[position], number)

    def name(position: int) -> str:
        _, number = numbered(images.image_name(position))
        return str(folder / names[position]) + ("" if number is None else f"#{number}")

    return Masked(images, mask, name, digest_of(names), len(source) - len(index))


def _listed(values: Any) -> str:
    return ", ".join(map(str, sorted(values)))
