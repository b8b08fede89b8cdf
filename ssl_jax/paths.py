"""What a path is: of a local file, or of one in an object store, gs://BUCKET/... or s3://BUCKET/...."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import contextlib
import io
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeAlias

from etils import epath

from ssl_jax import stores

StorePath: TypeAlias = epath.Path
AnyPath: TypeAlias = pathlib.Path | StorePath
BLOCK = 2**20  # bytes that are fetched at least, where a file is read here and there
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://.*", re.DOTALL)


def path(text: str | os.PathLike[str]) -> AnyPath:
    """A `pathlib.Path`, or for what begins with gs:// or s3:// an `etils.epath.Path`.

    Raises: ValueError for an unknown scheme, for no bucket, and for a store whose extra is not installed.
    """
    if isinstance(text, StorePath):
        return text
    found = os.fspath(text)
    if not is_address(found):
        return pathlib.Path(found)
    stores.check(found)
    stores.file_system(found.partition("://")[0])
    return epath.Path(found)


def is_address(text: str) -> bool:
    """Whether it is SCHEME://..., known or not."""
    return ADDRESS.fullmatch(text) is not None


def is_remote(path: AnyPath) -> bool:
    """Whether it is in an object store."""
    return isinstance(path, StorePath)


def caches() -> pathlib.Path:
    """Where ssl_jax keeps what it can make again: ~/.cache/ssl_jax, or ssl_jax below $XDG_CACHE_HOME."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "ssl_jax"


def join(folder: AnyPath, name: str) -> AnyPath:
    """`name`, which may be relative to `folder`, absolute, or an address."""
    return path(name) if is_address(name) else folder / name


def glob(pattern: str) -> list[str]:
    """The addresses that match a pattern in a store, *, ? and [...] in any part, sorted."""
    scheme, _, rest = pattern.partition("://")
    return sorted(f"{scheme}://{found}" for found in system(path(pattern)).glob(rest))


def resolved(path: AnyPath) -> AnyPath:
    """Absolute, and without links."""
    return path if isinstance(path, StorePath) else path.resolve()


def absolute(path: AnyPath) -> AnyPath:
    return path if isinstance(path, StorePath) else path.absolute()


def expanded(path: AnyPath) -> AnyPath:
    return path if isinstance(path, StorePath) else path.expanduser()


def looked_from(path: AnyPath) -> str:
    """For a message about a path that is not there: " (looked from ...)" if it is relative to the current directory."""
    return "" if is_remote(path) else f" (looked from {pathlib.Path.cwd()})"


def make_directory(path: AnyPath) -> None:
    """A store has no directories: there is nothing to make."""
    if not isinstance(path, StorePath):
        path.mkdir(parents=True, exist_ok=True)


def names(folder: AnyPath) -> list[str]:
    """The names in a folder, sorted; [] if it is not there."""
    try:
        return sorted(found.name for found in folder.iterdir() if found.name)
    except FileNotFoundError:
        return []


def files_below(folder: AnyPath) -> list[str]:
    """The files at any depth, relative to the folder, sorted; [] if it is not there."""
    if not isinstance(folder, StorePath):
        return sorted(found.relative_to(folder).as_posix() for found in folder.rglob("*") if found.is_file())
    start = _key(folder).rstrip("/") + "/"
    found: list[str] = system(folder).find(_key(folder))
    return sorted(name.removeprefix(start) for name in found if name.startswith(start) and not name.endswith("/"))


def size(path: AnyPath) -> int:
    """Bytes. Raises: FileNotFoundError."""
    return int(system(path).info(_key(path))["size"]) if isinstance(path, StorePath) else path.stat().st_size


def read_bytes(path: AnyPath) -> bytes:
    """The whole file; of one in a store by one request, so that it is of one version. Raises: FileNotFoundError."""
    return system(path).cat_file(_key(path)) if isinstance(path, StorePath) else path.read_bytes()


def read_range(path: StorePath, start: int, stop: int) -> bytes:
    """Bytes of a file in a store, from `start` to before `stop`; fewer where it ends before."""
    return system(path).cat_file(_key(path), start=start, end=stop) if stop > start else b""


def read_start(path: AnyPath, length: int) -> bytes:
    """The first bytes of a file, at most so many."""
    if not isinstance(path, StorePath):
        with path.open("rb") as file:
            return file.read(length)
    try:
        return read_range(path, 0, length)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RuntimeError):  # no range of an empty file can be read
        if size(path) == 0:
            return b""
        raise


def opened(path: AnyPath) -> Any:
    """The file, to read bytes from. One in a store is read as a whole."""
    return io.BytesIO(read_bytes(path)) if isinstance(path, StorePath) else path.open("rb")


def seekable(path: AnyPath) -> Any:
    """The file, to read bytes from. Of one in a store, only what is read is fetched, in blocks."""
    if not isinstance(path, StorePath):
        return path.open("rb")
    return system(path).open(_key(path), "rb", block_size=BLOCK, cache_type="readahead")


def upload(path: StorePath, content: bytes) -> None:
    """Makes or replaces a file in a store. No one ever sees a part of it. Raises: StoreError."""
    system(path).pipe_file(_key(path), content)


def upload_folder(folder: pathlib.Path, to: StorePath) -> None:
    """Uploads all files of a local folder, one after another. Raises: StoreError."""
    for name in files_below(folder):
        upload(to / name, (folder / name).read_bytes())


def create(path: StorePath, content: bytes) -> bool:
    """Makes a file in a store; False if it is there already. A store without conditional writes replaces it."""
    try:
        system(path).pipe_file(_key(path), content, mode="create")
    except FileExistsError:
        return False
    return True


def remove(path: AnyPath) -> None:
    """Removes a file, if it is there."""
    if not isinstance(path, StorePath):
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        system(path).rm_file(_key(path))


def move_folder(folder: AnyPath, to: AnyPath, first: str = "") -> None:
    """Moves a folder with all its files. first: the name of a file that in a store is removed before the others, so
    that a move that is cut short leaves no folder that looks whole."""
    if not isinstance(folder, StorePath):
        shutil.move(folder, to)
        return
    files = files_below(folder)
    for name in files:
        system(folder).copy(_key(folder / name), _key(to / name))
    for name in sorted(files, key=lambda name: name != first):
        remove(folder / name)


@contextlib.contextmanager
def local(path: AnyPath) -> Generator[pathlib.Path]:
    """The file on a local disk: itself, or a copy that is there within this context."""
    if not isinstance(path, StorePath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ssl_jax-") as folder:
        copied = pathlib.Path(folder, path.name)
        download(path, copied)
        yield copied


def download(path: StorePath, to: pathlib.Path, told: Callable[[int], object] = lambda _: None) -> None:
    """Copies a file of a store to a disk. told: called with the number of bytes of each part that was copied."""
    with to.open("wb") as file:
        for part in parts(path):
            told(file.write(part))


def parts(path: StorePath, length: int = 2**25) -> Iterator[bytes]:
    """The bytes of a file in a store, `length` at a time."""
    total = size(path)
    for start in range(0, total, length):
        yield read_range(path, start, min(start + length, total))


def system(path: AnyPath) -> Any:
    """The file system of fsspec that a file in a store is in."""
    return stores.file_system(os.fspath(path).partition("://")[0])


def _key(path: AnyPath) -> str:
    return os.fspath(path).partition("://")[2]
