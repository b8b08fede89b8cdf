"""Boxes that torchvision's RandomResizedCrop draws, for tests/data/test_crop.py.

    python tests/references/make_crop.py        (in an environment with torch and torchvision)

Writes crop.npz: for each case of CASES "NAME": int16 [draws, 4] of (top, left, height, width), and "versions".
"""

import contextlib
from pathlib import Path

import numpy as np
import torch

with contextlib.suppress(ImportError):
    import tvshim  # noqa: F401  declares torchvision's C++ operators where they were not built
import torchvision
from torchvision.transforms import RandomResizedCrop

DRAWS = 4000
CASES = {  # name: (image's height, width), area, aspect
    "landscape": ((375, 500), (0.08, 1.0), (3 / 4, 4 / 3)),
    "square": ((32, 32), (0.2, 1.0), (3 / 4, 4 / 3)),
    "elongated": ((40, 400), (0.3, 1.0), (3 / 4, 4 / 3)),  # mostly the centered fallback
}

if __name__ == "__main__":
    torch.manual_seed(0)
    boxes = {}
    for name, ((height, width), area, aspect) in CASES.items():
        image = torch.zeros(1, height, width)
        drawn = [RandomResizedCrop.get_params(image, list(area), list(aspect)) for _ in range(DRAWS)]
        boxes[name] = np.array(drawn, np.int16)
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    np.savez_compressed(Path(__file__).with_name("crop.npz"), versions=versions, **boxes)
    print(versions)
