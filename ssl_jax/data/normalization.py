"""The values of a run's images: their type and range, and how they become what a network is given."""

import dataclasses

import numpy as np
from jaxtyping import Array, Float, Num, Shaped, UInt8

DTYPES = ("uint8", "uint16", "int16", "float32")  # of images, from the file to the device

Images = Num[Array | np.ndarray, "*batch channels"]
Floats = Float[Array | np.ndarray, "*batch channels"]


@dataclasses.dataclass(frozen=True)
class Normalization:
    """unit = clip((image - low) / (high - low), 0, 1); a network is given (unit - mean) / std.

    Arrays of NumPy give arrays of NumPy, those of JAX give those of JAX.

    Attributes:
      mean, std: of each channel, of unit values.
      value_range: (low, high), or low and high of each channel, one channel after the other. (): what the type can
        hold, 0..255 for uint8; for float32 0..1.
      dtype: the type of the images, one of `DTYPES`.
      nodata: values that stand for no measurement, beside NaN and infinity.
    Raises: ValueError for numbers that do not fit each other.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, ...] = ()
    dtype: str = "uint8"
    nodata: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means need as many deviations, got {self.mean} and {self.std}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if len(self.value_range) not in (0, 2, 2 * self.channels):
            raise ValueError(
                f"value_range must be (low, high), or low and high of each of the {self.channels} channels, got "
                f"{self.value_range}"
            )
        if any(low >= high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"value_range must be (low, high) with low < high, got {self.value_range}")

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def pixel_bytes(self) -> int:
        """Of one pixel of the images as they are read."""
        return self.channels * np.dtype(self.dtype).itemsize

    @property
    def low(self) -> tuple[float, ...]:
        """Of each channel, or one for all."""
        return self.value_range[0::2] or type_range(self.dtype)[:1]

    @property
    def high(self) -> tuple[float, ...]:
        """Of each channel, or one for all."""
        return self.value_range[1::2] or type_range(self.dtype)[1:]

    def unit(self, images: Images) -> Floats:
        """The values in 0..1, float32.

        Args:
          images: of the run's type; or floats in 0..1 where the run's type is an integer, which are given back.
        Raises: ValueError for another type.
        """
        floats = images.astype(np.float32)
        if images.dtype != self.dtype:
            if not np.issubdtype(images.dtype, np.integer) and self.dtype != "float32":
                return floats
            raise ValueError(f"images must be {self.accepted}, got {images.dtype}")
        low, high = (np.asarray(end, np.float32) for end in (self.low, self.high))
        unit = ((floats - low) if low.any() else floats) / (high - low)
        least, most = type_range(self.dtype)
        clipped = self.dtype == "float32" or low.max() > least or high.min() < most
        return unit.clip(0.0, 1.0) if clipped else unit

    @property
    def accepted(self) -> str:
        """The types that `unit` takes, in words."""
        return self.dtype if self.dtype == "float32" else f"{self.dtype}, or floats in 0..1"

    def __call__(self, images: Images) -> Floats:
        """What a network is given, float32. `images`: see `unit`.

        Raises: ValueError for another type or number of channels.
        """
        return self.of_unit(self.unit(images))

    def of_unit(self, images: Floats) -> Floats:
        """What a network is given, from values in 0..1. Raises: ValueError for another number of channels."""
        if images.shape[-1] != self.channels:
            raise ValueError(
                f"images of {images.shape[-1]} channels need as many means and deviations, got {self.mean}, {self.std}"
            )
        return (images - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def conform(self, image: Shaped[np.ndarray, "*batch _"]) -> Num[np.ndarray, "*batch channels"]:
        """Images as they were read, in the run's type, with the channel's mean where there is no measurement.

        Raises: ValueError for another number of channels, and for a type whose values the run's type cannot hold.
        """
        if image.shape[-1] != self.channels:
            raise ValueError(f"it has {image.shape[-1]} channels, and the others have {self.channels}")
        if image.dtype != self.dtype:
            if not np.can_cast(image.dtype, self.dtype):
                raise ValueError(
                    f"its values are {image.dtype}, which the {self.dtype} of the others cannot hold; to read all as "
                    f"{np.result_type(image.dtype, self.dtype)}, set config.data.dtype, and value_range with it"
                )
            image = image.astype(self.dtype)
        missing = absent(image, self.nodata)
        if missing is None:
            return image
        low, high, mean = (np.asarray(x) for x in (self.low, self.high, self.mean))
        fill = low + mean * (high - low)
        if self.dtype != "float32":
            fill = np.rint(fill)
        return np.where(missing, fill.astype(self.dtype), image)

    def to_uint8(self, images: Images) -> UInt8[np.ndarray, "*batch channels"]:
        """The unit values times 255, rounded: to look at."""
        if images.dtype == np.uint8 and self.dtype == "uint8" and not self.value_range:
            return np.asarray(images)
        return np.rint(255.0 * np.clip(np.asarray(self.unit(images)), 0.0, 1.0)).astype(np.uint8)

    def undone(self, x: Floats) -> UInt8[np.ndarray, "*batch channels"]:
        """What a network is given, as `to_uint8` shows it."""
        unit = np.asarray(x) * np.asarray(self.std) + np.asarray(self.mean)
        return np.clip(np.rint(unit * 255), 0, 255).astype(np.uint8)


def type_range(dtype: str) -> tuple[float, float]:
    """(least, most) value of an integer type; (0, 1) for float32."""
    if dtype == "float32":
        return 0.0, 1.0
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def absent(
    image: Num[np.ndarray, "*batch channels"], nodata: tuple[float, ...]
) -> Shaped[np.ndarray, "*batch channels"] | None:
    """Where there is no measurement: NaN, infinity, or a value of `nodata`. None if there is one everywhere."""
    found = ~np.isfinite(image) if image.dtype.kind == "f" else None
    for value in nodata:
        same = image == value
        found = same if found is None else found | same
    return found if found is not None and found.any() else None
