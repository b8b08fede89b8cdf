"""Lets Orbax write to s3://, by TensorStore's driver for it, and bounds how long TensorStore waits for a store.

Orbax knows one kind of store, gs://. What it does there is right for s3://, too: a checkpoint is complete when a file
says so, as a store cannot rename a directory. So Orbax is told that both are stores, and what their driver is called.
These names are Orbax's own, of versions 0.12 and 0.13; `enable` says so if one of them is missing.
"""

import functools
import os
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from ssl_jax import stores

PREFIX = "s3://"
REPLACED = (
    (gcs_utils, "_GCS_PATH_PREFIX"),
    (gcs_utils, "get_kvstore_for_gcs"),
    (tensorstore_utils, "_use_gcs_driver"),
    (tensorstore_utils, "_normalize_path"),
)


@functools.cache  # once in a process
def enable() -> None:
    """Raises: RuntimeError for a version of Orbax that has other names."""
    if missing := [name for module, name in REPLACED if not hasattr(module, name)]:
        raise RuntimeError(
            f"this version of Orbax has no {', '.join(missing)}, by which it learns of {PREFIX}; install "
            "'orbax-checkpoint>=0.12,<0.14'"
        )
    of_google, is_google, normalized = (getattr(module, name) for module, name in REPLACED[1:])

    def driver(path: str) -> dict[str, Any]:
        if path.startswith(PREFIX):
            return {**amazon(path), "s3_request_retries": retries()}
        return {**of_google(path), "gcs_request_retries": retries()}

    gcs_utils._GCS_PATH_PREFIX = ("gs://", PREFIX)
    gcs_utils.get_kvstore_for_gcs = driver
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(PREFIX) or is_google(path)
    tensorstore_utils._normalize_path = lambda path: (
        PREFIX + os.path.normpath(path.removeprefix(PREFIX)) if path.startswith(PREFIX) else normalized(path)
    )


def retries() -> dict[str, Any]:
    """TensorStore's spec of its repetitions of a request: about as long as `stores.patience`."""
    number, waited, wait = 0, 0.0, stores.FIRST_WAIT
    while waited < stores.patience():
        number, waited, wait = number + 1, waited + wait, min(2 * wait, stores.LONGEST_WAIT)
    return {
        "max_retries": number,
        "initial_delay": f"{stores.FIRST_WAIT}s",
        "max_delay": f"{stores.LONGEST_WAIT}s",
    }


def amazon(path: str) -> dict[str, Any]:
    """TensorStore's spec of a path in S3. The endpoint and the region are those that Amazon's tools use."""
    bucket, _, key = path.removeprefix(PREFIX).partition("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options: dict[str, Any] = {"endpoint": endpoint, "aws_region": region}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else the driver first complains of each file that might have had some
        options["aws_credentials"] = {"type": "environment"}
    return {"driver": "s3", "bucket": bucket, "path": key, **{name: of for name, of in options.items() if of}}
