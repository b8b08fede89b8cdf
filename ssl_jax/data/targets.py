"""What is to be predicted of an image where it is not one of several classes: several labels, or measurements."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float32, Shaped

MULTILABEL, REGRESSION = "multilabel", "regression"


@dataclasses.dataclass(frozen=True)
class Targets:
    """Numbers to predict.

    kind: "multilabel": each is 1 or 0, whether the image has a label; "regression": any numbers.
    names: of the outputs: labels, or what was measured.
    values: NaN where it is not known.
    """

    kind: str
    names: tuple[str, ...]
    values: Float32[np.ndarray, "images outputs"]

    def of(self, indices: Shaped[np.ndarray, " chosen"]) -> "Targets":
        """Those of some images."""
        return dataclasses.replace(self, values=self.values[indices])

    def digest(self) -> str:
        """Hexadecimal digits that tell these numbers from others."""
        return hashlib.sha256(f"{self.kind} {self.names}".encode() + self.values.tobytes()).hexdigest()

    def is_like(self, other: "Targets") -> bool:
        """Whether both are of the same kind and names."""
        return (self.kind, self.names) == (other.kind, other.names)


def from_lists(lists: Sequence[Iterable[SupportsIndex] | None], names: Sequence[str]) -> Targets:
    """Targets of several labels an image, as a list for each image.

    Args:
      lists: indices into `names` of the labels that an image has; None, or a negative index among them, where its
        labels are not known.
    """
    values = np.zeros((len(lists), len(names)), np.float32)
    for row, found in zip(values, lists, strict=True):
        indices = None if found is None else np.array(list(found), int)
        if indices is None or (indices < 0).any():
            row[:] = np.nan
        else:
            row[indices] = 1
    return Targets(MULTILABEL, tuple(names), values)


def make(values: Any, names: Sequence[str], kind: str, what: str) -> Targets:
    """Targets of numbers [images, outputs], or [images] for a single one.

    Args:
      names: of the outputs; "0", "1", ... if not given.
      kind: "multilabel" or "regression".
      what: the values are called, in messages.
    Raises: ValueError for another shape, infinity, too few names, and for labels other than 0, 1 and NaN.
    """
    found = np.asarray(values)
    if found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2 or found.dtype.kind not in "buif":
        raise ValueError(f"{what} must be numbers [images, outputs], got {found.dtype} {list(found.shape)}")
    found = found.astype(np.float32)
    names = tuple(names) or tuple(map(str, range(found.shape[1])))
    if len(names) != found.shape[1] or len(set(names)) < len(names):
        raise ValueError(f"{what} have {found.shape[1]} outputs, which need as many different names, got {names}")
    if np.isinf(found).any():
        raise ValueError(f"{what} must be finite, or NaN where they are not known")
    if kind == MULTILABEL:
        known = found[~np.isnan(found)]
        if wrong := sorted(set(known[(known != 0) & (known != 1)].tolist())):
            raise ValueError(
                f"{what} must be 1 where an image has the label, 0 where it has not, and NaN where that is not known; "
                f"got {wrong[0]:g}"
            )
    return Targets(kind, names, found)
