"""S3 on loopback: moto's server in a process of its own, and before it a proxy that fails when it is told to."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@contextmanager
def moto() -> Iterator[int]:
    """Run moto's server; give its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None and not _is_up(port):
                time.sleep(0.1)
            assert process.poll() is None, "moto's server does not run"
            yield port
        finally:
            process.terminate()


def _is_up(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a port, but for those that it is told to spoil.

    Attributes:
        refused: every so many-th request is answered by 503 and not passed on; 0: none.
        lost: every so many-th request is passed on, but its answer cut off; 0: none.
        asked: how many requests there were.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, behind: int, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.behind = behind
        self.refused = self.lost = self.asked = 0
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def close(self) -> None:
        """Refuse connections from now on."""
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"  # which sends "100 Continue" where a client waits for it

    def log_message(self, *words: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.close_connection = True
        body, proxy = self.body(), self.server
        proxy.asked += 1
        if proxy.refused and proxy.asked % proxy.refused == 0:
            return self.answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN, len(SLOW_DOWN))
        connection = http.client.HTTPConnection("127.0.0.1", proxy.behind)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        data, headers = response.read(), {name.title(): value for name, value in response.getheaders()}
        size = int(headers.pop("Content-Length", len(data)))  # of HEAD, of what is not there
        if proxy.lost and proxy.asked % proxy.lost == 0:
            if not data:
                return None
            data = data[: len(data) // 2]
        headers = {name: value for name, value in headers.items() if name not in ("Date", "Server", "Connection")}
        return self.answer(response.status, headers, data, size)

    def body(self) -> bytes:
        """Return what was sent, which of files comes in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def answer(self, status: int, headers: dict[str, str], data: bytes, size: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
