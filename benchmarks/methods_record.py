"""What methods.py and against_peers.py keep: numbers in a JSON file, and which test images each run had right."""

import dataclasses
import fcntl
import json
from pathlib import Path

import numpy as np

from ssl_jax.workdir import files

KNN, LINEAR, FINETUNE = "knn/k20_t0.07/top1", "linear/10_per_class/top1", "finetune/10_per_class/top1"
FROZEN = {"knn": KNN, "linear": LINEAR}  # name in the files of right images -> protocol
NAMES = {KNN: "kNN", LINEAR: "10 labels"}  # in tables
GROUPS = "groups"  # beside them: of test images that belong together


@dataclasses.dataclass(frozen=True)
class Measured:
    """numbers: for JSON. right: protocol -> bool [draws, images]; {} where it is not kept. groups: of the images."""

    numbers: dict
    right: dict
    groups: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """folder/NAME.json, folder/NAME/KEY.npz for each key that has right images, and the page folder/NAME.md."""

    folder: Path
    name: str

    @property
    def path(self):
        return self.folder / f"{self.name}.json"

    @property
    def page(self):
        return self.folder / f"{self.name}.md"

    def read(self):
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, key, measured, **facts):
        """Adds an entry; several processes may do so at the same time."""
        if measured.right:
            known = {name: measured.right[protocol] for name, protocol in FROZEN.items() if protocol in measured.right}
            bits = {name: np.packbits(right, axis=-1) for name, right in known.items()}
            counts = {"images": np.int32(measured.right[KNN].shape[-1])}
            if measured.groups is not None:
                counts[GROUPS] = np.unique(measured.groups, return_inverse=True)[1].astype(np.int32)
            self._file(key).parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(self._file(key)) as file:
                np.savez_compressed(file, **bits, **counts)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = dict(sorted((self.read() | {key: {**facts, **measured.numbers}}).items()))
            files.write(self.path, json.dumps(found, indent=1) + "\n")

    def has_right(self, key):
        return self._file(key).exists()

    def right(self, key, protocol):
        """Whether each test image was right, of each draw of labels, bool [draws, images].

        Raises: ValueError if its mean is not the number that the JSON file has.
        """
        with np.load(self._file(key)) as found:
            name = next(name for name, one in FROZEN.items() if one == protocol)
            right = np.unpackbits(found[name], axis=-1, count=int(found["images"])).astype(bool)
        number = self.read()[key][protocol]
        if abs(100 * right.mean() - number) > 1e-3:
            raise ValueError(
                f"{self._file(key)} has {100 * right.mean():.3f} % right, but {self.path} says {number:.3f} under "
                f"{protocol}; measure {key} again"
            )
        return right

    def groups(self, key):
        """Of the test images, int32 [images]; None where each stands alone."""
        with np.load(self._file(key)) as found:
            return found.get(GROUPS)

    def _file(self, key):
        return self.folder / self.name / f"{key}.npz"
