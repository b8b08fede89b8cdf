"""What is raised for an image that cannot be read, whatever its format and the library that reads it."""

import contextlib
import os
from collections.abc import Generator

from ssl_jax.stores import StoreError


class UndecodableImage(Exception):
    """An image that cannot be read: its `name` (a path, or data set and index) and the `reason`.

    Characters that cannot be printed are escaped: a file name may hold line breaks or terminal commands, and so may
    what a library quotes from a file.
    """

    def __init__(self, name: str, reason: str):
        self.name, self.reason = printable(name), printable(reason)
        super().__init__(f"{self.name}: {self.reason}")


class Unreadable(ValueError):
    """Why an image cannot be read: a sentence for the user, with the remedy if there is one."""


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def undecodable(name: str) -> Generator[None]:
    """Raises UndecodableImage for whatever its context raises.

    Damaged files make the libraries raise nearly anything: KeyError, struct.error, RecursionError, MemoryError.
    """
    try:
        yield
    except (UndecodableImage, StoreError):  # a store that is down damages no image
        raise
    except OSError as error:
        raise UndecodableImage(name, os.strerror(error.errno) if error.errno else _said(error)) from error
    except Exception as error:
        raise UndecodableImage(name, _said(error)) from error


def _said(error: Exception) -> str:
    """Of a library's error the type is named, too: a KeyError's text is a key."""
    if isinstance(error, Unreadable):
        return str(error)
    return f"damaged ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
