"""Object stores on this machine, for tests: Google's by gcp-storage-emulator, Amazon's by moto."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUCKET = "bucket"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def running(scheme: str) -> Iterator[int]:
    """The port of an empty store with one bucket, while it runs."""
    port = free_port()
    google = [str(ROOT / "tests" / "stores" / "google.py"), str(port)]
    amazon = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    command = [sys.executable, *(google if scheme == "gs" else amazon)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        if scheme == "s3":
            make_bucket = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
            urllib.request.urlopen(make_bucket).close()
        yield port
    finally:
        process.kill()
        process.wait()


def wait_for(port: int, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/").close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def environment(scheme: str, port: int) -> dict[str, str]:
    """Variables by which programs find the store."""
    address = f"http://127.0.0.1:{port}"
    if scheme == "gs":
        return {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "TENSORSTORE_GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        }
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextlib.contextmanager
def here(scheme: str) -> Iterator[str]:
    """The address of a bucket of a new store, which this process and those that it starts find."""
    with running(scheme) as port:
        os.environ |= environment(scheme, port)
        yield f"{scheme}://{BUCKET}"
