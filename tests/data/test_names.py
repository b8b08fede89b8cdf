"""data/names.py: many names in little memory."""

import os

import numpy as np
import pytest

from ssl_jax.data import names
from ssl_jax.data.names import Names

SOME = ["a.jpg", "", "größe/ü.png", os.fsdecode(b"not \xff UTF-8"), "last"]


@pytest.mark.parametrize("together", [1, 2, 100])
def test_names_come_back(monkeypatch, together):
    monkeypatch.setattr(names, "TOGETHER", together)
    found = Names.of(SOME)
    assert list(found) == SOME == [found[k] for k in range(5)] and len(found) == 5
    assert SOME[3] in found
    for index in (5, -1):
        with pytest.raises(IndexError):
            found[index]


def test_no_names():
    assert list(Names.of([])) == [] and not Names.of([])


def test_names_take_their_letters_and_eight_bytes():
    found = Names.of([f"{index:010d}" for index in range(100_000)])
    assert found._text.nbytes + found._ends.nbytes == 18 * 100_000
    assert found[77_777] == "0000077777" and np.array_equal(found._ends[:2], [10, 20])
