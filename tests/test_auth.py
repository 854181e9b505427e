"""Ray's access token is made for its owner alone, and shown only where tokens are in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_mm.auth import bearer, make_token, own_headers, protect_token, read_token, token_path
from ray_mm.errors import UsageError
from tests.calling import ray_mm


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_token_is_made_for_its_owner_alone_and_then_kept(home: Path) -> None:
    protect_token()
    token = home / ".ray" / "auth_token"
    assert token_path() == token
    assert token.stat().st_mode & 0o777 == 0o600
    content = token.read_text()
    assert len(content) == 64
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]
    protect_token()
    assert token.read_text() == content


def test_a_token_that_others_can_read_is_closed_to_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = home / "my_token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    protect_token()
    assert (token.stat().st_mode & 0o777, token.read_text()) == (0o600, "secret")


@pytest.mark.parametrize("name_and_value", [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "secret")])
def test_no_token_is_made_where_none_is_read(
    home: Path, monkeypatch: pytest.MonkeyPatch, name_and_value: tuple[str, str]
) -> None:
    monkeypatch.setenv(*name_and_value)
    protect_token()
    assert list(home.iterdir()) == []


def test_a_token_is_shown_only_where_somebody_said_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_token(home / ".ray" / "auth_token")
    assert own_headers() == {}
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert own_headers() == bearer((home / ".ray" / "auth_token").read_text())
    token = home / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    with pytest.raises(UsageError, match="no such file"):
        own_headers()
    token.write_text("secret-secret\n")
    token.chmod(0o600)
    assert own_headers() == {"Authorization": "Bearer secret-secret"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert own_headers() == {"Authorization": "Bearer another"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert own_headers() == {}


def test_a_new_token_is_closed_from_the_first_moment_and_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "new" / "token"
    assert make_token(path)
    token = read_token(path)
    assert (path.stat().st_mode & 0o777, len(token)) == (0o600, 64)
    assert not make_token(path) and read_token(path) == token
    assert make_token(path, renew=True) and read_token(path) != token
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["token"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o622, 0o666])
def test_a_token_that_others_can_read_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text("a-secret-that-nobody-may-see")
    path.chmod(mode)
    with pytest.raises(UsageError, match=rf"can be read by others \(mode {mode:04o}\).*chmod 600 {path}") as caught:
        read_token(path)
    assert "nobody-may-see" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"short", b"two words of it", b"line\nafter line", b"\xff\xfe\x00", b"x" * 5000]
)
def test_what_is_no_token_is_refused_without_being_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match=f"^token: {path}") as caught:
        read_token(path)
    assert "two words" not in str(caught.value)


def test_a_token_of_the_environment_that_would_break_a_header_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc\r\nX-Other: 1")
    with pytest.raises(UsageError, match="RAY_AUTH_TOKEN holds no token"):
        own_headers()


def test_the_command_makes_one_where_it_is_told_and_says_what_it_did(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(f"kind: cluster\ntoken: {tmp_path}/lab.token\n")
    (tmp_path / "none.yaml").write_text("kind: cluster\n")
    made = ray_mm(tmp_path, "cluster", "token", "--cluster", "lab.yaml")
    assert made.returncode == 0 and f"{tmp_path}/lab.token: a new token" in made.stdout
    token = read_token(tmp_path / "lab.token")
    assert token not in made.stdout + made.stderr
    again = ray_mm(tmp_path, "cluster", "token", "--path", "lab.token")
    assert "has a token already" in again.stdout and read_token(tmp_path / "lab.token") == token
    both = ray_mm(tmp_path, "cluster", "token", "--path", "x", "--cluster", "lab.yaml")
    assert both.returncode == 2 and "leave one of them out" in both.stderr
    nowhere = ray_mm(tmp_path, "cluster", "token", "--cluster", "none.yaml")
    assert nowhere.returncode == 2 and "names no file for a token" in nowhere.stderr
