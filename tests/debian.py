"""Real images that packages of Debian and npm hold, and marks of the tests that need them."""

import shutil
from pathlib import Path

import pytest

from ssl_jax.data import fashion_mnist

STAMPS = Path("/usr/share/tuxpaint/stamps")

needs_fashion_mnist = pytest.mark.skipif(not fashion_mnist.installed(), reason="needs Debian's dataset-fashion-mnist")
needs_stamps = pytest.mark.skipif(not STAMPS.is_dir(), reason="needs Debian's tuxpaint-stamps-default")
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm, and a registry")
