"""A cluster's profile → proof that its dashboard answers, asks for a token and runs the same versions, or an error in seconds.

Ray's own client would wait for minutes at an address that swallows packets.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import platform
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray_mm.auth import DEFAULT_TOKEN, bearer, own_headers, read_token
from ray_mm.config.cluster import ClusterProfile
from ray_mm.errors import UsageError
from ray_mm.straight import open_straight

CONNECT_TIMEOUT_S = 10.0
"""For all that is asked before anything is done."""

_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Dashboard:
    """A dashboard that has answered.

    Attributes:
        url: of it.
        headers: that show its token; none where it asks for none.
    """

    url: str
    headers: dict[str, str]

    @property
    def is_open(self) -> bool:
        """Whether it does what anybody asks for."""
        return not self.headers


def is_loopback(url: str) -> bool:
    """Whether only this machine can be behind a URL."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_dashboard(cluster: ClusterProfile, own_version: str, timeout_s: float = CONNECT_TIMEOUT_S) -> Dashboard:
    """Asks a cluster's dashboard whether it wants a token, and which versions it runs.

    The token is shown only to one that wants it. The one in Ray's own file is shown to this machine alone,
    unless RAY_AUTH_MODE says that tokens are in use.

    Args:
        cluster: its profile.
        own_version: of Ray on this side.
        timeout_s: seconds that it may take.

    Raises:
        UsageError: nothing answers in time, it is no Ray dashboard, it wants another token, or it runs another version of Ray or
            Python.
    """
    url, deadline = cluster.address, time.monotonic() + timeout_s
    # Wrong on this side, whatever the cluster says.
    headers = bearer(read_token(Path(cluster.token).expanduser())) if cluster.token else own_headers()
    try:
        theirs, shown = _ask(f"{url}/api/version", {}, deadline), {}
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            raise UsageError(f"--cluster {url}: {_problem(error, timeout_s)}") from None
        if not headers and is_loopback(url) and DEFAULT_TOKEN.expanduser().exists():
            headers = bearer(read_token(DEFAULT_TOKEN.expanduser()))
        if not headers:
            raise UsageError(
                f"--cluster {url}: it wants an access token; name the file that holds it, as token: in the cluster's profile, or "
                "in RAY_AUTH_TOKEN_PATH (on its head, ray get-auth-token prints it)."
            ) from None
        theirs, shown = _shown(url, headers, deadline, timeout_s), headers
    except Exception as error:
        raise UsageError(f"--cluster {url}: {_problem(error, timeout_s)}") from None
    version = theirs.get("ray_version") if isinstance(theirs, dict) else None
    if not isinstance(version, str) or not re.fullmatch(r"[0-9A-Za-z.+-]{1,40}", version):
        raise UsageError(f"--cluster {url}: {_problem(None, timeout_s)}")
    if version.split(".")[:2] != own_version.split(".")[:2]:
        raise UsageError(
            f"--cluster {url}: the cluster runs Ray {version} and this machine has Ray {own_version}; ray_mm needs the same "
            "version on both sides. Install the cluster's image with this version, or use the ray_mm made for that one."
        )
    _require_same_python(url, shown, deadline)
    return Dashboard(url, shown)


def require_closed(dashboard: Dashboard, allow_unauthenticated: bool) -> None:
    """Refuses a cluster elsewhere that does what anybody asks for.

    Raises:
        UsageError: it is one, and that was not allowed in so many words.
    """
    if dashboard.is_open and not is_loopback(dashboard.url) and not allow_unauthenticated:
        raise UsageError(
            f"--cluster {dashboard.url}: it asks for no access token, so everybody who reaches it can run code on it, and read "
            "and change what this job does there. Start it with RAY_AUTH_MODE=token (docs/security.md says how); or, on a "
            "network where only those are who may do so, repeat this with --allow-unauthenticated."
        )


def _require_same_python(url: str, headers: dict[str, str], deadline: float) -> None:
    own = platform.python_version()
    try:
        theirs = _ask(f"{url}/api/v0/cluster_metadata", headers, deadline)
        found = theirs["data"]["pythonVersion"]
    except Exception:  # a proxy that lets the Jobs API through alone
        return
    if not isinstance(found, str) or not re.fullmatch(r"[0-9A-Za-z.+-]{1,40}", found):
        return
    if found.split(".")[:2] != own.split(".")[:2]:
        raise UsageError(
            f"--cluster {url}: the cluster runs Python {found} and this machine has Python {own}; Ray needs the same minor "
            "version on both sides. Make an environment with the cluster's here, or the other way round."
        )


def _shown(url: str, headers: dict[str, str], deadline: float, timeout_s: float) -> Any:
    try:
        return _ask(f"{url}/api/version", headers, deadline)
    except Exception as error:
        if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403):
            raise UsageError(
                f"--cluster {url}: it refused the token it was shown; compare with the cluster's (on its head: ray "
                "get-auth-token), and name the right file, as token: in the cluster's profile or in RAY_AUTH_TOKEN_PATH."
            ) from None
        raise UsageError(f"--cluster {url}: {_problem(error, timeout_s)}") from None


def _ask(url: str, headers: dict[str, str], deadline: float) -> Any:
    """What JSON a URL answers with."""
    answers: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()
    left = max(0.1, deadline - time.monotonic())

    def ask() -> None:
        try:
            with open_straight(urllib.request.Request(url, headers=headers), timeout=left) as response:
                answers.put((json.loads(response.read(_MOST_BYTES)), None))
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            answers.put((None, error))

    # In a thread, because a name server that does not answer has a timeout of its own, and a server may send a byte now and then.
    threading.Thread(target=ask, name="dashboard", daemon=True).start()
    try:
        answer, error = answers.get(timeout=left + 1)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return answer


def _problem(error: BaseException | None, timeout_s: float) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"answers with HTTP status {error.code}, which a Ray dashboard would not; check the address."
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"nothing answered within {timeout_s:g} seconds; check the address, and that a firewall lets it through."
    if isinstance(reason, OSError) and not isinstance(error, http.client.HTTPException):
        return f"nothing answers there ({reason.strerror or reason}); check that the Ray head runs with its dashboard."
    return "something answers there, but it is no Ray dashboard; check the address (its port is 8265 unless it was changed)."
