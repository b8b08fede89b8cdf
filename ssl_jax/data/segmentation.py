"""Images with masks, in two folders. A mask has the name of its image, with another ending.

    images/street/0001.jpg  masks/street/0001.png

A mask is a gray PNG whose values are classes; pixels of value 255 do not count.
"""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Num, UInt8

from ssl_jax.data.formats import ENDINGS, UndecodableImage, read_image

# A PNG's first bytes, and the positions of the two bytes that give the bits of a value and the kind of its values.
PNG, BITS, KIND = b"\x89PNG\r\n\x1a\n", 24, 25
GRAY, PALETTE = 0, 3
NAMED = 3  # files that an error names


def load_masked(
    images: Path, masks: Path, *, image_size: tuple[int, int], channels: int = 3
) -> tuple[Num[np.ndarray, "images height width channels"], UInt8[np.ndarray, "images height width"]]:
    """(images, masks), sorted by name, resized to one size. Masks take the nearest pixel.

    The whole image is resized, whatever its aspect, so that no pixel of it is left out.

    Args:
      images, masks: folders; their sub-folders are read, too.
      image_size: (height, width).
      channels: 1 or 3.
    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: no images, an image without a mask or a mask without an image, two files of one name, a mask of
        another size than its image, or a mask that is no gray PNG of 8 bits.
      UndecodableImage: a broken file.
    """
    found, wanted = _by_stem(images, ENDINGS), _by_stem(masks, (".png",))
    for these, those, kind, other in ((found, wanted, "image", "mask"), (wanted, found, "mask", "image")):
        alone = sorted(these.keys() - those.keys())
        if alone:
            raise ValueError(
                f"{len(alone)} of {len(these)} {kind}s have no {other} of the same name: "
                f"{', '.join(alone[:NAMED])}{', ...' if len(alone) > NAMED else ''}; put each into "
                f"{masks if other == 'mask' else images}"
            )
    size = image_size[::-1]  # OpenCV's order
    read_images: list[np.ndarray] = []
    read_masks: list[np.ndarray] = []
    for stem, path in sorted(found.items()):
        image = read_image(path, str(path), channels)
        mask = decode_mask(wanted[stem].read_bytes(), str(wanted[stem]))
        if image.shape[:2] != mask.shape:
            raise ValueError(
                f"{path} is {image.shape[0]}x{image.shape[1]} pixels, but its mask "
                f"{mask.shape[0]}x{mask.shape[1]}; make the mask again, at the size of the image"
            )
        shrinks = mask.shape[0] > image_size[0] or mask.shape[1] > image_size[1]
        resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        read_images.append(resized.reshape(*image_size, channels))
        read_masks.append(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT))
    return np.stack(read_images), np.stack(read_masks)


def decode_mask(data: bytes, name: str) -> UInt8[np.ndarray, "height width"]:
    """The values of a gray PNG. Raises: ValueError for another file, UndecodableImage for a broken one."""
    if not data.startswith(PNG) or len(data) <= KIND:
        raise UndecodableImage(name, "not a PNG")
    if data[KIND] == PALETTE:
        raise ValueError(
            f"{name} is a PNG with a palette, which would be read as colors; convert its indices to "
            'gray once: python -c "from PIL import Image; import numpy as np; '
            "Image.fromarray(np.array(Image.open('IN.png'))).save('OUT.png')\""
        )
    if data[KIND] != GRAY or data[BITS] != 8:
        what = "gray" if data[KIND] == GRAY else "not gray, or with alpha"
        raise ValueError(
            f"{name} is {what}, with {data[BITS]} bits; a mask must be gray with 8 bits, and its values are the classes"
        )
    mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if mask is None:
        raise UndecodableImage(name, "a broken or truncated PNG")
    return mask


def _by_stem(folder: Path, extensions: tuple[str, ...]) -> dict[str, Path]:
    """{path below the folder without its ending: path}"""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r} (looked from {Path.cwd()})")
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in extensions and not p.name.startswith(".")]
    if not paths:
        raise ValueError(f"there are no files in {str(folder)!r} that end in {', '.join(extensions)}")
    stems: dict[str, Path] = {}
    for path in paths:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in stems:
            raise ValueError(f"{stems[stem]} and {path} have the same name; keep one of them")
        stems[stem] = path
    return stems
