import errno
import os

import pytest

from ssl_jax.workdir import files


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "one.json"
    for content in (b"first", b"second"):
        with files.replacing(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("no"), OSError(errno.ENOSPC, "full")])
def test_after_an_error_the_file_is_what_it_was_and_no_part_is_left(tmp_path, error):
    path = tmp_path / "one.json"
    path.write_bytes(b"before")
    with pytest.raises((KeyboardInterrupt, ValueError, OSError)), files.replacing(path) as file:
        raise error if file.write(b"half") else AssertionError
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "not for long")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*one.json'") as raised,
        files.replacing(tmp_path / "one.json"),
    ):
        pass
    assert raised.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_the_kind_of_an_error_stays(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone/one.json'$"), files.replacing(tmp_path / "gone" / "one.json"):
        pass
