"""A cluster's address → proof that a Ray dashboard answers there, of the right version, or an error within seconds.

Ray's own client would wait for minutes at an address that swallows packets.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
import urllib.error
import urllib.request
from typing import Any

from ray_mm.auth import auth_headers
from ray_mm.errors import UsageError

DEFAULT_URL = "http://127.0.0.1:8265"
CONNECT_TIMEOUT_S = 10.0


def dashboard_url(address: str | None) -> str:
    """The URL that an address means.

    Args:
        address: ``http://HOST:PORT`` or ``HOST:PORT`` of a dashboard. None: ``RAY_API_SERVER_ADDRESS``, else this machine.

    Raises:
        UsageError: an address of something else.
    """
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_URL
    scheme, separator, _ = given.partition("://")
    if not separator:
        given = f"http://{given}"
    elif scheme not in ("http", "https"):
        raise UsageError(f"--address {given}: expected the address of a Ray dashboard, such as http://head:8265.")
    return given.rstrip("/")


def require_dashboard(url: str, own_version: str, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """Asks the dashboard for Ray's version.

    Args:
        url: of the dashboard.
        own_version: of Ray on this side.
        timeout_s: seconds that it may take.

    Raises:
        UsageError: nothing answers in time, it is no Ray dashboard, it wants a token, or it runs another version.
    """
    theirs = _version(url, timeout_s)
    if theirs.split(".")[:2] != own_version.split(".")[:2]:
        raise UsageError(
            f"--address {url}: the cluster runs Ray {theirs} and this machine has Ray {own_version}; ray_mm needs the same "
            "version on both sides. Install the cluster's image with this version, or use the ray_mm made for that one."
        )


def _version(url: str, timeout_s: float) -> str:
    answers: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()

    def ask() -> None:
        try:
            request = urllib.request.Request(f"{url}/api/version", headers=auth_headers())
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                answers.put((json.load(response), None))
        except Exception as error:
            answers.put((None, error))

    # In a thread, because a name server that does not answer has a timeout of its own.
    threading.Thread(target=ask, name="dashboard", daemon=True).start()
    try:
        answer, error = answers.get(timeout=timeout_s + 2)
    except queue.Empty:
        answer, error = None, TimeoutError()
    version = answer.get("ray_version") if isinstance(answer, dict) else None
    if error is None and isinstance(version, str):
        return version
    raise UsageError(f"--address {url}: {_problem(error, timeout_s)}")


def _problem(error: BaseException | None, timeout_s: float) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code in (401, 403):
            shown = "it refused the token it was shown" if auth_headers() else "it wants an access token"
            return (
                f"{shown}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file with the cluster's token (on its head: "
                "ray get-auth-token)."
            )
        return f"answers with HTTP status {error.code}, which a Ray dashboard would not; check the address."
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"nothing answered within {timeout_s:g} seconds; check the address, and that a firewall lets it through."
    if isinstance(reason, OSError) and not isinstance(error, http.client.HTTPException):
        return f"nothing answers there ({reason.strerror or reason}); check that the Ray head runs with its dashboard."
    return "something answers there, but it is no Ray dashboard; check the address (its port is 8265 unless it was changed)."
