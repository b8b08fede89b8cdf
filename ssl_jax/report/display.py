"""How images of any number of bands are shown on a page: which bands, stretched how."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Num, UInt8

from ssl_jax.data.inspection.pictures import shown_bands, stretched
from ssl_jax.report.read import Record

PHOTO = (1, 3)  # channels of images that are shown as they are
PERCENTILES = (1.0, 99.0)

Show = Callable[[Num[np.ndarray, "*images bands"]], UInt8[np.ndarray, "*images shown"]]


def displayed(record: Record, bands: Sequence[int] = (), stretch: tuple[float, ...] | None = None) -> Record:
    """The record with its images, of any number of bands, as gray or as red, green and blue.

    bands, stretch: see `check`. The percentiles are those over the images that the pages show.
    Raises: as `check`.
    """
    given = (record.views.get("original"), record.embeddings.get("images"))
    images = next((found for found in given if found is not None), None)
    if images is None:
        return record
    channels = images.shape[-1]
    dtype = record.config.get("data", {}).get("dtype") or record.evaluation.get("backbone", {}).get("dtype")
    show_all = _show([images], bands, stretch, photos=dtype in (None, "uint8"))

    def show(made: UInt8[np.ndarray, "*images bands"]) -> UInt8[np.ndarray, "*images shown"]:
        return show_all(made) if made.shape[-1] == channels else made

    return dataclasses.replace(
        record,
        views={name: show(made) for name, made in record.views.items()},
        pictures={name: show(made) for name, made in record.pictures.items()},
        embeddings={name: show(made) if name == "images" else made for name, made in record.embeddings.items()},
        patches={name: show(made) if name == "images" else made for name, made in record.patches.items()},
    )


def shown(
    pictures: Sequence[Num[np.ndarray, "height width bands"]],
    bands: Sequence[int] = (),
    stretch: tuple[float, ...] | None = None,
    *,
    photos: bool,
) -> list[UInt8[np.ndarray, "height width shown"]]:
    """Pictures of any sizes and of one number of bands, as gray or as red, green and blue, all stretched alike.

    bands, stretch: see `check`. photos: whether they are 8-bit images.
    Raises: as `check`.
    """
    show = _show(pictures, bands, stretch, photos=photos) if pictures else None
    return [show(picture) for picture in pictures] if show else []


def check(channels: int, bands: Sequence[int] = (), stretch: tuple[float, ...] | None = None) -> None:
    """Checks how images of so many channels are to be shown.

    Args:
      bands: one band, or three for red, green and blue, from 0; (): the first three, or the first of fewer.
      stretch: percentiles of each band over the images that become black and white. None: PERCENTILES, but 8-bit images
        of 1 or 3 channels, photos, are shown as they are.
    Raises: ValueError for bands that the images do not have, and percentiles out of order.
    """
    if bands and (len(bands) not in PHOTO or not all(0 <= band < channels for band in bands)):
        raise ValueError(
            f"bands must be one, or three for red, green and blue, of 0 to {channels - 1}; got "
            + ",".join(map(str, bands))
        )
    percentiles = stretch or PERCENTILES
    if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(
            "the stretch must be two percentiles, the lower one first, in 0..100; got "
            + ",".join(f"{share:g}" for share in percentiles)
        )


def _show(
    images: Sequence[Num[np.ndarray, "*images bands"]],
    bands: Sequence[int],
    stretch: tuple[float, ...] | None,
    *,
    photos: bool,
) -> Show:
    """What shows images as these are to be shown."""
    channels = images[0].shape[-1]
    check(channels, bands, stretch)
    chosen = list(bands) or shown_bands(channels)
    if photos and channels in PHOTO and not stretch:
        return lambda made: made[..., chosen]
    pixels = np.concatenate([made[..., chosen].reshape(-1, len(chosen)) for made in images])
    low, high = np.percentile(pixels, stretch or PERCENTILES, axis=0)
    return lambda made: stretched(made[..., chosen], low, high)
