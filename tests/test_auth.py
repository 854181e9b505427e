"""Ray's access token is made for its owner alone, and shown only where tokens are in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_mm.auth import auth_headers, protect_token, token_path


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


def test_a_token_is_shown_only_where_tokens_are_in_use(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = home / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert auth_headers() == {}
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert auth_headers() == {}, "there is no such file"
    token.write_text("secret\n")
    assert auth_headers() == {"Authorization": "Bearer secret"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
    assert auth_headers() == {"Authorization": "Bearer other"}
