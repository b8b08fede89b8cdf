"""Many names in little memory."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

TOGETHER = 2**16  # names that are encoded or decoded at a time


class Names(Sequence[str]):
    """Names in one text, which takes 8 bytes a name beside it. A list of them takes 57 and more.

    Args:
      text: all names, one after the other, as `os.fsencode` gives them.
      ends: where each of them ends in it.
    """

    def __init__(self, text: UInt8[np.ndarray, " bytes"], ends: Int64[np.ndarray, " names"]):
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._text[start : int(self._ends[index])].tobytes())

    def __iter__(self) -> Iterator[str]:
        start, text = 0, self._text.data
        for first in range(0, len(self), TOGETHER):
            for end in self._ends[first : first + TOGETHER].tolist():
                yield os.fsdecode(bytes(text[start:end]))
                start = end

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        text, ends = bytearray(), np.zeros(len(names), np.int64)
        for first in range(0, len(names), TOGETHER):
            some = list(map(os.fsencode, names[first : first + TOGETHER]))
            ends[first : first + len(some)] = len(text) + np.cumsum(list(map(len, some)))
            text += b"".join(some)
        return cls(np.frombuffer(text, np.uint8), ends)
