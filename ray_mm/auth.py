"""Ray's access token: where it is, who may read it, how it is shown; and what else may not be shown.

Whoever has it can run code as this user while Ray runs. It protects a private Ray on a machine that others use, too, and a
cluster that was started with ``RAY_AUTH_MODE=token``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path

from ray_mm.errors import UsageError

DEFAULT_TOKEN = Path("~/.ray/auth_token")
"""Where Ray keeps its token unless it is told otherwise."""
_OTHERS = 0o077
"""What of a file's mode lets others at it."""


def token_path() -> Path | None:
    """The file that Ray's access token is read from; None where the token is in the environment itself."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or DEFAULT_TOKEN).expanduser()


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
            if path.stat().st_mode & _OTHERS:
                path.chmod(0o600)
            return
        make_token(path)


def make_token(path: Path, renew: bool = False) -> bool:
    """Writes a new token that only its owner can read; whether it is new.

    Args:
        path: of the file. A token that is there is kept.
        renew: replace it; whoever has the old one is shut out when the cluster has been started with the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".auth_token.", dir=path.parent)  # with mode 0600
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(32))
        if renew:
            Path(temporary).replace(path)
        else:
            # Unlike a rename, a link never replaces the token of a Ray that another process has just started.
            path.hardlink_to(temporary)
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink(missing_ok=True)
    return True


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        UsageError: there is none, others can read it, or it is no token.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except FileNotFoundError:
        raise UsageError(
            f"token: {path}: no such file; copy the cluster's token there (on its head: ray get-auth-token), or make one for a "
            f"new cluster: ray-mm cluster token --path {path}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"token: {path}: can't be read ({getattr(error, 'strerror', None) or 'not text'}).") from None
    if mode & _OTHERS:
        raise UsageError(
            f"token: {path} can be read by others (mode {stat.S_IMODE(mode):04o}); whoever has it can run code on the cluster. "
            f"Close it, chmod 600 {path}, and if others use this machine, make a new one: ray-mm cluster token --renew --path "
            f"{path}"
        )
    if not re.fullmatch(r"[!-~]{8,4096}", text.strip()):
        raise UsageError(
            f"token: {path} holds no token: expected one line of 8 to 4,096 letters, digits and signs, without spaces. "
            f"Make one: ray-mm cluster token --renew --path {path}"
        )
    return text.strip()


def bearer(token: str) -> dict[str, str]:
    """The header that shows a token."""
    return {"Authorization": f"Bearer {token}"}


def own_headers() -> dict[str, str]:
    """The header that shows the token that the environment names: RAY_AUTH_TOKEN, or the file in RAY_AUTH_TOKEN_PATH.

    Where RAY_AUTH_MODE is ``token``, that is Ray's own file unless the environment names another.

    Raises:
        UsageError: the file is not there, others can read it, or it holds no token.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    token, path = os.environ.get("RAY_AUTH_TOKEN", "").strip(), token_path()
    if mode == "disabled":
        return {}
    if path is None:
        if not re.fullmatch(r"[!-~]+", token):
            raise UsageError("RAY_AUTH_TOKEN holds no token: expected letters, digits and signs, without spaces.")
        return bearer(token)
    if os.environ.get("RAY_AUTH_TOKEN_PATH") or mode == "token":
        return bearer(read_token(path))
    return {}


def redacted(text: str) -> str:
    """A text without what addresses in it may hold that nobody else may read: users, passwords, signatures."""
    text = re.sub(r"(\w://)[^/@\s\"']*@", r"\1…@", text)
    return re.sub(r"(https?://[^\s?\"']*)\?[^\s\"']*", r"\1?…", text)
