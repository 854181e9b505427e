"""An S3 server on loopback (``moto``), a proxy before it that makes every fault a network has, and one like Google's."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import parse_qs, quote, unquote

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "NO_PROXY": "127.0.0.1,localhost",
}


@dataclass(frozen=True)
class Request:
    """One request that reached the proxy. ``path`` has percent signs; ``range`` is (first byte, after-last byte)."""

    method: str
    path: str
    range: tuple[int, int] | None


@dataclass(frozen=True)
class Fault:
    """What the proxy does to one answer.

    Attributes:
        kind: ``status``: answers with ``status`` itself. ``cut``: resets the connection after ``at`` bytes of the body.
            ``hang``: sends ``at`` bytes of the body, then nothing more until the client goes. ``short``: sends ``at`` bytes
            and says that this is all. ``shifted``: claims another range than it was asked for.
            ``flip``: flips a bit of body byte ``at``. ``late``: passes the request on, and answers with ``status``.
        at: see above.
        status: of the answer.
    """

    kind: Literal["status", "cut", "hang", "short", "shifted", "flip", "late"]
    at: int = 0
    status: int = 503


Faults = Callable[[Request], "Fault | None"]


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        endpoint: its URL.
        faults: asked for every request; replace it at will.
        requests: what came so far.
        writing: held while a write is passed on: S3 decides them one by one, moto's threads do not.
    """

    endpoint: str
    faults: Faults = lambda request: None
    requests: list[Request] = field(default_factory=list)
    writing: threading.Lock = field(default_factory=threading.Lock)

    def gets(self, part: str) -> list[Request]:
        """The GET requests for paths that contain ``part``."""
        return [request for request in self.requests if request.method == "GET" and part in request.path]


def first_times(count: int, fault: Fault, part: str = ".tar") -> Faults:
    """The fault, for the first ``count`` GET requests of paths that contain ``part``."""
    left = iter(range(count))
    lock = threading.Lock()

    def choose(request: Request) -> Fault | None:
        if request.method != "GET" or part not in request.path:
            return None
        with lock:
            return fault if next(left, None) is not None else None

    return choose


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Runs an S3 server; yields its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def faulty_proxy(upstream: str) -> Iterator[Proxy]:
    """Runs a proxy before a server; yields it."""
    proxy = Proxy("")

    class Handler(_Handler):
        to = upstream.removeprefix("http://")
        state = proxy

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False  # a connection that hangs on purpose ends with its client
        proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def google_server() -> Iterator[str]:
    """Runs a server that answers as Google's store does: objects with generations, and writes on a condition; yields its URL."""

    class Handler(_GoogleHandler):
        objects: ClassVar[dict[str, tuple[int, bytes, dict[str, str]]]] = {}
        writing = threading.Lock()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def call(endpoint: str, method: str, path: str, body: bytes = b"", **headers: str) -> None:
    """One unsigned request to a server that does not ask who calls."""
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=30)
    connection.request(method, quote(path), body, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    assert response.status < 300, (method, path, response.status)


def make_bucket(endpoint: str, bucket: str) -> None:
    """An empty bucket."""
    call(endpoint, "PUT", f"/{bucket}")


def put_object(endpoint: str, path: str, body: bytes) -> None:
    """Writes an object; ``path`` is ``bucket/key``. Anyone may read it."""
    call(endpoint, "PUT", f"/{path}", body, **{"x-amz-acl": "public-read"})


def delete_object(endpoint: str, path: str) -> None:
    """Deletes an object."""
    call(endpoint, "DELETE", f"/{path}")


def upload(endpoint: str, folder: Path, path: str) -> None:
    """Writes all files of a folder as objects under ``bucket/prefix``."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            put_object(endpoint, f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    to: str
    state: Proxy

    def _forward(self) -> None:
        # The client may give up at any time: that is what it is tested for.
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._answer()

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _forward  # noqa: N815 - names that http.server looks for

    def _answer(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, _range(self.headers.get("Range")))
        self.state.requests.append(request)
        fault = self.state.faults(request)
        if fault is not None and fault.kind == "status":
            self._send(fault.status, [("Content-Length", "0")], b"")
            return
        connection = http.client.HTTPConnection(self.to, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            with self.state.writing if self.command == "PUT" else contextlib.nullcontext():
                connection.request(self.command, self.path, content, headers)
                response = connection.getresponse()
                body = response.read()
        finally:
            connection.close()
        kept = [
            (name, value)
            for name, value in response.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "date", "server")
        ]
        if fault is None:
            self._send(response.status, kept, body)
        else:
            self._spoil(fault, response.status, kept, body)

    def _spoil(self, fault: Fault, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        match fault.kind:
            case "flip":
                self._send(status, headers, body[: fault.at] + bytes([body[fault.at] ^ 1]) + body[fault.at + 1 :])
            case "short":
                self._send(status, _replaced(headers, "Content-Length", str(fault.at)), body[: fault.at])
            case "shifted":
                # Servers write the names of headers as they like.
                (found,) = (value for name, value in headers if name.lower() == "content-range")
                _, _, rest = found.partition("-")
                self._send(status, _replaced(headers, "Content-Range", f"bytes 1-{rest}"), body)
            case "cut":
                self._send(status, headers, body[: fault.at])
                self._reset()
            case "late":
                self._send(fault.status, [("Content-Length", "0")], b"")
            case "hang":
                self._send(status, headers, body[: fault.at])
                self.connection.settimeout(60)
                self.rfile.read(1)
                self.close_connection = True
            case _:
                raise AssertionError(fault)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_WR)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class _GoogleHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, tuple[int, bytes, dict[str, str]]]]
    writing: threading.Lock

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        condition = self.headers.get("x-goog-if-generation-match")
        kept = {name: value for name, value in self.headers.items() if name.lower().startswith("x-goog-meta-")}
        with self.writing:
            path = unquote(self.path)
            now = self.objects.get(path, (0,))[0]
            if condition is not None and int(condition) != now:
                self._send(412, {}, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            generation = 1 + max((found[0] for found in self.objects.values()), default=1_000_000)
            self.objects[path] = (generation, content, kept)
        self._send(200, _google_headers(generation, content), b"")

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        path = unquote(path)
        if query:
            prefix = parse_qs(query).get("prefix", [""])[0]
            start = len(path.rstrip("/")) + 1
            names = [name[start:] for name in sorted(self.objects) if name[start:].startswith(prefix)]
            entries = "".join(
                f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>x</ETag>"
                f"<Size>{len(self.objects[f'{path}/{name}'][1])}</Size></Contents>"
                for name in names
            )
            text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
            self._send(200, {}, text.encode())
        elif path not in self.objects:
            self._send(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            generation, content, kept = self.objects[path]
            self._send(200, {**_google_headers(generation, content), **kept}, content)

    do_HEAD = do_GET  # noqa: N815 - a name that http.server looks for

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def _google_headers(generation: int, content: bytes) -> dict[str, str]:
    etag = f'"{hashlib.md5(content).hexdigest()}"'
    return {"ETag": etag, "x-goog-generation": str(generation), "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}


def _replaced(headers: list[tuple[str, str]], name: str, value: str) -> list[tuple[str, str]]:
    return [(key, value if key.lower() == name.lower() else old) for key, old in headers]


def _range(header: str | None) -> tuple[int, int] | None:
    if header is None:
        return None
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1
