"""Robustness: how much accuracy a classifier keeps on corrupted images.

The corruptions follow the kinds of ImageNet-C, for images of any size, gray ones included. The pictures differ from
ImageNet-C's, so the numbers do, too. Source of the kinds, and of the strengths of noise, contrast, pixelate and JPEG:
Hendrycks & Dietterich 2019, arXiv:1903.12261, section 3 and the authors' code for ImageNet.

Those strengths were made for images of 224 pixels. Blurs, rotation and occlusion scale with the image's side here.
Noise, pixelate and JPEG do not, so they hide more of a small image: in 28 pixels a square of 4 is a seventh of the
side. Accuracies are comparable between networks on images of one size.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
from jaxtyping import Float, Integer, UInt8

from ssl_jax.evaluation.accuracy import class_mean, top1

SEVERITIES = (1, 2, 3, 4, 5)

Image = Float[np.ndarray, "height width channels"]  # in 0..1
Corrupted = Float[np.ndarray, "height width *_"]  # not clipped to 0..1 yet; OpenCV drops a single channel


def gaussian_noise(image: Image, strength: float, rng: np.random.Generator) -> Corrupted:
    """strength: standard deviation of the noise."""
    return image + strength * rng.standard_normal(image.shape, np.float32)


def shot_noise(image: Image, strength: float, rng: np.random.Generator) -> Corrupted:
    """strength: 1 / the number of photons that make white."""
    return rng.poisson(image / strength) * strength


def impulse_noise(image: Image, strength: float, rng: np.random.Generator) -> Corrupted:
    """strength: the share of the values that become 0 or 1."""
    hit, white = rng.random(image.shape), rng.random(image.shape) < 0.5
    return np.where(hit < strength, white, image)


def gaussian_blur(image: Image, strength: float, rng: np.random.Generator) -> Corrupted:
    """strength: standard deviation of the kernel, as a share of the shorter side."""
    return cv2.GaussianBlur(image, (0, 0), strength * min(image.shape[:2]), borderType=cv2.BORDER_REFLECT_101)


def motion_blur(image: Image, strength: float, rng: np.random.Generator) -> Corrupted:
    """Blur along a line in a random direction. strength: length of the line, as a share of the shorter side."""
    length, angle = strength * min(image.shape[:2]), rng.uniform(0, np.pi)
    reach = int(np.ceil(length / 2))
    places = np.arange(-reach, reach + 1)
    along = np.cos(angle) * places[None, :] + np.sin(angle) * places[:, None]
    across = -np.sin(angle) * places[None, :] + np.cos(angle) * places[:, None]
    # Roughly how much of each pixel is covered by a line one pixel wide.
    kernel = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def brightness(image: Image, strength: float, rng: np.random.Generator) -> Corrupted:
    """strength: what is added to all values; 1 is white."""
    return image + strength


def contrast(image: Image, strength: float, rng: np.random.Generator) -> Corrupted:
    """strength: how much of the deviation from each channel's mean is lost."""
    mean = image.mean(axis=(0, 1))
    return mean + (1 - strength) * (image - mean)


def pixelate(image: Image, strength: float, rng: np.random.Generator) -> Corrupted:
    """strength: the side of the squares, in pixels."""
    height, width = image.shape[:2]
    small = (max(round(width / strength), 1), max(round(height / strength), 1))
    image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def jpeg(image: Image, strength: float, rng: np.random.Generator) -> Corrupted:
    """strength: 100 - the JPEG quality."""
    pixels = to_uint8(image)
    _, data = cv2.imencode(
        ".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, round(100 - strength)]
    )
    flag = cv2.IMREAD_GRAYSCALE if image.shape[2] == 1 else cv2.IMREAD_COLOR_RGB
    return np.asarray(cv2.imdecode(data, flag), np.float32) / 255


def rotation(image: Image, strength: float, rng: np.random.Generator) -> Corrupted:
    """Rotation to a random side; the image is mirrored beyond its border. strength: degrees."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), strength * rng.choice([-1, 1]), 1.0)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def occlusion(image: Image, strength: float, rng: np.random.Generator) -> Corrupted:
    """A gray square at a random place within the image. strength: its side, as a share of the image's shorter side."""
    height, width = image.shape[:2]
    side = round(strength * min(height, width))
    top, left = (int(rng.random() * (extent - side + 1)) for extent in (height, width))
    image = image.copy()
    image[top : top + side, left : left + side] = 0.5
    return image


# (function, its strengths at the five severities)
CORRUPTIONS: dict[str, tuple[Callable[[Image, float, np.random.Generator], Corrupted], tuple[float, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (shot_noise, (1 / 60, 1 / 25, 1 / 12, 1 / 5, 1 / 3)),
    "impulse_noise": (impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": (gaussian_blur, (0.015, 0.02, 0.025, 0.035, 0.05)),
    "motion_blur": (motion_blur, (0.05, 0.1, 0.15, 0.2, 0.25)),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.6, 0.7, 0.8, 0.9, 0.95)),
    "pixelate": (pixelate, (1 / 0.6, 2, 2.5, 1 / 0.3, 4)),
    "jpeg": (jpeg, (75, 82, 85, 90, 93)),
    "rotation": (rotation, (5, 10, 15, 22, 30)),
    "occlusion": (occlusion, (0.15, 0.25, 0.35, 0.45, 0.55)),
}


@dataclasses.dataclass(frozen=True)
class Robustness:
    """Top-1 in percent.

    clean: on the images without corruption.
    accuracies: for each corruption, one for each requested severity.
    clean_class_mean, class_means: the same, but each class counts alike, see `accuracy.class_mean`.
    """

    clean: float
    accuracies: dict[str, tuple[float, ...]]
    clean_class_mean: float
    class_means: dict[str, tuple[float, ...]]

    @property
    def mean(self) -> float:
        """The accuracy averaged over all corruptions and severities."""
        return float(np.mean(list(self.accuracies.values())))


def robustness(
    predict: Callable[[UInt8[np.ndarray, "batch height width channels"]], Integer[np.ndarray, "batch"]],
    images: UInt8[np.ndarray, "images height width channels"],
    labels: Integer[np.ndarray, "images"],
    *,
    corruptions: Iterable[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    batch_size: int = 512,
) -> Robustness:
    """A classifier's accuracy on corrupted images.

    Images are corrupted a batch at a time. Every classifier is given the same corrupted images.

    Args:
      predict: images -> their classes; the last batch may be smaller.
      labels: in 0 .. classes - 1.
    Raises: ValueError for an unknown corruption or severity, for no images or labels, and if `predict` does not give
      one prediction per image.
    """
    corruptions = tuple(corruptions)
    if len(images) != len(labels) or not len(images):
        raise ValueError(
            f"{len(images)} images and {len(labels)} labels; give one label for each image, and at least one image"
        )
    if not corruptions or not severities:
        raise ValueError(f"name at least one corruption and one severity, got {corruptions} and {tuple(severities)}")
    for name in corruptions:
        for severity in severities:
            _strength(name, severity)

    def accuracy(change: Callable[[UInt8[np.ndarray, "..."], int], UInt8[np.ndarray, "..."]]) -> tuple[float, float]:
        predictions = []
        for start in range(0, len(images), batch_size):
            batch = [change(image, start + i) for i, image in enumerate(images[start : start + batch_size])]
            predicted = np.asarray(predict(np.stack(batch)))
            if predicted.shape != (len(batch),):
                raise ValueError(f"predict gave {predicted.shape} for {len(batch)} images; it must give one class each")
            predictions.append(predicted)
        found = np.concatenate(predictions)
        return float(top1(found, labels)), float(class_mean(found, labels))

    measured = {
        name: [
            accuracy(lambda image, index, name=name, severity=severity: corrupt(image, name, severity, index))
            for severity in severities
        ]
        for name in corruptions
    }
    accuracies, class_means = (
        {name: tuple(pair[i] for pair in pairs) for name, pairs in measured.items()} for i in (0, 1)
    )
    clean, clean_class_mean = accuracy(lambda image, _: image)
    return Robustness(clean, accuracies, clean_class_mean, class_means)


def corrupt(
    image: UInt8[np.ndarray, "height width channels"], name: str, severity: int, index: int
) -> UInt8[np.ndarray, "height width channels"]:
    """The image with a corruption of CORRUPTIONS.

    Random numbers depend on the name and the index alone. So a higher severity has more of nearly the same noise, and
    every classifier is given the same images.

    Args:
      image: gray (1 channel) or RGB.
      severity: 1 to 5.
      index: the image's place in its data set.
    Raises: ValueError for an unknown name or severity.
    """
    strength = _strength(name, severity)
    rng = np.random.default_rng((zlib.crc32(name.encode()), index))
    corrupted = CORRUPTIONS[name][0](image.astype(np.float32) / 255, strength, rng)
    return to_uint8(corrupted.reshape(image.shape))


def to_uint8(image: Image) -> UInt8[np.ndarray, "height width channels"]:
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _strength(name: str, severity: int) -> float:
    if name not in CORRUPTIONS:
        raise ValueError(f"no corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1 to 5, got {severity}")
    return CORRUPTIONS[name][1][severity - 1]
