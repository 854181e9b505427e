"""An address that does not lead to a Ray dashboard of the right version is told within seconds."""

from __future__ import annotations

import http.server
import json
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from ray_mm.auth import make_token
from ray_mm.config.cluster import ClusterProfile, find_cluster
from ray_mm.errors import UsageError
from ray_mm.launch.dashboard import Dashboard, find_dashboard, is_loopback, require_closed
from tests.launch.cluster import ray_mm


@contextmanager
def server(answer: Callable[[str, str | None], tuple[int, bytes]]) -> Iterator[tuple[str, list[str | None]]]:
    """An HTTP server that answers by path and token; yields its URL and the tokens that it was shown."""
    shown: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers["Authorization"])
            status, content = answer(self.path, self.headers["Authorization"])
            self.send_response(status)
            if status == 302:
                self.send_header("Location", content.decode())
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", shown
        finally:
            listening.shutdown()
            thread.join()


def always(status: int, content: bytes) -> Callable[[str, str | None], tuple[int, bytes]]:
    return lambda *_: (status, content)


def ray_head(
    theirs: str, python: str | None = None, token: str | None = None
) -> Callable[[str, str | None], tuple[int, bytes]]:
    """What a head of such versions answers, that wants such a token."""

    def answer(path: str, shown: str | None) -> tuple[int, bytes]:
        if token is not None and shown != f"Bearer {token}":
            return (401 if shown is None else 403), b"no"
        if path == "/api/v0/cluster_metadata":
            return (404, b"") if python is None else (200, json.dumps({"data": {"pythonVersion": python}}).encode())
        return 200, version(theirs)

    return answer


def look(url: str, own: str = "2.60.0", timeout_s: float = 10.0, token: Path | None = None) -> Dashboard:
    return find_dashboard(ClusterProfile(address=url, token=None if token is None else str(token)), own, timeout_s)


def token_file(folder: Path, token: str = "a-good-token") -> Path:
    path = folder / "token"
    path.write_text(token)
    path.chmod(0o600)
    return path


def version(number: str) -> bytes:
    return json.dumps({"version": "4", "ray_version": number}).encode()


@pytest.fixture(autouse=True)
def no_ray_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "RAY_MM_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("theirs", ["2.60.0", "2.60.7"])
def test_a_dashboard_of_the_same_release_is_taken(theirs: str) -> None:
    with server(ray_head(theirs)) as (url, shown):
        assert look(url) == Dashboard(url, {})
        assert set(shown) == {None}, "without a token"


def test_another_version_of_ray_is_told_with_both_numbers() -> None:
    with (
        server(ray_head("2.55.1")) as (url, _),
        pytest.raises(UsageError, match=r"runs Ray 2\.55\.1 and this machine has Ray 2\.60\.0"),
    ):
        look(url)


def test_another_version_of_python_is_told_with_both_numbers() -> None:
    with server(ray_head("2.60.0", python="3.9.18")) as (url, _), pytest.raises(UsageError) as caught:
        look(url)
    assert f"the cluster runs Python 3.9.18 and this machine has Python {platform.python_version()}" in str(
        caught.value
    )


def test_a_python_of_the_same_minor_version_is_taken() -> None:
    major, minor, _ = platform.python_version_tuple()
    with server(ray_head("2.60.0", python=f"{major}.{minor}.99")) as (url, _):
        assert look(url).is_open


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (200, b"<html>hello</html>", "it is no Ray dashboard"),
        (200, b'{"version": 1}', "it is no Ray dashboard"),
        (200, b'{"ray_version": "\\u001b[31m2.60.0"}', "it is no Ray dashboard"),
        (200, b"[]", "it is no Ray dashboard"),
        (404, b"", "answers with HTTP status 404"),
        (500, b"", "answers with HTTP status 500"),
        (302, b"http://127.0.0.1:1/", "answers with HTTP status 302"),
        (401, b"", "it wants an access token; name the file"),
        (403, b"", "it wants an access token"),
    ],
)
def test_what_answers_otherwise_is_told_with_the_address(status: int, content: bytes, message: str) -> None:
    with server(always(status, content)) as (url, _), pytest.raises(UsageError, match=message) as caught:
        look(url)
    assert str(caught.value).startswith(f"--cluster {url}: ")
    assert "\x1b" not in str(caught.value)


def test_the_token_of_the_profile_is_shown_to_who_asks_for_it(tmp_path: Path) -> None:
    with server(ray_head("2.60.0", token="a-good-token")) as (url, shown):
        found = look(url, token=token_file(tmp_path))
        assert found == Dashboard(url, {"Authorization": "Bearer a-good-token"})
        assert not found.is_open
        assert shown[:2] == [None, "Bearer a-good-token"]
    with server(ray_head("2.60.0")) as (url, shown):
        assert look(url, token=token_file(tmp_path)).is_open
        assert set(shown) == {None}, "nobody asked for it"


def test_a_cluster_that_asks_for_no_token_is_shown_none_by_ray_either(tmp_path: Path) -> None:
    def answer(path: str, shown: str | None) -> tuple[int, bytes]:
        return 200, version(ray.__version__) if path == "/api/version" else b"[]"

    with server(answer) as (url, shown):
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file(tmp_path))}
        ran = ray_mm(tmp_path, "list", "--cluster", url, **token)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert len(shown) >= 3 and set(shown) <= {None, "none"}


def test_rays_own_token_is_shown_to_this_machine(tmp_path: Path) -> None:
    make_token(tmp_path / "home" / ".ray" / "auth_token")
    token = (tmp_path / "home" / ".ray" / "auth_token").read_text()
    with server(ray_head("2.60.0", token=token)) as (url, _):
        assert look(url).headers == {"Authorization": f"Bearer {token}"}


def test_rays_own_token_is_shown_to_no_other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_token(tmp_path / "home" / ".ray" / "auth_token")
    token = (tmp_path / "home" / ".ray" / "auth_token").read_text()
    monkeypatch.setattr("ray_mm.launch.dashboard.is_loopback", lambda url: False)
    with server(ray_head("2.60.0", token=token)) as (url, shown):
        with pytest.raises(UsageError, match="it wants an access token"):
            look(url)
        assert shown == [None]
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        assert not look(url).is_open, "somebody said that it is this cluster's"


def test_a_refused_token_is_told_as_one_and_not_shown_elsewhere(tmp_path: Path) -> None:
    with (
        server(ray_head("2.60.0", token="another-token")) as (url, shown),
        pytest.raises(UsageError, match="it refused the token it was shown") as caught,
    ):
        look(url, token=token_file(tmp_path))
    assert shown == [None, "Bearer a-good-token"]
    assert "a-good-token" not in str(caught.value)


def test_a_token_is_not_carried_along_a_redirect(tmp_path: Path) -> None:
    with server(always(200, version("2.60.0"))) as (other, shown_there):

        def redirect(path: str, shown: str | None) -> tuple[int, bytes]:
            return (401, b"") if shown is None else (302, other.encode())

        with server(redirect) as (url, _), pytest.raises(UsageError, match="HTTP status 302"):
            look(url, token=token_file(tmp_path))
        assert shown_there == []


def test_a_token_that_others_can_read_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    token = token_file(tmp_path)
    token.chmod(0o644)
    with server(ray_head("2.60.0")) as (url, shown), pytest.raises(UsageError, match="can be read by others"):
        look(url, token=token)
    assert shown == []


def test_an_address_that_never_answers_is_told_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UsageError, match=f"{url}: nothing answered within 0.5 seconds"):
            look(url, timeout_s=0.5)
        assert time.monotonic() - started < 60, "what the system waits for by itself is more than a minute"


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UsageError, match=r"nothing answers there \(Connection refused\)"):
            look(url)


@pytest.mark.parametrize("address", ["http://no-such-host.invalid:8265", "no-such-host.invalid:8265"])
def test_a_host_that_does_not_exist_is_told(address: str) -> None:
    with pytest.raises(UsageError, match="--cluster http"):
        find_dashboard(find_cluster(address), "2.60.0")


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://localhost:8265", True),
        ("http://[::1]:8265", True),
        ("http://127.8.9.1", True),
        ("http://10.0.0.1:8265", False),
        ("http://localhost.example.org", False),
        ("https://ray.example.org", False),
        ("http://0.0.0.0:8265", False),
    ],
)
def test_an_open_cluster_elsewhere_is_refused_unless_allowed_in_so_many_words(url: str, is_here: bool) -> None:
    assert is_loopback(url) == is_here
    opened = Dashboard(url, {})
    require_closed(opened, allow_unauthenticated=True)
    require_closed(Dashboard(url, {"Authorization": "Bearer secret"}), allow_unauthenticated=False)
    if is_here:
        require_closed(opened, allow_unauthenticated=False)
    else:
        with pytest.raises(UsageError, match=r"asks for no access token.*--allow-unauthenticated"):
            require_closed(opened, allow_unauthenticated=False)
