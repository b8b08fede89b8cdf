"""Images, from where they are to augmented views on the device.

folder, tfds, arrays and any object with `__len__` and `__getitem__` are sources of images; `split` divides one;
`statistics` measures one. `Augmentation` and `Mask` say how views are made.
"""

from ssl_jax.data.augment import Augmentation
from ssl_jax.data.given import Items, ObjectSource, arrays, as_source, split, statistics
from ssl_jax.data.masks import Mask
from ssl_jax.data.sources import ArraySource, Source, Subset, folder, tfds

__all__ = [
    "ArraySource",
    "Augmentation",
    "Items",
    "Mask",
    "ObjectSource",
    "Source",
    "Subset",
    "arrays",
    "as_source",
    "folder",
    "split",
    "statistics",
    "tfds",
]
