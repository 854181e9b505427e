"""A job file with a path, a name or a value made to escape does nothing but an error, in one line, at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_mm.config.cluster import ClusterProfile
from ray_mm.config.load import load_job, parse_overrides
from ray_mm.errors import UsageError
from ray_mm.launch.placed import placed
from tests.config.jobs import SMALLEST

PLANTED = "hunter2-planted"
pytestmark = pytest.mark.timeout(60)
"""A text that expands without end would take for ever; each of these takes milliseconds."""

STORED = ClusterProfile(storage="/mnt/shared")

NAMES = {
    "parent": "../../etc/cron.d/x",
    "absolute": "/etc/passwd",
    "separator": "a/b",
    "backslash": "a\\b",
    "only dots": "..",
    "hidden": ".ssh",
    "command": "x; reboot",
    "substitution": "$(reboot)",
    "backticks": "`reboot`",
    "variable": "$HOME",
    "pipe": "x|sh",
    "redirect": "x>/etc/passwd",
    "and": "x&&reboot",
    "option": "--help",
    "quotes": "x' 'y",
    "line end": "x\nreboot",
    "carriage return": "x\rreboot",
    "nothing": "",
    "null": "x\x00y",
    "escape sequence": "\x1b]0;owned\x07",
    "right to left": "x\u202egpj.exe",
    "homoglyph": "trаin",  # its second vowel is Cyrillic
    "space": " x",
    "long": "x" * 5000,
    "URL": "http://evil/x",
    "template": "{{config}}",
    "percent": "%2e%2e%2fx",
    "glob": "*",
    "wide slash": "a\uff0fb",
}
"""What a name of a job can't be."""

KEYS = {
    "parent": "../../x",
    "absolute": "/etc/passwd",
    "dunder": "__class__",
    "line end": "x\ny",
    "null": "x\x00",
    "command": "$(reboot)",
    "escape sequence": "\x1b[2J",
}
"""What a field can't be called: it becomes the end of a file's name."""

PLACES = {
    "user and password": f"s3://key:{PLANTED}@bucket/data",
    "user": f"https://{PLANTED}@host/data",
    "password in http": f"http://me:{PLANTED}@host/data",
    "password in gs": f"gs://x:{PLANTED}@bucket",
    "line end": "data\nx",
    "null": "data\x00x",
    "escape sequence": "\x1b]8;;http://evil\x07",
    "delete": "data\x7f",
    "C1": "data\x9b31m",
    "long": "x" * 10_000,
    "nothing": "",
}
"""What a path can't be."""

TEXTS = {
    "python object": "kind: !!python/object/apply:os.system ['touch {mark}']",
    "python name": "kind: !!python/name:os.system",
    "python module": "kind: !!python/module:os",
    "python new": "kind: !!python/object/new:subprocess.Popen [['touch', '{mark}']]",
    "python tuple": "kind: !!python/tuple [1]",
    "own tag": "kind: !include /etc/passwd",
    "binary": "kind: !!binary aGVsbG8=",
    "set": "kind: !!set {a, b}",
    "tag in a value": "kind: train\nname: !!python/object/apply:os.system ['touch {mark}']",
    "environment": "kind: train\nname: !env HOME",
    "laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(20)),
    "laughing keys": "a: &a {k: v}\n"
    + "\n".join(f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{','.join([f'*{chr(97 + n)}'] * 9)}]}}" for n in range(20)),
    "within itself": "kind: &a [*a]",
    "merged into itself": "kind: train\nmodel: &a\n  <<: *a",
    "unknown alias": "kind: *nobody",
    "deep": "kind: " + "[" * 2_000,
    "deep mappings": "kind: " + "{a: " * 2_000,
    "long number": "kind: train\nseed: " + "9" * 50_000,
    "large number": "kind: train\nseed: " + "9" * 30,
    "hexadecimal": "kind: train\nseed: 0x" + "f" * 50_000,
    "endless text": "kind: train\nname: " + "x" * 2_000_000,
    "twice": "kind: train\nkind: preprocess",
    "two documents": "kind: train\n---\nkind: train",
    "null byte": "kind: tr\x00ain",
    "list as key": "? [a, b]\n: c",
    "infinite": "kind: train\nname: .inf",
}
"""What a job file can't be."""

VALUES = {
    "a size of words": ("data.batch_size", "$(nproc)"),
    "negative": ("data.batch_size", -1),
    "not a number": ("train.optimizer.lr", float("nan")),
    "infinite": ("train.optimizer.lr", float("inf")),
    "dunder": ("__class__", "x"),
    "dunder below": ("train.__init__", "x"),
    "an object": ("train.epochs", {"__reduce__": "os.system"}),
    "an encoder's module": ("model.fields.image", {"encoder": "os.system"}),
}
"""Key → what it can't be."""


@pytest.fixture(autouse=True)
def nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file is made."""
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    yield
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "job.yaml"}


def require_refused(source: Any, overrides: dict[str, Any] | None = None) -> None:
    with pytest.raises(UsageError) as caught:
        load_job(source, overrides)
    told = str(caught.value)
    assert len(told) < 1000 and "\n" not in told and told.isprintable()
    assert PLANTED not in told and "Traceback" not in told


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_that_would_be_something_else_is_refused(name: str) -> None:
    require_refused({**SMALLEST["train"], "name": name})


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_field_that_would_be_something_else_is_refused(key: str) -> None:
    content = copy.deepcopy(SMALLEST["preprocess"])
    content["fields"][key] = {"type": "image"}
    require_refused(content)


@pytest.mark.parametrize("key", ["output", "data.train"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_path_that_holds_a_password_or_steers_a_terminal_is_refused(place: str, key: str) -> None:
    require_refused(SMALLEST["train"], {key: place})


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_that_is_more_than_values_is_refused(text: str) -> None:
    Path("job.yaml").write_text(text.replace("{mark}", str(Path("owned").absolute())))
    require_refused("job.yaml")


@pytest.mark.parametrize(("key", "value"), VALUES.values(), ids=VALUES)
def test_a_value_of_another_kind_is_refused(key: str, value: Any) -> None:
    require_refused(SMALLEST["train"], {key: value})


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.system ['touch owned']", "&a [*a]", "[" * 2_000, "x" * 2_000_000, "{a: b", "\x00"],
)
def test_a_value_of_the_command_line_is_read_as_carefully(value: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_job(SMALLEST["train"], parse_overrides([f"name={value}"]))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("path", ["../other", "a/../../b", "~/x", "~root/x", "file:///etc/passwd", "./../x"])
def test_a_path_that_leads_out_of_the_clusters_storage_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match=r"means another folder on the cluster|leads out of the cluster's storage"):
        placed(load_job(SMALLEST["evaluate"], {"checkpoint": path}), STORED)


def test_a_job_that_is_none_of_these_loads() -> None:
    found = placed(load_job(SMALLEST["evaluate"]), STORED)
    assert (found.output, found.data) == ("/mnt/shared/runs/score", "/mnt/shared/data/small/test")  # type: ignore[union-attr]
    Path("job.yaml").write_text(yaml.safe_dump(SMALLEST["train"]))
    assert load_job("job.yaml").name == "fit"
