"""The images of a list as a source. data/lists.py reads and checks the list."""

import copy
import functools
import os
from collections.abc import Sequence

import numpy as np

from ssl_jax import paths
from ssl_jax.data import lists, splits
from ssl_jax.data.bands import decode_bands
from ssl_jax.data.formats import Reduce, check_channels, open_image, read_image
from ssl_jax.data.sources import Source, digest_of
from ssl_jax.data.targets import Targets
from ssl_jax.paths import AnyPath

REMEDY = "name it in the list's column split"


def from_list(path: str | AnyPath, *, split: str = "train", channels: int | None = 3) -> Source:
    """The images of a list, `.csv` or `.parquet`, with the columns path, and optionally label, split and group.

    Columns label_NAME or target_NAME are `Source.targets`.

    With the columns image and band, too, each image has one file a band. See `ssl_jax.data.lists`.

    Args:
      split: "train"; or another that the column split has. Without that column all images are "train".
      channels: 1 or 3; images are converted as they are read. Images of one file a band have as many channels as
        bands, whatever this says.
    Raises: FileNotFoundError, ValueError; the message names the rows and says what to do.
    """
    return splits.pick(list_splits(path, channels), split, str(path), REMEDY)


def list_splits(path: str | AnyPath, channels: int | None) -> dict[str, Source]:
    """Split -> its images, all with the same class names. See `from_list`."""
    path = paths.expanded(paths.path(path))
    listed = lists.read(path)
    if not listed.bands:
        check_channels(channels)
    names = splits.class_names(image.label for image in listed.images)
    of_split: dict[str, list[lists.Image]] = {}
    for image in listed.images:
        of_split.setdefault(image.split or "train", []).append(image)
    grouped, place = "group" in listed.columns, {image.name: k for k, image in enumerate(listed.images)}

    def of(images: list[lists.Image]) -> Targets | None:
        return listed.targets and listed.targets.of(np.array([place[image.name] for image in images]))

    return {
        split: ListSource(path, images, names, listed.bands, grouped=grouped, channels=channels, targets=of(images))
        for split, images in of_split.items()
    }


class ListSource(Source):
    """Images of a list.

    Args:
      path: the list. The files are relative to its folder, or absolute.
      images: in order.
      class_names: of the labels.
      bands: names of the bands, in the order of the images' files; () if each image is one file.
      grouped: whether the images have groups.
      channels: 1 or 3, of images of one file, as they are read.
      targets: of the images; None if there are none.

    Attributes:
      bands: the channels' names; () if they have none.
    """

    def __init__(
        self,
        path: AnyPath,
        images: Sequence[lists.Image],
        class_names: tuple[str, ...],
        bands: tuple[str, ...],
        *,
        grouped: bool,
        channels: int | None,
        targets: Targets | None = None,
    ):
        self.name, self.class_names, self.bands = str(path), class_names, bands
        self._folder, self._images, self._channels = path.parent, images, channels
        self._labels = splits.indices([image.label for image in images], class_names)
        self.groups = np.array([image.group for image in images]) if grouped else None
        self.targets = targets

    @property
    def labels(self):
        return self._labels

    def __len__(self):
        return len(self._images)

    def read(self, index: int):
        return self.read_reduced(index)

    def read_reduced(self, index: int, reduce: Reduce | None = None):
        image, label = self._images[index], -1 if self._labels is None else int(self._labels[index])
        if self.bands:
            return decode_bands([(paths.join(self._folder, file), file) for file in image.files], image.name), label
        (file,) = image.files
        return read_image(paths.join(self._folder, file), file, self._channels, reduce=reduce), label

    def encoded(self, index: int):
        return None if self.bands else paths.read_bytes(paths.join(self._folder, self._images[index].files[0]))

    def open(self, index: int):
        if self.bands:
            return super().open(index)
        (file,) = self._images[index].files
        return open_image(paths.join(self._folder, file), channels=self._channels, name=file)

    def with_channels(self, channels: int):
        if self.bands:
            return self
        found = copy.copy(self)
        found._channels = channels
        return found

    def image_name(self, index: int):
        return self._images[index].name

    def origin(self, index: int):
        files = (paths.join(self._real_folder, file) for file in self._images[index].files)
        return os.pathsep.join(str(file) if paths.is_remote(file) else os.path.normpath(file) for file in files)

    @functools.cached_property
    def _real_folder(self) -> AnyPath:
        return paths.resolved(self._folder)

    def digest(self):
        """Made from the names of images and files, the labels and the targets."""
        named = ["\0".join((image.name, *image.files, image.label)) for image in self._images]
        return digest_of(named if self.targets is None else [*named, self.targets.digest()])
