"""How a night ended, told to a program or a web server, signed.

    POST webhook    X-Ray-Mm-Time: 1764460800    X-Ray-Mm-Signature: sha256=<hex HMAC-SHA256 of "<time>.<body>">

Whoever gets it computes the same over the bytes of the body, and refuses a time that is long ago. It may come twice; the night's
id in it is the same then. A message that can't be sent does not undo the night: it is told on stderr and in the night's report.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from ray_mm.config.retrain import Notify
from ray_mm.errors import UsageError
from ray_mm.retraining.clock import Clock
from ray_mm.storage import local_path
from ray_mm.straight import open_straight

_TRIES = 3
_PAUSE_S = 1.0


def send(config: Notify, message: Mapping[str, Any], clock: Clock) -> list[str]:
    """Tells it to all that want to know.

    Args:
        config: who they are; ``message["status"]`` decides whether they want to.
        message: plain values.
        clock: of the machine.

    Returns:
        What went wrong, a line each.
    """
    if message["status"] not in config.on:
        return []
    body = json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
    time = str(int(clock.time()))
    try:
        signature = sign(secret_of(config), time, body) if config.secret is not None else None
    except UsageError as error:
        return [str(error)]
    problems = []
    if config.command is not None:
        problems += _run(config, body, time, signature)
    if config.webhook is not None:
        problems += _post(config, body, time, signature, clock)
    return problems


def sign(secret: bytes, time: str, body: bytes) -> str:
    """``sha256=`` and the hex HMAC of ``time.body``."""
    return "sha256=" + hmac.new(secret, time.encode() + b"." + body, hashlib.sha256).hexdigest()


def secret_of(config: Notify) -> bytes:
    """The key that signs.

    Raises:
        UsageError: the variable or the file that it names holds none.
    """
    assert config.secret is not None
    kind, _, name = config.secret.partition(":")
    try:
        found = os.environb.get(name.encode(), b"") if kind == "env" else local_path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"notify.secret: {name} can't be read ({error.strerror}).") from None
    if not found.strip():
        raise UsageError(
            f"notify.secret: {'the variable' if kind == 'env' else 'the file'} {name} is empty or not there."
        )
    return found.strip()


def _run(config: Notify, body: bytes, time: str, signature: str | None) -> list[str]:
    assert config.command is not None
    environment = {**os.environ, "RAY_MM_TIME": time}
    if signature is not None:
        environment["RAY_MM_SIGNATURE"] = signature
    if config.secret is not None and config.secret.startswith("env:"):
        environment.pop(config.secret.removeprefix("env:"), None)  # it gets what is signed, not the key
    try:
        done = subprocess.run(
            config.command, input=body, env=environment, capture_output=True, timeout=config.timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"notify.command: {config.command[0]} did not end within {config.timeout_s:g} s."]
    except OSError as error:
        return [f"notify.command: {config.command[0]} can't be run ({error.strerror})."]
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return [f"notify.command: {config.command[0]} ended with {done.returncode}{': ' + said[0] if said else ''}."]
    return []


def _post(config: Notify, body: bytes, time: str, signature: str | None, clock: Clock) -> list[str]:
    assert config.webhook is not None
    headers = {"Content-Type": "application/json", "X-Ray-Mm-Time": time}
    if signature is not None:
        headers["X-Ray-Mm-Signature"] = signature
    reason = ""
    for number in range(_TRIES):
        if number:
            clock.sleep(_PAUSE_S * 2 ** (number - 1))
        request = urllib.request.Request(config.webhook, body, headers, method="POST")
        try:
            with open_straight(request, timeout=config.timeout_s):
                return []
        except urllib.error.HTTPError as error:
            error.close()
            elsewhere = ", it is elsewhere; name that URL" if 300 <= error.code < 400 else ""
            reason = f"HTTP {error.code}{elsewhere}"
            if error.code < 500 and error.code not in (408, 429):
                break
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
    host = urllib.request.Request(config.webhook).host
    return [f"notify.webhook: {host} did not take the message ({reason})."]  # not the whole URL, which may be a secret
