"""``ray-mm registry``: what it shows, what it changes, and what it says when it can't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ray_mm.cli import app
from ray_mm.retraining.registry import Registry
from tests.retraining.models import lineage, write_checkpoint


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.chdir(tmp_path)
    found = Registry("runs/registry", "driving")
    for number in (1, 2, 3):
        found.register(
            write_checkpoint(tmp_path / str(number), number / 10), lineage(f"night-{number}", number - 1 or None)
        )
    found.promote(1, expected=None, by="night-1")
    return found


def ray_mm(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["registry", *arguments])


def lines(ran: Result) -> list[str]:
    return [" ".join(line.split()) for line in ran.stdout.splitlines()]


def test_models_and_versions_are_listed(registry: Registry) -> None:
    ran = ray_mm("list", "runs/registry")
    assert ran.exit_code == 0
    assert lines(ran)[:2] == ["models", "name versions champion previous since"]
    assert lines(ran)[2].startswith("driving 3 1 – 20")
    ran = ray_mm("show", "runs/registry#driving")
    assert lines(ran)[1] == "kind registered run parent accuracy"
    assert lines(ran)[2].startswith("1 champion checkpoint 20") and lines(ran)[2].endswith("night-1 – 50.0%")
    assert lines(ran)[3].endswith("night-2 1 50.0%")
    assert lines(ran)[-2].endswith("promote 1 – night-1")


def test_a_version_is_shown_in_full(registry: Registry) -> None:
    ran = ray_mm("show", "registry:runs/registry#driving@2")
    assert ran.exit_code == 0
    assert {"parent 1", "data sha256:data", "code abc123", "job driving", "run night-2", "accuracy 50.0%"} <= set(
        lines(ran)
    )
    assert f"digest {registry.version(2).digest}" in lines(ran)


def test_a_version_is_promoted_rolled_back_and_denied(registry: Registry) -> None:
    ran = ray_mm("promote", "runs/registry#driving@2")
    assert (ran.exit_code, ran.stdout) == (0, "driving: version 2 is the champion, version 1 the previous one\n")
    ran = ray_mm("promote", "runs/registry#driving@3", "--expect", "1")
    assert ran.exit_code == 1
    assert "version 3 was not promoted. It was compared with version 1, and the champion is version 2" in ran.stderr
    assert ray_mm("promote", "runs/registry#driving@3", "--expect", "2").exit_code == 0
    assert ray_mm("deny", "runs/registry#driving@2", "--reason", "leaks").exit_code == 0
    ran = ray_mm("rollback", "runs/registry#driving", "--reason", "worse at night")
    assert (ran.exit_code, ran.stdout) == (0, "driving: version 1 is the champion\n")
    assert (registry.version(3).denied, registry.version(2).denied) == ("worse at night", "leaks")
    assert all(event.by and event.by != "night-1" for event in registry.history()[1:])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("list", "nowhere"), "nowhere: holds no models"),
        (("show", "runs/registry#walking"), "there is no such model"),
        (("show", "runs/registry#driving@9"), "there is no version 9; its versions are: 1, 2, 3"),
        (("show", "runs/registry"), "is no model of a registry; expected registry:<root>#<name>"),
        (
            ("promote", "runs/registry#driving"),
            "names no version; expected its number, such as runs/registry#driving@4",
        ),
        (("promote", "runs/registry#driving@champion"), "names no version"),
        (("promote", "runs/registry#driving@9"), "there is no version 9"),
        (("rollback", "runs/registry#driving"), "there is no previous"),
        (("deny", "runs/registry#driving@1"), "is the champion; roll back"),
        (("promote", "https://h/r#driving@1"), "can't be written"),
        (("promote", "runs/registry#../driving@1"), "is no model of a registry"),
        (("promote", "runs/registry#$(touch x)@1"), "is no model of a registry"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_changes(
    registry: Registry, arguments: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    before = Path(registry.place).read_bytes()
    ran = ray_mm(*arguments)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert text in ran.stderr and len(ran.stderr.splitlines()) == 1
    assert Path(registry.place).read_bytes() == before and not (tmp_path / "x").exists()


def test_a_registry_of_a_newer_version_is_left_as_it_is(registry: Registry) -> None:
    file = Path(registry.place)
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 2}))
    before = file.read_bytes()
    for arguments in (
        ("list", "runs/registry"),
        ("promote", "runs/registry#driving@2"),
        ("rollback", "runs/registry#driving"),
    ):
        ran = ray_mm(*arguments)
        assert ran.exit_code == 2 and "was written by a newer version of ray_mm" in ran.stderr
    assert file.read_bytes() == before
