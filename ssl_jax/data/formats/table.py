"""The formats that are read: their endings, the bytes they begin with, the file that reads them, what it needs."""

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ssl_jax import paths
from ssl_jax.data.formats.errors import Unreadable
from ssl_jax.paths import AnyPath

DIGITS = ".0123456789"
HEAD = 512  # bytes of a file that tell its format


class Format(NamedTuple):
    """A format of image files.

    Attributes:
      name: for messages.
      magic: (position, bytes that may stand there) pairs, of which one is true of each file; () if the ending tells.
      reader: module of this package.
      needs: package of the extra `extra` that it imports; "" if what it needs is always there.
      several: a file may hold several images.
    """

    name: str
    endings: tuple[str, ...]
    magic: tuple[tuple[int, tuple[bytes, ...]], ...]
    reader: str
    needs: str = ""
    extra: str = ""
    several: bool = False

    @property
    def available(self) -> bool:
        return not self.needs or _installed(self.needs)

    def module(self) -> ModuleType:
        """The reader, imported when it is first used. Raises: Unreadable that says what to install."""
        if not self.available:
            raise Unreadable(self.remedy)
        return importlib.import_module(f"ssl_jax.data.formats.{self.reader}")

    def begins(self, head: bytes, *, sure: bool = False) -> bool:
        """`sure`: only by three bytes or more, as text may begin with two."""
        if sure:
            return any(head.startswith(tuple(one for one in starts if len(one) > 2), at) for at, starts in self.magic)
        return any(head.startswith(starts, at) for at, starts in self.magic)

    @property
    def remedy(self) -> str:
        return f"reading {self.name} needs {self.needs.replace('_', '-')}: pip install 'ssl_jax[{self.extra}]'"


PHOTOS = Format(
    "photos",
    (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".webp"),
    (
        (0, (b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")),
        (0, (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")),
        (8, (b"WEBP",)),
    ),
    "photos",
)
TIFF = Format(
    "TIFF",
    (".tif", ".tiff", ".btf", ".svs"),
    ((0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),),  # with a + it is BigTIFF
    "tiff",
    several=True,
)
NPY = Format("NumPy arrays", (".npy",), ((0, (b"\x93NUMPY",)),), "npy")
FORMATS = (
    # First, as what stands before its mark may look like another format.
    Format("DICOM", (".dcm", ".dicom", ".ima"), ((128, (b"DICM",)),), "dicom", "pydicom", "dicom", several=True),
    PHOTOS,
    TIFF,
    Format("JPEG 2000", (".jp2", ".j2k", ".jpx", ".jpc"), ((0, (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),), "jpeg2000"),
    Format(
        "HEIC",
        (".heic", ".heif"),
        ((4, (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")),),
        "heif",
        "pillow_heif",
        "heif",
    ),
    Format("AVIF", (".avif",), ((4, (b"ftypavif", b"ftypavis", b"ftypmif1")),), "avif"),
    Format("NIfTI", (".nii", ".nii.gz"), (), "nifti", "nibabel", "nifti", several=True),
    NPY,
)
ENDINGS = tuple(sorted(ending for form in FORMATS for ending in form.endings))


def of_name(name: str) -> Format | None:
    """By the ending."""
    lower = name.lower()
    return next((form for form in FORMATS if lower.endswith(form.endings)), None)


def of_content(head: bytes, name: str) -> Format | None:
    """By the first HEAD bytes of a file; by its ending if these tell nothing."""
    named = of_name(name)
    first = [named] if named else []
    return next((form for form in [*first, *FORMATS] if form.begins(head)), named)


def of_file(path: AnyPath) -> Format | None:
    """By the ending. A name without one, or with one of digits, as scanners give (IM0001, 1.2.840.113), says nothing:
    then the first bytes tell."""
    if path.suffix.strip(DIGITS) or of_name(path.name):
        return of_name(path.name)
    try:
        if not path.is_file():  # reading a pipe would wait
            return None
        head = paths.read_start(path, HEAD)
    except OSError:
        return None
    return next((form for form in FORMATS if form.begins(head, sure=True)), None)


def ending(name: str) -> str:
    """The ending of a name, in lower case; "" if it has none, or only one of digits."""
    lower = name.lower()
    found = ".nii.gz" if lower.endswith(".nii.gz") else Path(lower).suffix
    return found if found.strip(DIGITS) else ""


@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
