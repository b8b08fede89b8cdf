"""Work in threads."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ssl_jax.data.threads import one_ahead, read_at


def test_each_item_is_made_while_the_one_before_is_used():
    begun = [threading.Event() for _ in range(4)]

    def items():
        for number, event in enumerate(begun):
            event.set()
            yield number

    for number in one_ahead(items()):
        assert all(event.wait(10) for event in begun[: number + 2])
        assert not any(event.wait(0.05) for event in begun[number + 2 :])  # no more than one is held


def test_an_error_comes_where_the_item_was_asked_for():
    def items():
        yield 1
        raise ValueError("no second one")

    found = one_ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no second one"):
        next(found)
    assert list(one_ahead([])) == []


@pytest.mark.parametrize("windows", [False, True])
def test_threads_read_from_one_file_whose_position_stays(tmp_path, monkeypatch, windows):
    """Windows has no pread."""
    content = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "file").write_bytes(content)
    if windows:
        monkeypatch.delattr(os, "pread")
    places = range(0, len(content), 100)
    with (tmp_path / "file").open("rb", buffering=0) as file, ThreadPoolExecutor(8) as pool:
        file.seek(7)
        found = list(pool.map(lambda place: read_at(file.fileno(), 100, place), places))
        assert file.tell() == 7
    assert b"".join(found) == content
