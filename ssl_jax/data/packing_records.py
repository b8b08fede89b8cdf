"""The bytes that an image is packed as."""

# pyright: reportMissingTypeStubs=false

import io

import cv2
import numpy as np
from jaxtyping import Num

from ssl_jax.data.formats import decode_image, decodes, undecodable
from ssl_jax.data.host_resample import resample
from ssl_jax.data.sources import Source

JPEG, QUALITY = b"\xff\xd8", 95
INTERPOLATION = "bicubic"


def make_record(source: Source, index: int, resize: int) -> bytes:
    """The image as `decode_image` reads it.

    Files that `decode_image` reads are copied, after a look whether they can be decoded. Others, and images that are
    resized, become PNG, or a NumPy array where PNG does not have their type or channels. A JPEG that is resized becomes
    a JPEG.

    resize: pixels of the shorter side of images that have more there; 0: none is resized.
    Raises: UndecodableImage.
    """
    name = source.image_name(index)
    with undecodable(name):
        data = source.encoded(index)
    if data is None or not decodes(data):
        image, _ = source.read(index)
    else:
        # An eighth of a JPEG shows as well as all of it whether the file is whole, in a third of the time.
        image = decode_image(data, None, name, reduce=None if resize else lambda height, width: 8)
        if not resize or min(image.shape[:2]) <= resize:
            return data
    if resize and min(image.shape[:2]) > resize:
        height, width = (round(side * resize / min(image.shape[:2])) for side in image.shape[:2])
        image = resample(image, (height, width), INTERPOLATION)
        if data is not None and data.startswith(JPEG):
            return _encoded(image, ".jpg", cv2.IMWRITE_JPEG_QUALITY, QUALITY)
    if data is not None and image.dtype.name in ("uint8", "uint16") and image.shape[2] in (1, 3):
        return _encoded(image, ".png")
    file = io.BytesIO()  # a PNG takes longer to read
    np.save(file, np.ascontiguousarray(image), allow_pickle=False)
    return file.getvalue()


def _encoded(image: Num[np.ndarray, "height width channels"], ending: str, *options: int) -> bytes:
    image = np.ascontiguousarray(image[..., ::-1])  # OpenCV's order of colors
    return cv2.imencode(ending, image, options)[1].tobytes()
