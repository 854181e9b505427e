"""Values that each node finds by itself are set where they are, and told nowhere."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest

from ray_mm.errors import UsageError
from ray_mm.references import SETUP_HOOK, VARIABLE, apply_references, resolved

PLANTED = "hunter2-planted"


def test_a_value_comes_from_a_variable_or_a_file_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERE", PLANTED)
    (tmp_path / "secret").write_text(f"{PLANTED}\n")
    references = {"A": {"env": "THERE"}, "B": {"file": str(tmp_path / "secret")}}
    assert resolved(references) == {"A": PLANTED, "B": PLANTED}


def test_ray_finds_what_it_calls_in_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, name = SETUP_HOOK.rpartition(".")
    assert getattr(importlib.import_module(module), name) is apply_references
    monkeypatch.setenv("THERE", PLANTED)
    monkeypatch.setenv("A", "before")
    monkeypatch.setenv(VARIABLE, json.dumps({"A": {"env": "THERE"}}))
    apply_references()
    assert os.environ["A"] == PLANTED
    monkeypatch.delenv(VARIABLE)
    apply_references()


@pytest.mark.parametrize(
    "where", [{"env": "NOT_THERE"}, {"file": "/no/such/file"}, {"file": "/"}, {"file": "~nobody-here/x"}]
)
def test_what_is_not_there_is_told_with_the_node(where: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=f"runtime.env.KEY: the node {os.uname().nodename} has no"):
        resolved({"KEY": where})


def test_what_no_variable_can_hold_is_told_without_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(f"{PLANTED}\x00more".encode())
    with pytest.raises(UsageError) as caught:
        resolved({"KEY": {"file": str(tmp_path / "secret")}})
    assert PLANTED not in str(caught.value)
