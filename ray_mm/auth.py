"""Ray's access token: where it is, who may read it, how it is shown; and what else may not be shown.

Whoever has it can run code as this user while Ray runs. It protects a private Ray on a machine that others use, too, and a
cluster that was started with ``RAY_AUTH_MODE=token``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from pathlib import Path


def token_path() -> Path | None:
    """The file that Ray's access token is read from; None where the token is in the environment itself."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()


def protect_token() -> None:
    """Makes sure that Ray's access token is there and that only its owner can read it.

    Ray (2.59 and later) writes a token on its first local start, readable for every user of the machine. Whoever has
    it can run code as this user while Ray runs; so the file is made here first, with tight permissions.
    """
    path = token_path()
    if path is None or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    with contextlib.suppress(OSError):  # a read-only or foreign home: Ray says so itself if it needs the file
        if path.exists():
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".auth_token.", dir=path.parent)
        try:
            with os.fdopen(handle, "w") as stream:
                stream.write(secrets.token_hex(32))
            # Unlike a rename, a link never replaces the token of a Ray that another process has just started.
            path.hardlink_to(temporary)
        finally:
            Path(temporary).unlink()


def auth_headers() -> dict[str, str]:
    """The header that shows Ray's access token, where ``RAY_AUTH_MODE`` is ``token`` and there is one."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return {}
    path = token_path()
    try:
        token = os.environ.get("RAY_AUTH_TOKEN", "") if path is None else path.read_text()
    except OSError:
        return {}
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def redacted(text: str) -> str:
    """A text without what addresses in it may hold that nobody else may read: users, passwords, signatures."""
    text = re.sub(r"(\w://)[^/@\s\"']*@", r"\1…@", text)
    return re.sub(r"(https?://[^\s?\"']*)\?[^\s\"']*", r"\1?…", text)
