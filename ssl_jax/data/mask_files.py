"""Files of masks: which one an image has, and the numbers that it stores."""

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import Num, Shaped
from PIL import Image

from ssl_jax.data.formats import ENDINGS, read_image, undecodable
from ssl_jax.data.formats.stored import check_size

# These endings are of files whose values are not the ones that were stored, or may not be.
LOSSY = (".avif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpc", ".jpeg", ".jpg", ".jpx", ".webp")
LOSSLESS = tuple(ending for ending in ENDINGS if ending not in LOSSY)
BY_PILLOW = (".bmp", ".gif", ".png")  # gives indices of a palette, where OpenCV gives its colors


def stem(name: str) -> str:
    """The path below another folder of a file that is about an image, without its ending: "scans/1.nii.gz#3" gives
    "scans/1#3". It never leads out of that folder."""
    file, number = numbered(name)
    path = "/".join(part for part in PurePath(file).parts if part != ".." and not os.path.isabs(part)) or "image"
    ending = next((ending for ending in ENDINGS if path.lower().endswith(ending)), "")
    return path[: len(path) - len(ending)] + ("" if number is None else f"#{number}")


def mask_file(folder: Path, name: str, listing: Callable[[Path], dict[str, list[str]]]) -> str | None:
    """The file of the mask of an image of this name, relative to the folder; None if there is none."""
    wanted = stem(numbered(name)[0])
    found = listing((folder / wanted).parent).get(PurePath(wanted).name, [])
    lossless = [file for file in found if file.lower().endswith(LOSSLESS)]
    if len(lossless) > 1:
        raise ValueError(f"{' and '.join(lossless)} in {(folder / wanted).parent} are masks of one image; keep one")
    if found and not lossless:
        raise ValueError(
            f"{(folder / wanted).parent / found[0]} is a mask with a loss: its values are not those that were drawn; "
            "save masks as PNG"
        )
    return PurePath(wanted).with_name(lossless[0]).as_posix() if lossless else None


def files_of(directory: Path) -> dict[str, list[str]]:
    """{name without ending: names} of the image files in the directory; {} if there is none."""
    files: dict[str, list[str]] = {}
    for name in sorted(os.listdir(directory)) if directory.is_dir() else ():
        if not name.startswith(".") and name.lower().endswith(ENDINGS):
            files.setdefault(stem(name), []).append(name)
    return files


def read_mask(path: Path, index: int | None = None) -> Num[np.ndarray, "height width"]:
    """The numbers of a mask as they are stored: of a file with a palette its indices.

    index: of the mask in a file with several.
    Raises: ValueError for a file in color or with alpha, UndecodableImage for a broken one.
    """
    if path.name.lower().endswith(BY_PILLOW):
        values = _by_pillow(path)
    else:
        values = read_image(path, str(path), None, pages="" if index is None else "images", index=index)
    if values.ndim == 3 and values.shape[2] != 1:
        raise ValueError(
            f"{path} has {values.shape[2]} channels, and a mask has one number for each pixel: its class; save it as a "
            "gray PNG, in which the first class is 0, the second is 1, and so on"
        )
    return values if values.ndim == 2 else values[..., 0]


def _by_pillow(path: Path) -> Shaped[np.ndarray, "height width *channels"]:
    with undecodable(str(path)), Image.open(path, formats=("BMP", "GIF", "PNG")) as image:
        check_size((image.height, image.width, len(image.getbands())), 4 if image.mode in "IF" else 2)
        values = np.asarray(image)
    return values.astype(np.uint8) if values.dtype == bool else values


def numbered(name: str) -> tuple[str, int | None]:
    """("scan.nii.gz", 3) of "scan.nii.gz#3", as a source calls the images of a file that holds several."""
    matched = re.fullmatch(r"(.+)#(\d+)", name)
    return (matched[1], int(matched[2])) if matched else (name, None)
