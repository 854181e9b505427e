"""Messages of a night: signed, told to a program and a web server, and never more than a message."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from ray_mm.config.retrain import Notify
from ray_mm.retraining.notify import send

MESSAGE = {"night": "a-1", "status": "promoted", "reason": "größer"}


class Clock:
    slept: ClassVar[list[float]] = []

    def time(self) -> float:
        return 1_764_460_800.9

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Server:
    """Takes messages; answers as it is told, 0 being nonsense, then with 200."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.taken: list[tuple[dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.taken.append((dict(self.headers.items()), body))
                status = outer.answers.pop(0) if outer.answers else 200
                if not status:
                    self.wfile.write(b"no line of HTTP\r\n\r\n")
                    return
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def test_a_web_server_gets_it_signed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("of the tests\n")
    assert send(Notify(webhook=server.url, secret=f"file:{tmp_path / 'key'}"), MESSAGE, Clock()) == []
    ((headers, body),) = server.taken
    assert json.loads(body) == MESSAGE
    signed = hmac.new(b"of the tests", headers["X-Ray-Mm-Time"].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["X-Ray-Mm-Signature"] == f"sha256={signed}" and headers["X-Ray-Mm-Time"] == "1764460800"


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(server: Server) -> None:
    server.answers = [503, 503]
    Clock.slept.clear()
    assert send(Notify(webhook=server.url), MESSAGE, Clock()) == []
    assert len(server.taken) == 3 and Clock.slept == [1.0, 2.0]
    server.answers = [403]
    (problem,) = send(Notify(webhook=server.url), MESSAGE, Clock())
    assert "did not take the message (HTTP 403)" in problem and "/hook" not in problem
    assert len(server.taken) == 4


def test_a_server_that_sends_elsewhere_or_talks_nonsense_is_told_of(server: Server) -> None:
    server.answers = [302, 0, 0, 0]
    (problem,) = send(Notify(webhook=server.url), MESSAGE, Clock())
    assert problem.endswith("did not take the message (HTTP 302, it is elsewhere; name that URL).")
    (problem,) = send(Notify(webhook=server.url), MESSAGE, Clock())
    assert "did not take the message (" in problem and len(server.taken) == 4
    assert all(json.loads(body) == MESSAGE for _, body in server.taken)


def test_a_server_that_is_not_there_is_told_of(server: Server) -> None:
    free = server.url.replace("/hook", "")
    server.server.shutdown()
    server.server.server_close()
    (problem,) = send(Notify(webhook=free, timeout_s=1), MESSAGE, Clock())
    assert problem.startswith("notify.webhook: 127.0.0.1:")


def test_a_program_gets_it_without_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", "of the tests")
    code = "import json, os, sys; open(sys.argv[1], 'w').write(json.dumps([sys.stdin.read(), dict(os.environ)]))"
    config = Notify(
        command=(sys.executable, "-c", code, str(tmp_path / "told; rm -rf x")), secret="env:HOOK_KEY", timeout_s=60
    )
    assert send(config, MESSAGE, Clock()) == []
    body, environment = json.loads((tmp_path / "told; rm -rf x").read_text())
    signed = hmac.new(b"of the tests", f"1764460800.{body}".encode(), hashlib.sha256).hexdigest()
    assert environment["RAY_MM_SIGNATURE"] == f"sha256={signed}" and "HOOK_KEY" not in environment


@pytest.mark.parametrize(
    ("command", "timeout_s", "problem"),
    [
        (("/no/such/program",), 60, "can't be run"),
        ((sys.executable, "-c", "import sys; sys.exit('full')"), 60, "ended with 1: full."),
        ((sys.executable, "-c", "import time; time.sleep(600)"), 0.5, "did not end within 0.5 s"),
    ],
)
def test_a_program_that_fails_is_told_of(command: tuple[str, ...], timeout_s: float, problem: str) -> None:
    (found,) = send(Notify(command=command, timeout_s=timeout_s), MESSAGE, Clock())
    assert problem in found


def test_nothing_is_sent_unsigned_where_it_should_be_signed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for secret in ("env:NOT_THERE_AT_ALL", f"file:{tmp_path / 'empty'}", f"file:{tmp_path / 'none'}"):
        (problem,) = send(Notify(webhook=server.url, secret=secret), MESSAGE, Clock())
        assert problem.startswith("notify.secret: ")
    assert server.taken == []


def test_only_what_is_asked_for_is_told(server: Server) -> None:
    assert send(Notify(webhook=server.url, on=("failed",)), MESSAGE, Clock()) == []
    assert server.taken == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "takes command or webhook"),
        ({"webhook": "ftp://host/x"}, "must be an http"),
        ({"webhook": "file:///etc/passwd"}, "must be an http"),
        ({"webhook": "https://user:word@host/"}, "no user or password"),
        ({"webhook": "https://host/", "secret": "plain"}, "should match pattern"),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Notify(**settings)
