"""An address that does not lead to a Ray dashboard of the right version is told within seconds."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ray_mm.errors import UsageError
from ray_mm.launch.dashboard import dashboard_url, require_dashboard


@contextmanager
def server(status: int, content: bytes) -> Iterator[tuple[str, list[str | None]]]:
    """An HTTP server that answers the same to everything; yields its URL and the tokens that it was shown."""
    shown: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers["Authorization"])
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", shown
        finally:
            listening.shutdown()
            thread.join()


def version(number: str) -> bytes:
    return json.dumps({"version": "4", "ray_version": number}).encode()


@pytest.fixture(autouse=True)
def no_ray_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("theirs", ["2.60.0", "2.60.7"])
def test_a_dashboard_of_the_same_release_is_taken(theirs: str) -> None:
    with server(200, version(theirs)) as (url, shown):
        require_dashboard(url, "2.60.0")
        assert shown == [None], "asked once, without a token"


def test_another_version_of_ray_is_told_with_both_numbers() -> None:
    with (
        server(200, version("2.55.1")) as (url, _),
        pytest.raises(UsageError, match=r"runs Ray 2\.55\.1 and this machine has Ray 2\.60\.0"),
    ):
        require_dashboard(url, "2.60.0")


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (200, b"<html>hello</html>", "it is no Ray dashboard"),
        (200, b'{"version": 1}', "it is no Ray dashboard"),
        (200, b"[]", "it is no Ray dashboard"),
        (404, b"", "answers with HTTP status 404"),
        (500, b"", "answers with HTTP status 500"),
        (401, b"", "it wants an access token; set RAY_AUTH_MODE=token"),
        (403, b"", "it wants an access token"),
    ],
)
def test_what_answers_otherwise_is_told_with_the_address(status: int, content: bytes, message: str) -> None:
    with server(status, content) as (url, _), pytest.raises(UsageError, match=message) as caught:
        require_dashboard(url, "2.60.0")
    assert str(caught.value).startswith(f"--address {url}: ")


def test_a_refused_token_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with server(403, b"") as (url, shown), pytest.raises(UsageError, match="it refused the token it was shown"):
        require_dashboard(url, "2.60.0")
    assert shown == ["Bearer wrong"]


def test_an_address_that_never_answers_is_told_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UsageError, match=f"{url}: nothing answered within 0.5 seconds"):
            require_dashboard(url, "2.60.0", timeout_s=0.5)
        assert time.monotonic() - started < 5


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UsageError, match=r"nothing answers there \(Connection refused\)"):
            require_dashboard(url, "2.60.0")


@pytest.mark.parametrize("address", ["http://no-such-host.invalid:8265", "no-such-host.invalid:8265", "http://["])
def test_a_host_that_does_not_exist_is_told(address: str) -> None:
    with pytest.raises(UsageError, match="--address http"):
        require_dashboard(dashboard_url(address), "2.60.0")


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (None, "http://127.0.0.1:8265"),
        ("head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.example.org", "https://ray.example.org"),
    ],
)
def test_an_address_is_a_url_or_a_host_and_port(address: str | None, url: str) -> None:
    assert dashboard_url(address) == url


def test_the_address_of_the_environment_holds_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://there:1")
    assert dashboard_url(None) == "http://there:1"
    assert dashboard_url("here:2") == "http://here:2"


def test_an_address_of_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match="ray://head:10001: expected the address of a Ray dashboard"):
        dashboard_url("ray://head:10001")
