"""Documents on a disk, in S3 and in Google's store: of several writers one wins, and nothing is ever half there."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_mm.errors import StorageError, UsageError, WriteConflictError
from ray_mm.storage.conditional import Document, Documents
from tests.google_store import google_store
from tests.object_store import Fault, Proxy, Request, make_bucket

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["disk", "s3", "gs"])
def documents(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Documents]:
    if request.param == "disk":
        yield Documents(tmp_path / "documents")
    elif request.param == "s3":
        yield Documents(f"s3://{request.getfixturevalue('bucket')}/documents")
    else:
        with google_store() as store:
            store.is_public = True
            monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.endpoint)
            yield Documents("gs://bucket/documents")


def test_a_document_is_created_replaced_and_deleted(documents: Documents) -> None:
    assert documents.read("deep/lease.json") is None
    first = documents.create("deep/lease.json", b"one")
    assert documents.read("deep/lease.json") == Document(b"one", first)
    second = documents.replace("deep/lease.json", b"two", first)
    assert documents.read("deep/lease.json") == Document(b"two", second) and second != first
    documents.delete("deep/lease.json", second)
    assert documents.read("deep/lease.json") is None and documents.list() == []
    again = documents.create("deep/lease.json", b"three")
    assert documents.read("deep/lease.json") == Document(b"three", again)


def test_a_writer_who_comes_second_is_told_and_changes_nothing(documents: Documents) -> None:
    first = documents.create("x.json", b"one")
    with pytest.raises(WriteConflictError, match=r"x\.json"):
        documents.create("x.json", b"mine")
    second = documents.replace("x.json", b"two", first)
    for late in (
        lambda: documents.replace("x.json", b"mine", first),
        lambda: documents.delete("x.json", first),
        lambda: documents.create("x.json", b"two"),
    ):
        with pytest.raises(WriteConflictError, match=r"x\.json"):
            late()
    assert documents.read("x.json") == Document(b"two", second)
    documents.delete("x.json", second)
    for late in (lambda: documents.replace("x.json", b"mine", second), lambda: documents.delete("x.json", second)):
        with pytest.raises(WriteConflictError):
            late()
    assert documents.read("x.json") is None


def test_what_was_never_there_is_not_replaced(documents: Documents, tmp_path: Path) -> None:
    other = documents.create("other.json", b"x")
    with pytest.raises(WriteConflictError):
        documents.replace("x.json", b"mine", other)
    assert documents.read("x.json") is None


def test_a_listing_has_the_documents_and_nothing_else(documents: Documents) -> None:
    for name in ("a/1.json", "a/2.json", "ab.json", "b.json"):
        documents.create(name, b"x")
    assert documents.list() == ["a/1.json", "a/2.json", "ab.json", "b.json"]
    assert documents.list("a/") == ["a/1.json", "a/2.json"]
    assert documents.list("a") == ["a/1.json", "a/2.json", "ab.json"]
    assert documents.list("none/") == []


@pytest.mark.parametrize(
    "name",
    ["", "/x", "../x", "a/../x", "a//x", ".lock", "a/", "x y", "x\n", "a/.hidden", "~", "$(x)", "a\\b", "x?", "ü"],
)
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    documents = Documents(tmp_path / "documents")
    for use in (
        lambda: documents.read(name),
        lambda: documents.create(name, b"x"),
        lambda: documents.delete(name, "x"),
    ):
        with pytest.raises(UsageError, match="no name of a document"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_web_server_holds_no_documents() -> None:
    with pytest.raises(UsageError, match="can't be written"):
        Documents("https://h/x")


def test_a_write_whose_answer_gets_lost_is_known_for_ones_own(proxy: Proxy, bucket: str) -> None:
    # The server has written it and answers 503; the store's client asks again, and is told that there is one already.
    lost = iter(range(2))

    def lose_the_answer(request: Request) -> Fault | None:
        return Fault("late") if request.method == "PUT" and next(lost, None) is not None else None

    documents = Documents(f"s3://{bucket}/documents")
    proxy.faults = lose_the_answer
    first = documents.create("x.json", b"one")
    lost = iter(range(1))
    second = documents.replace("x.json", b"two", first)
    assert documents.read("x.json") == Document(b"two", second)
    # The same bytes, written by somebody else, are not one's own.
    Documents(documents.root).replace("x.json", b"three", second)
    with pytest.raises(WriteConflictError):
        documents.replace("x.json", b"three", second)


def test_a_store_that_refuses_is_an_error_and_not_a_conflict(proxy: Proxy, bucket: str) -> None:
    documents = Documents(f"s3://{bucket}/documents")
    proxy.faults = lambda request: Fault("status", status=403)
    with pytest.raises(StorageError, match="refuses access") as caught:
        documents.create("x.json", b"x")
    assert not isinstance(caught.value, WriteConflictError)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file"):
        Documents(tmp_path / "file").create("x.json", b"x")


def test_a_writer_that_is_killed_leaves_nothing_half_done(tmp_path: Path) -> None:
    # It is killed as it renames: holding the lock, its file beside the place.
    documents = Documents(tmp_path / "documents")
    first = documents.create("x.json", b"one")
    code = """
import os, signal, sys
from pathlib import Path
from ray_mm.storage.conditional import Documents
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
documents = Documents(sys.argv[1])
documents.replace("x.json", b"half", documents.read("x.json").version)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "documents")], cwd=ROOT, timeout=60)
    assert killed.returncode == -9
    assert documents.read("x.json") == Document(b"one", first) and documents.list() == ["x.json"]
    documents.replace("x.json", b"two", first)


def test_a_writer_that_was_stopped_in_the_middle_does_not_stop_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = Documents(tmp_path)
    monkeypatch.setattr("ray_mm.storage.conditional._LOCKED_S", 0.1)
    with (tmp_path / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match=r"\.lock: another process has held this lock for 0\.1 s"):
            documents.create("x.json", b"x")
    documents.create("x.json", b"x")


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match=r"can't lock .*choose a folder on another one"):
        Documents(tmp_path).create("x.json", b"x")
    assert Documents(tmp_path).list() == []


def test_counting_up_by_many_processes_loses_nothing(tmp_path: Path) -> None:
    code = """
import sys
from ray_mm.errors import WriteConflictError
from ray_mm.storage.conditional import Documents
documents, done = Documents(sys.argv[1]), 0
while done < 20:
    seen = documents.read("count")
    try:
        if seen is None:
            documents.create("count", b"1")
        else:
            documents.replace("count", str(int(seen.content) + 1).encode(), seen.version)
        done += 1
    except WriteConflictError:
        pass
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [process.wait(240) for process in running] == [0, 0, 0, 0]
    found = Documents(tmp_path).read("count")
    assert found is not None and found.content == b"80"


def test_a_bucket_of_another_name_is_another_place(bucket: str, s3_endpoint: str) -> None:
    make_bucket(s3_endpoint, f"{bucket}-other")
    Documents(f"s3://{bucket}/x/").create("a", b"1")
    assert Documents(f"s3://{bucket}-other/x").read("a") is None
    assert Documents(f"s3://{bucket}/x").read("a") is not None
