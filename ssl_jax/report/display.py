"""How images of any number of bands are shown on a page: which bands, stretched how."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from ssl_jax.data.inspection.pictures import shown_bands, stretched
from ssl_jax.report.read import Record

PHOTO = (1, 3)  # channels of images that are shown as they are
PERCENTILES = (1.0, 99.0)


def displayed(record: Record, bands: Sequence[int] = (), stretch: tuple[float, ...] | None = None) -> Record:
    """The record with its images, of any number of bands, as gray or as red, green and blue.

    Args:
      bands: one band, or three for red, green and blue, from 0; (): the first three, or the first of fewer.
      stretch: percentiles of each band over the images that become black and white. None: PERCENTILES, but 8-bit images
        of 1 or 3 channels, photos, are shown as they are.
    Raises: ValueError for bands that the images do not have, and percentiles out of order.
    """
    given = (record.views.get("original"), record.embeddings.get("images"))
    images = next((found for found in given if found is not None), None)
    if images is None:
        return record
    channels = images.shape[-1]
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
    photos = channels in PHOTO and record.config.get("data", {}).get("dtype", "uint8") == "uint8"
    chosen = list(bands) or shown_bands(channels)
    ends = None
    if stretch or not photos:
        ends = np.percentile(images[..., chosen].reshape(-1, len(chosen)), percentiles, axis=0)

    def show(made: UInt8[np.ndarray, "*images bands"]) -> UInt8[np.ndarray, "*images shown"]:
        if made.shape[-1] != channels:
            return made
        shown = made[..., chosen]
        return shown if ends is None else stretched(shown, ends[0], ends[1])

    return dataclasses.replace(
        record,
        views={name: show(made) for name, made in record.views.items()},
        pictures={name: show(made) for name, made in record.pictures.items()},
        embeddings={name: show(made) if name == "images" else made for name, made in record.embeddings.items()},
        patches={name: show(made) if name == "images" else made for name, made in record.patches.items()},
    )
