"""Images, from where they are to augmented views on the device.

`open_data` gives the images of a path or a name: folders, lists, arrays, records, TFDS data sets. folder, from_list,
tfds, arrays and any object with `__len__` and `__getitem__` are sources of images. `split` divides one, `windows` cuts
its images into windows, `masked` adds masks, `statistics` measures it, `inspect` looks at every image, and
`measure_input` says how fast they are read.
`Augmentation` and `Mask` say how views are made.
"""

from ssl_jax.data.augment import Augmentation
from ssl_jax.data.folder_source import folder
from ssl_jax.data.given import Items, ObjectSource, arrays, as_source, split, windows
from ssl_jax.data.input_speed import InputSpeed, measure_input
from ssl_jax.data.inspection import Inspection, inspect
from ssl_jax.data.list_source import from_list
from ssl_jax.data.masks import Mask
from ssl_jax.data.normalization import DTYPES, Normalization
from ssl_jax.data.opening import open_data, open_pair
from ssl_jax.data.packing import Packed, pack
from ssl_jax.data.segmentation import Masked, masked
from ssl_jax.data.sources import ArraySource, Source, Subset
from ssl_jax.data.statistics import statistics
from ssl_jax.data.tfds_source import tfds
from ssl_jax.data.window_source import Windows

__all__ = [
    "DTYPES",
    "ArraySource",
    "Augmentation",
    "InputSpeed",
    "Inspection",
    "Items",
    "Mask",
    "Masked",
    "Normalization",
    "ObjectSource",
    "Packed",
    "Source",
    "Subset",
    "Windows",
    "arrays",
    "as_source",
    "folder",
    "from_list",
    "inspect",
    "masked",
    "measure_input",
    "open_data",
    "open_pair",
    "pack",
    "split",
    "statistics",
    "tfds",
    "windows",
]
