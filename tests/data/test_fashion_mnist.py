import gzip
import struct

import numpy as np
import pytest

from ssl_jax.data import fashion_mnist
from tests.debian import needs_fashion_mnist


def write(path, shape, data, kind=8):
    path.write_bytes(gzip.compress(struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + data))
    return path


def test_read_idx(tmp_path):
    values = np.arange(24, dtype=np.uint8)
    array = fashion_mnist.read_idx(write(tmp_path / "a.gz", (2, 3, 4), values.tobytes()))
    np.testing.assert_array_equal(array, values.reshape(2, 3, 4))


def test_broken_idx_files_are_refused(tmp_path):
    whole = write(tmp_path / "whole.gz", (2, 3), bytes(6)).read_bytes()
    cases = {
        "not an idx file": gzip.compress(b"\x89PNG and so on"),
        "not an idx file of bytes": write(tmp_path / "floats.gz", (2, 3), bytes(24), kind=13).read_bytes(),
        # Terabytes: refused by the header alone, without trying to hold them.
        "too small for": write(tmp_path / "huge.gz", (2**31, 2**10, 2**10), bytes(9)).read_bytes(),
        "does not hold the 6 bytes": write(tmp_path / "short.gz", (2, 3), bytes(5)).read_bytes(),
        "does not hold the 6 bytes ": write(tmp_path / "long.gz", (2, 3), bytes(7)).read_bytes(),
        "is broken": whole[:-9],
        "is broken ": b"not gzip",
    }
    for message, data in cases.items():
        path = tmp_path / "case.gz"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message.strip()):
            fashion_mnist.read_idx(path)


def test_without_dpkg_it_is_not_installed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert fashion_mnist.installed() == {}


@needs_fashion_mnist
def test_debians_files():
    files = fashion_mnist.installed()
    images, labels = fashion_mnist.load(files, "train")
    assert images.shape == (60000, 28, 28)
    np.testing.assert_array_equal(np.bincount(labels), [6000] * 10)
    assert images.mean() / 255 == pytest.approx(0.2860, abs=1e-4)  # as config.base_config normalizes by
    assert len(fashion_mnist.load(files, "test")[0]) == 10000
    part = fashion_mnist.load(files, "train[25%:50%]+test[:3]")
    np.testing.assert_array_equal(part[0][:15000], images[15000:30000])
    np.testing.assert_array_equal(part[1][:15000], labels[15000:30000])
    assert len(part[0]) == len(part[1]) == 15003
    with pytest.raises(ValueError, match="Unknown split 'valid'"):
        fashion_mnist.load(files, "valid")
    with pytest.raises(ValueError, match="incompatible with 60000 examples"):
        fashion_mnist.load(files, "train[70000:]")
