"""Images made for tests of `inspect`."""

import numpy as np

from ssl_jax.data.sources import Source


class Made(Source):
    """Image i is `make(i)`; none is kept. Labels and names as given."""

    def __init__(self, count, make, *, labels=None, class_names=(), groups=None, name="made"):
        self._count, self._make, self._labels = count, make, labels
        self.name, self.class_names, self.groups = name, class_names, groups

    @property
    def labels(self):
        return None if self._labels is None else np.asarray(self._labels, np.int32)

    def __len__(self):
        return self._count

    def read(self, index):
        return self._make(index), -1 if self._labels is None else int(self._labels[index])

    def image_name(self, index):
        return f"image {index}"


def of(images, **options):
    return Made(len(images), images.__getitem__, **options)


def scene(seed, height=60, width=80, channels=3):
    """A smooth random picture, in 0..1, unlike those of other seeds."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: 1 : height * 1j, : 1 : width * 1j]
    made = np.zeros((height, width, channels))
    for _ in range(12):
        wave = np.sin(2 * np.pi * (rng.uniform(-4, 4) * x + rng.uniform(-4, 4) * y) + rng.uniform(0, 6))
        made += wave[..., None] * rng.normal(size=channels)
    return (made - made.min()) / (made.max() - made.min())
