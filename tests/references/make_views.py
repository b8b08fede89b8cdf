"""Views as they were before vertical flips, quarter turns and the operations on channels: views.npz.

python tests/references/make_views.py, at commit 9103ebb with jax 0.10.2. An operation that is added since must not
change them: a run that goes on with a newer version sees what it would have seen.
"""

from pathlib import Path

import jax
import numpy as np

from ssl_jax.data.augment import Augmentation, make_augment
from ssl_jax.data.normalization import Normalization

COLORS = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, grayscale=0.2)
CASES = {
    "crop": dict(size=(10, 8), **COLORS, blur=0.5, blur_kernel=3, solarize=0.2, interpolation="bicubic"),
    "window": dict(size=(10, 8), shorter_side=12, padding=2, photometric=0.66, rotate=20.0, grayscale=0.5),
}


def views(options):
    """float32 [6, *size, 3] of six random images."""
    images = np.random.default_rng(0).integers(0, 256, (6, 18, 20, 3), dtype=np.uint8)
    made = make_augment([Augmentation(**options)], Normalization((0.5,) * 3, (0.25,) * 3))
    return np.asarray(jax.jit(made)(jax.random.key(5), {"image": images, "index": np.arange(6)})["views"][0])


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name("views.npz"), **{name: views(o) for name, o in CASES.items()})
