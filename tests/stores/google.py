"""Google's store on this machine, a program: python tests/stores/google.py PORT

gcp-storage-emulator, completed by what TensorStore and leases need of the real one: each object has a generation, which
a download's header says, and a request may depend on it.
"""

import logging
import sys
import time
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound


def conditional(handler):
    def handle(request, response, storage, *args, **kwargs):
        bucket, name = request.params.get("bucket_name"), request.params.get("object_id")
        name = name or request.query.get("name", [None])[0]
        if name is None and isinstance(request.data, dict):
            name = request.data.get("meta", {}).get("name")
        now = generation(storage, bucket, name) if bucket and name else "0"
        wanted, known = (request.query.get(key, [None])[0] for key in ("ifGenerationMatch", "ifGenerationNotMatch"))
        if wanted is not None and wanted != now:
            response.status = HTTPStatus.PRECONDITION_FAILED
        elif known is not None and known == now:
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            handler(request, response, storage, *args, **kwargs)
            response["x-goog-generation"] = now

    return handle


def generation(storage, bucket, name):
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    server.HANDLERS = tuple(
        (regex, {method: conditional(handler) for method, handler in handlers.items()})
        for regex, handlers in server.HANDLERS
    )
    emulator = server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket")
    emulator.start()
    while True:
        time.sleep(1)
