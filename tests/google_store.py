"""Google Cloud Storage on loopback: what of its XML interface a reader meets, conditional writes and signatures included.

It does not take a caller's word for who it is: a token must be one that a service account has signed (RS256), or one that the
machine's metadata server, which is played here, too, has given out.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

MACHINE_TOKEN = "of-the-machine"
PAGE = 3
"""Objects in an answer to a listing."""
_ACCOUNT = "reader@project.iam.gserviceaccount.com"


@dataclass(frozen=True)
class Stored:
    """An object as it is: its bytes, and Google's number of the version."""

    content: bytes
    generation: int
    marks: tuple[tuple[str, str], ...] = ()
    """What a writer has given with it: ``x-goog-meta-…``."""

    @property
    def etag(self) -> str:
        """As the XML interface tells it."""
        return f'"{hashlib.md5(self.content, usedforsecurity=False).hexdigest()}"'


@dataclass
class GoogleStore:
    """A running store.

    Attributes:
        endpoint: its URL.
        is_public: whether nobody is asked who calls.
        objects: ``bucket/key`` → what lies there.
        callers: how each request showed who calls: ``account``, ``machine``, or ``nobody``.
    """

    endpoint: str = ""
    is_public: bool = False
    objects: dict[str, Stored] = field(default_factory=dict)
    callers: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    generations: Iterator[int] = field(default_factory=lambda: itertools.count(1_700_000_000_000_001))
    key: rsa.RSAPrivateKey = field(default_factory=lambda: _key())

    def put(self, path: str, content: bytes, marks: tuple[tuple[str, str], ...] = ()) -> None:
        """Writes an object; ``path`` is ``bucket/key``."""
        self.objects[path] = Stored(content, next(self.generations), marks)

    def upload(self, folder: Path, path: str) -> None:
        """Writes all files of a folder as objects under ``bucket/prefix``."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    def account_file(self, path: Path, **changed: str) -> Path:
        """Writes the file of a service account that the store knows, or knows not if its key is ``changed``."""
        content = {
            "type": "service_account",
            "client_email": _ACCOUNT,
            "private_key_id": "1",
            "private_key": pem(self.key),
        }
        path.write_text(json.dumps(content | changed))
        return path

    def caller(self, authorization: str | None) -> str:
        """Who sends this header; empty: somebody who claims to be another."""
        if authorization is None or not authorization.removeprefix("Bearer").strip():
            return "nobody"
        scheme, _, token = authorization.partition(" ")
        if scheme != "Bearer":
            return ""
        if token == MACHINE_TOKEN:
            return "machine"
        try:
            signed, _, signature = token.rpartition(".")
            self.key.public_key().verify(_decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
            claims = json.loads(_decoded(signed.partition(".")[2]))
        except (InvalidSignature, ValueError):
            return ""
        return "account" if claims["iss"] == _ACCOUNT else ""


@functools.cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def pem(key: rsa.RSAPrivateKey) -> str:
    """A key as it stands in a service account's file."""
    none = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none).decode()


@contextlib.contextmanager
def google_store() -> Iterator[GoogleStore]:
    """Runs a store; yields it."""
    store = GoogleStore()

    class Handler(_Handler):
        state = store

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        store.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: GoogleStore

    def _route(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            if url.path.startswith("/computeMetadata/"):
                self._metadata(url.path)
                return
            caller = self.state.caller(self.headers.get("Authorization"))
            self.state.callers.append(caller)
            bucket, _, key = url.path.strip("/").partition("/")
            if not caller or (caller == "nobody" and not self.state.is_public):
                self._refuse(401, "AuthenticationRequired")
            elif not key:
                self._list(bucket, {name: values[0] for name, values in parse_qs(url.query).items()})
            elif self.command == "PUT":
                self._put(f"{bucket}/{unquote(key)}", content)
            elif (stored := self.state.objects.get(f"{bucket}/{unquote(key)}")) is None:
                self._refuse(404, "NoSuchKey")
            else:
                self._get(stored)

    do_GET = do_HEAD = do_PUT = do_POST = _route  # noqa: N815 - names that http.server looks for

    def _metadata(self, path: str) -> None:
        if self.headers.get("Metadata-Flavor") != "Google" or not path.endswith("/service-accounts/default/token"):
            self._refuse(403, "Forbidden")
        else:
            token = {"access_token": MACHINE_TOKEN, "expires_in": 3600, "token_type": "Bearer"}
            self._send(200, json.dumps(token).encode(), {"Content-Type": "application/json"})

    def _put(self, path: str, content: bytes) -> None:
        wanted = self.headers.get("x-goog-if-generation-match")
        with self.state.lock:
            there = self.state.objects.get(path)
            if wanted is not None and int(wanted) != (there.generation if there else 0):
                self._refuse(412, "PreconditionFailed")
                return
            marks = [(name, value) for name, value in self.headers.items() if name.lower().startswith("x-goog-meta-")]
            self.state.put(path, content, tuple(marks))
            self._send(200, b"", _headers(self.state.objects[path]))

    def _get(self, stored: Stored) -> None:
        wanted = self.headers.get("If-Match")
        if wanted is not None and wanted != stored.etag:
            self._refuse(412, "PreconditionFailed")
            return
        size, span = len(stored.content), self.headers.get("Range")
        if span is None:
            self._send(200, stored.content, _headers(stored))
            return
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else size, size)
        if start >= size:
            self._refuse(416, "InvalidRange")
            return
        told = {**_headers(stored), "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        self._send(206, stored.content[start:stop], told)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        begin = f"{bucket}/{query.get('prefix', '')}"
        names = sorted(name for name in self.state.objects if name.startswith(begin))
        start = int(query.get("continuation-token", "0"))
        told = "".join(
            f"<Contents><Key>{escape(name.removeprefix(bucket + '/'))}</Key><Generation>{stored.generation}</Generation>"
            f"<MetaGeneration>1</MetaGeneration><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(stored.etag)}</ETag><Size>{len(stored.content)}</Size></Contents>"
            for name, stored in ((name, self.state.objects[name]) for name in names[start : start + PAGE])
        )
        more = f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>" if start + PAGE < len(names) else ""
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://doc.s3.amazonaws.com/2006-03-01">'
            f"<Name>{bucket}</Name><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{told}</ListBucketResult>"
        )
        self._send(200, xml.encode(), {"Content-Type": "application/xml"})

    def _refuse(self, status: int, code: str) -> None:
        xml = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}.</Message></Error>"
        self._send(status, xml.encode(), {"Content-Type": "application/xml"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def _headers(stored: Stored) -> dict[str, str]:
    return {
        "ETag": stored.etag,
        "x-goog-generation": str(stored.generation),
        "x-goog-metageneration": "1",
        "x-goog-stored-content-length": str(len(stored.content)),
        "Accept-Ranges": "bytes",
        "Last-Modified": formatdate(stored.generation / 1e6, usegmt=True),
        "Content-Type": "application/octet-stream",
        **dict(stored.marks),
    }


def _decoded(text: str) -> Any:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
