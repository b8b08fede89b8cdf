"""Real images that Debian's packages hold, and marks of the tests that need them."""

from pathlib import Path

import pytest

from ssl_jax.data import fashion_mnist

STAMPS = Path("/usr/share/tuxpaint/stamps")

needs_fashion_mnist = pytest.mark.skipif(not fashion_mnist.installed(), reason="needs Debian's dataset-fashion-mnist")
needs_stamps = pytest.mark.skipif(not STAMPS.is_dir(), reason="needs Debian's tuxpaint-stamps-default")
