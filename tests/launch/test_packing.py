"""What is fetched of a run is what people read, whole or not at all; what a cluster sends is not trusted."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from ray_mm.errors import RayMMError, UsageError
from ray_mm.launch import packing
from ray_mm.launch.answer import find_answer
from ray_mm.launch.packing import pack, unpack
from tests.launch.cluster import REPOSITORY


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as a training leaves it."""
    for name, content in {
        "job.json": "{}",
        "result.json": '{"status": "done"}',
        "metrics.jsonl": "{}\n",
        "report.html": "<html>",
        "profile/page.html": "<html>",
        "best/model.safetensors": "weights",
        "best/model.json": "{}",
        "last/model.json": "{}",
        "checkpoints/step-1/state.json": "{}",
        "ledger/attempt-0001.jsonl": "{}",
        ".seconds": "1",
        ".hidden.json": "{}",
        "events.out": "binary",
    }.items():
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "outside.json").write_text("not of the run")
    (tmp_path / "run" / "link.json").symlink_to(tmp_path / "outside.json")
    return tmp_path / "run"


READ = {"job.json", "result.json", "metrics.jsonl", "report.html", "profile/page.html"}


def test_what_people_read_comes_and_what_a_run_works_with_does_not(run: Path, tmp_path: Path) -> None:
    assert set(unpack(pack(run, with_model=False), tmp_path / "here", "fit-1")) == READ
    assert (tmp_path / "here" / "result.json").read_bytes() == (run / "result.json").read_bytes()


def test_a_model_comes_on_request(run: Path, tmp_path: Path) -> None:
    names = set(unpack(pack(run, with_model=True), tmp_path / "here", "fit-1"))
    assert names == READ | {"best/model.safetensors", "best/model.json"}


def test_what_was_fetched_before_is_replaced_and_nothing_else_is(run: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    unpack(pack(run, with_model=True), here, "fit-1")
    unpack(pack(run, with_model=False), here, "fit-1")
    assert not (here / "best").exists()
    for folder in (here, run):
        with pytest.raises(UsageError, match="holds something else; name a folder that is not there yet"):
            unpack(pack(run, with_model=False), folder, "other-1")
    assert (run / "best" / "model.json").exists()


def test_what_can_not_be_sent_is_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no run is there"):
        pack(tmp_path / "absent", with_model=False)
    for model in ("best", "last"):
        for path in sorted((run / model).iterdir()):
            path.unlink()
        (run / model).rmdir()
    with pytest.raises(UsageError, match="has no checkpoint and no artifact yet"):
        pack(run, with_model=True)
    monkeypatch.setattr(packing, "_MOST_BYTES", 3)
    with pytest.raises(UsageError, match="too much to be sent through the cluster's head"):
        pack(run, with_model=False)


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as made:
        for member, content in members:
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return written.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


@pytest.mark.parametrize(
    "made",
    [
        member("../owned"),
        member("/tmp/owned"),
        member("a/../../owned"),
        member("a\\..\\owned"),
        member("x\x1b[31m.json"),
        member("x\ny"),
        member("."),
        member(".fetched.json"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("hard", tarfile.LNKTYPE, "job.json"),
        member("pipe", tarfile.FIFOTYPE),
        member("device", tarfile.CHRTYPE),
        member("folder", tarfile.DIRTYPE),
    ],
    ids=lambda made: made.name,
)
def test_an_archive_that_would_write_elsewhere_leaves_nothing(tmp_path: Path, made: tarfile.TarInfo) -> None:
    content = b"x" if made.isreg() else b""
    sent = archive((member("job.json"), b"{}"), (made, content))
    with pytest.raises(RayMMError, match=r"the cluster sent .*, which is no file of a run") as caught:
        unpack(sent, tmp_path / "here", "fit-1")
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def test_an_archive_of_too_much_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MOST_BYTES", 1000)
    with pytest.raises(RayMMError, match="more than a run's files can be"):
        unpack(archive((member("zeros.json"), b"0" * 3000)), tmp_path / "here", "fit-1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sent", [b"", b"no tar", gzip.compress(b"no tar" * 999), archive((member("a"), b"b" * 2000))[:60]]
)
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, sent: bytes) -> None:
    with pytest.raises(RayMMError, match="what the cluster sent is damaged"):
        unpack(sent, tmp_path / "here", "fit-1")
    assert list(tmp_path.iterdir()) == []


def test_an_answer_stands_in_the_log_until_it_has_been_read(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    code = "import sys; from ray_mm.launch.answer import give_answer; print('said before'); give_answer(bytes(range(256)) * 999)"
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=stream, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
        )
    give_up = time.monotonic() + 60
    while (answer := find_answer(log.read_text())) is None:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert answer == bytes(range(256)) * 999
    with pytest.raises(RayMMError, match="damaged on its way"):
        find_answer(log.read_text().replace("AAEC", "AAED", 1))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert log.read_bytes() == b""
