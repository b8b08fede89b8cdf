"""A store that is not well: a proxy before it that refuses some requests, and that can be away for a while."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.stores.emulators import free_port


class Proxy:
    """Listens on `port` and passes requests on to the store at `target`. Every `refuse`-th is answered 503."""

    def __init__(self, target: int, refuse: int = 0):
        self.target, self.refuse, self.port = target, refuse, free_port()
        self.requests, self.refused = 0, 0
        self.connections: set[socket.socket] = set()
        self.lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        handler = type("Handler", (Handler,), {"proxy": self})
        self._server = Server(("127.0.0.1", self.port), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Nothing listens any more, and open connections break."""
        self._server.shutdown()
        self._server.server_close()
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def away(self, seconds: float) -> None:
        self.stop()
        time.sleep(seconds)
        self._start()

    def count(self) -> bool:
        """Whether the next request is refused."""
        with self.lock:
            self.requests += 1
            refused = bool(self.refuse) and self.requests % self.refuse == 0
            self.refused += refused
            return refused


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 100

    def handle_error(self, request, client_address):
        pass  # connections that break are what is tested


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def setup(self):
        super().setup()
        with self.proxy.lock:
            self.proxy.connections.add(self.connection)

    def finish(self):
        with self.proxy.lock:
            self.proxy.connections.discard(self.connection)
        super().finish()

    def handle_request(self):
        body = self._body()
        if self.proxy.count():
            return self._answer(503, [], b"")
        onward = http.client.HTTPConnection("127.0.0.1", self.proxy.target, timeout=60)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "transfer-encoding", "expect")}
        if body:
            kept["Content-Length"] = str(len(body))
        onward.request(self.command, self.path, body, kept)
        answer = onward.getresponse()
        content, length = answer.read(), answer.headers.get("Content-Length")
        onward.close()
        self._answer(answer.status, answer.headers.items(), content, length)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = handle_request

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status, headers, content, length=None):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        if status != 304:
            whole = length if self.command == "HEAD" and length else str(len(content))
            self.send_header("Content-Length", whole)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@contextlib.contextmanager
def before(target: int, refuse: int = 0) -> Iterator[Proxy]:
    proxy = Proxy(target, refuse)
    try:
        yield proxy
    finally:
        proxy.stop()
