"""Emoji of two vendors as sources of images: the same things, drawn twice."""

import copy

import numpy as np
from jaxtyping import Int32

from ssl_jax.data import emoji, splits
from ssl_jax.data.formats import decode_image
from ssl_jax.data.sources import Source, digest_of
from ssl_jax.data.synthetic import PREFIX, Synthetic


def is_emoji(name: str) -> bool:
    """Whether the name of a data set is one of emoji, with or without a labeling, synthetic or not."""
    return name.removeprefix(PREFIX).partition("/")[0] in emoji.PACKAGES


def open_emoji(name: str, split: str, folder: str | None, channels: int | None) -> Source:
    """An `EmojiSource`; of a name that begins with "synthetic_", what a synthetic camera takes of it, of five bands
    whatever `channels` says."""
    if name.startswith(PREFIX):
        return Synthetic(EmojiSource(name.removeprefix(PREFIX), split=split, folder=folder))
    return EmojiSource(name, split=split, folder=folder, channels=channels)


class EmojiSource(Source):
    """Drawings of 64 x 64 pixels in color, over white. Image k of a split is the same emoji for both vendors.

    2,663 images are for training, 1,118 for testing. An emoji's skin tones, its variants by gender and direction, and
    what a vendor draws alike are one group, and are never divided. The division is the same for both vendors and both
    labelings. Emoji that one vendor lacks are left out. Six in ten images are of category "People & Body", most of them
    skin tones. `ssl_jax.data.emoji` says where the drawings come from, and under which licenses.

    Args:
      name: "emoji_google" or "emoji_twitter", whose classes are the 9 categories of Unicode; with "/subcategories"
        their 98 sub-categories.
      split: "train" or "test", also with TFDS's slices ("train[:10%]").
      folder: where the package is or shall be; None: in ssl_jax's cache.
      channels: 1 or 3; images are converted as they are read. None: 3.
    Raises: ValueError for another labeling or split, and if the package cannot be fetched.
    """

    def __init__(self, name: str, *, split: str = "train", folder: str | None = None, channels: int | None = 3):
        _check_color(channels)
        vendor, _, labeling = name.partition("/")
        if (labeling or emoji.LABELINGS[0]) not in emoji.LABELINGS:
            raise ValueError(f"{name!r} has no labels {labeling!r}; there are {', '.join(emoji.LABELINGS)}")
        found = emoji.read(vendor, folder)
        divided = emoji.divide(found.drawings)
        ranges = splits.parts(split, {name: len(positions) for name, positions in divided.items()})
        chosen = [position for part in ranges for position in divided[part.split][part.start : part.end]]
        self._drawings = [found.drawings[position] for position in chosen]
        self._encoded = [found.images[position] for position in chosen]
        self.name, self._split, self._channels = name, split, channels or 3
        self.groups = np.array([drawing.group for drawing in self._drawings])
        kinds = [_kind(drawing, labeling) for drawing in found.drawings]
        self.class_names = splits.class_names(kinds)
        labels = splits.indices([kinds[position] for position in chosen], self.class_names)
        assert labels is not None  # as there are classes
        self._labels = labels

    @property
    def labels(self) -> Int32[np.ndarray, " images"]:
        return self._labels

    def __len__(self) -> int:
        return len(self._drawings)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        image = decode_image(self._encoded[index], self._channels, self.image_name(index))
        return image, int(self._labels[index])

    def encoded(self, index: int) -> bytes:
        return self._encoded[index]

    def with_channels(self, channels: int) -> "EmojiSource":
        _check_color(channels)
        found = copy.copy(self)
        found._channels = channels
        return found

    def image_name(self, index: int) -> str:
        """The package's name of the file, and the emoji's own."""
        return f"{self._drawings[index].file} {self._drawings[index].name}"

    def digest(self) -> str:
        package = emoji.PACKAGES[self.name.partition("/")[0]]
        return digest_of([self.name, package.sha512, self._split])


def _check_color(channels: int | None) -> None:
    if channels not in (None, 1, 3):
        raise ValueError(f"emoji are in color; use channels 3, or 1 for gray ones, not {channels}")


def _kind(drawing: emoji.Drawing, labeling: str) -> str:
    return f"{drawing.category}: {drawing.subcategory}" if labeling == "subcategories" else drawing.category
