"""Object stores, gs:// and s3://, as file systems of fsspec that wait while their store does not answer.

`etils.epath`, and so Orbax, takes its file systems from fsspec. So what is registered here also waits for their calls.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import asyncio
import functools
import importlib
import importlib.util
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar, cast

R = TypeVar("R")

PATIENCE = 300.0  # seconds
PATIENCE_VARIABLE = "SSL_JAX_STORE_PATIENCE"
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0  # seconds between two attempts: doubled each time, up to the longest
SILENCE = 60.0  # seconds without a byte after which a request counts as failed
BUSY = (408, 429)  # HTTP: timed out, too many requests; and all from 500 on
BUSY_CODES = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded")  # of S3
PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


class Scheme(NamedTuple):
    """A kind of store. `package`: of its file system, which the extra `extra` installs. `make`: the command that makes
    a bucket."""

    package: str
    extra: str
    make: str


SCHEMES = {
    "gs": Scheme("gcsfs", "gcs", "gcloud storage buckets create gs://"),
    "s3": Scheme("s3fs", "s3", "aws s3 mb s3://"),
}


class StoreError(Exception):
    """A store that did not answer for as long as is waited for it; its text is for the user.

    It is no OSError: what skips an image that cannot be read must not skip one because a store is down.
    """


def check(address: str) -> None:
    """Raises: ValueError for an address SCHEME://... of an unknown scheme, without a bucket, or without its extra."""
    scheme, _, rest = address.partition("://")
    if scheme not in SCHEMES:
        raise ValueError(
            f"{address!r} begins with {scheme}://, which is not known; give a local path, or one that begins with "
            f"{' or '.join(f'{known}://' for known in SCHEMES)}"
        )
    if not rest.strip("/"):
        raise ValueError(f"{address!r} names no bucket; give {scheme}://BUCKET/DIRECTORY")
    needed = SCHEMES[scheme]
    if importlib.util.find_spec(needed.package) is None:
        raise ValueError(
            f"{address!r} is in an object store, which needs {needed.package}: pip install 'ssl_jax[{needed.extra}]'"
        )


@functools.cache
def file_system(scheme: str) -> Any:
    """The file system of fsspec for this scheme. From the first call on, epath and Orbax use it, too."""
    # Else epath would take TensorFlow's file system where TensorFlow is installed, which does not wait.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # gcsfs would ask for the kind of each bucket, by an interface that needs further rights.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    of_scheme = {"gs": _google, "s3": _amazon}[scheme]()
    fsspec = cast(Any, importlib.import_module("fsspec"))
    for name in ("gs", "gcs") if scheme == "gs" else ("s3",):
        fsspec.register_implementation(name, of_scheme, clobber=True)
    return fsspec.filesystem(scheme)


def patience() -> float:
    """Seconds that are waited for a store that does not answer: $SSL_JAX_STORE_PATIENCE, or PATIENCE."""
    return float(os.environ.get(PATIENCE_VARIABLE) or PATIENCE)


async def patiently(call: Callable[[], Awaitable[R]], what: str) -> R:
    """What `call` gives. It is called again, after longer and longer waits, while the store is away or busy.

    Raises: StoreError after `patience()` seconds; at once what is no fault of the store's.
    """
    begun, wait, told = time.monotonic(), FIRST_WAIT, False
    while True:
        try:
            found = await call()
            if told:
                logging.warning("the store answers again, after %.0f s", time.monotonic() - begun)
            return found
        except Exception as error:
            waited = time.monotonic() - begun
            if not is_passing(error):
                raise
            if waited + wait > patience():
                raise StoreError(
                    f"{what}: the store has not answered for {waited:.0f} s ({_line(error)}). What was written before "
                    "is whole; when the store answers, the same command goes on from the newest checkpoint"
                ) from error
            if waited + wait > LONGEST_WAIT and not told:
                told = True
                logging.warning(
                    "%s: the store does not answer (%s); trying again for up to %.0f s", what, _line(error), patience()
                )
        await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # at random: processes should not all come back at once
        wait = min(2 * wait, LONGEST_WAIT)


def is_passing(error: BaseException) -> bool:
    """Whether the store may answer the same request later: it is away, or busy."""
    if isinstance(error, PERMANENT):
        return False
    if any(_answer(one).get("Error", {}).get("Code") in BUSY_CODES for one in (error, error.__cause__)):
        return True
    status = _status(error) or _status(error.__cause__)
    if status is not None:
        return status >= 500 or status in BUSY
    if isinstance(error, OSError):  # of the network
        return not str(error).startswith("Forbidden")  # gcsfs has no other sign of it
    package = type(error).__module__.partition(".")[0]
    names = {kind.__name__ for kind in type(error).__mro__}
    of_botocore = {"HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseParserError"}
    return package == "aiohttp" or (package in ("botocore", "aiobotocore") and bool(names & of_botocore))


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that gcsfs, aiohttp or botocore report."""
    of_botocore = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    found = of_botocore or getattr(error, "code", None) or getattr(error, "status", None)
    return int(found) if isinstance(found, (int, str)) and str(found).isdigit() else None


def _answer(error: BaseException | None) -> dict[str, Any]:
    """What botocore has of the store's answer; {} for other errors."""
    found = getattr(error, "response", None)
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _google() -> Any:
    core = importlib.import_module("gcsfs.core")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints a trace of each failed attempt
    request = core.GCSFileSystem._request
    request = getattr(request, "__wrapped__", request)  # without its own retries
    timeout = importlib.import_module("aiohttp").ClientTimeout(sock_connect=SILENCE, sock_read=SILENCE)

    class Google(_Asking, core.GCSFileSystem):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **{"requests_timeout": timeout, "use_listings_cache": False, **kwargs})

        async def _request(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
            what = "gs://" + "/".join(map(str, args)) if args else path
            return await patiently(lambda: request(self, method, path, *args, **kwargs), what)

    return Google


def _amazon() -> Any:
    core = importlib.import_module("s3fs.core")
    sync_wrapper = importlib.import_module("fsspec.asyn").sync_wrapper

    class Amazon(_Asking, core.S3FileSystem):
        def __init__(self, *args: Any, **kwargs: Any):
            once = {"retries": {"total_max_attempts": 1}}  # without botocore's own retries
            super().__init__(*args, **{"use_listings_cache": False, "config_kwargs": once, **kwargs})

        async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
            named = {key: value for given in (*args, kwargs) for key, value in given.items()}
            what = "/".join(filter(None, ["s3:/", named.get("Bucket"), named.get("Key", named.get("Prefix"))]))
            return await patiently(lambda: cast(Any, super(Amazon, self))._call_s3(method, *args, **kwargs), what)

        # s3fs makes these of its own methods, whatever a subclass has; open files write by the first.
        call_s3 = sync_wrapper(_call_s3)
        exists = sync_wrapper(_Asking._exists)
        isdir = sync_wrapper(_Asking._isdir)

    return Amazon


class _Asking:
    """Answers no where the store says no, and never where it says nothing: fsspec answers no to any error."""

    async def _isfile(self, path: str) -> bool:
        return await self._type(path) == "file"

    async def _isdir(self, path: str) -> bool:
        return await self._type(path) == "directory"

    async def _exists(self, path: str, **_: Any) -> bool:
        return bool(await self._type(path))

    async def _type(self, path: str) -> str:
        try:
            return (await cast(Any, self)._info(path))["type"]
        except FileNotFoundError:
            return ""
