"""Objects behind URLs: names, listings, versions, conditional writes, and what is said when something is wrong."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ray_mm.errors import ObjectMissingError, StorageError, UsageError, WriteConflictError
from ray_mm.storage.ranges import RangeReader
from ray_mm.storage.remote import is_remote, join, list_objects, put_if_absent, put_if_match, read_object, stat
from ray_mm.storage.stores import split_url
from tests.object_store import Fault, Proxy, call, first_times, make_bucket, put_object


@pytest.mark.parametrize(
    ("location", "remote"),
    [
        ("s3://b/x", True),
        ("http://h/x", True),
        ("file:///x", False),
        ("/x", False),
        ("x/y", False),
        (Path("/x"), False),
    ],
)
def test_a_url_is_remote_and_a_path_is_not(location: str | Path, remote: bool) -> None:
    assert is_remote(location) == remote


def test_a_url_is_split_into_scheme_bucket_and_path() -> None:
    # A store's keys are taken as they are written; a web address has percent signs.
    assert split_url("s3://b/a b/100%25.tar") == ("s3", "b", "a b/100%25.tar")
    assert split_url("https://h:8080/a%20b/x.tar") == ("https", "h:8080", "a b/x.tar")
    assert split_url("gs://b") == ("gs", "b", "")
    assert join("s3://b/data/", "shards", "0.tar") == "s3://b/data/shards/0.tar"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("ftp://h/x", "ftp:// can't be read"),
        ("s3:///x", "names no bucket"),
        ("http:///x", "names no host"),
        ("https://h/x.tar?X-Amz-Signature=secret", "query"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_and_a_signature_is_not_repeated(url: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        stat(url)
    assert text in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["plain.tar", "a b/c.tar", "ü/100%25 + #1?.tar"])
def test_an_object_has_a_size_and_a_version_that_changes_with_its_bytes(bucket: str, key: str) -> None:
    url = f"s3://{bucket}/{key}"
    written = put_if_absent(url, b"first")
    assert stat(url) == written and written.size == 5 and written.etag
    assert list(list_objects(f"s3://{bucket}")) == [written]
    assert read_object(url) == b"first"
    replaced = put_if_match(url, b"second", written)
    assert replaced.version != written.version and stat(url) == replaced


def test_a_listing_holds_all_of_a_folder_and_nothing_of_its_neighbours(bucket: str) -> None:
    for key in ("data/x.tar", "data/deep/y.tar", "data2/z.tar"):
        put_if_absent(f"s3://{bucket}/{key}", b"x")
    found = {info.url for info in list_objects(f"s3://{bucket}/data")}
    assert found == {f"s3://{bucket}/data/x.tar", f"s3://{bucket}/data/deep/y.tar"}
    assert list(list_objects(f"s3://{bucket}/nothing")) == []


def test_a_listing_is_one_request_however_many_shards_it_finds(bucket: str, proxy: Proxy) -> None:
    for number in range(30):
        put_object(proxy.endpoint, f"{bucket}/many/{number:02d}.tar", b"x")
    proxy.requests.clear()
    assert len(list(list_objects(f"s3://{bucket}/many"))) == 30
    assert [request.method for request in proxy.requests] == ["GET"]


def test_of_two_writers_one_wins(bucket: str) -> None:
    url = f"s3://{bucket}/lease.json"
    first = put_if_absent(url, b"mine")
    with pytest.raises(WriteConflictError, match=r"lease\.json"):
        put_if_absent(url, b"yours")
    second = put_if_match(url, b"mine, still", first)
    with pytest.raises(WriteConflictError):
        put_if_match(url, b"yours", first)
    assert read_object(url) == b"mine, still" and stat(url) == second


def test_only_stores_take_conditional_writes(tmp_path: Path) -> None:
    for url in (str(tmp_path / "x"), "http://127.0.0.1:1/x"):
        with pytest.raises(StorageError, match="on a condition"):
            put_if_absent(url, b"x")


def test_what_is_not_there_is_named(bucket: str, tmp_path: Path) -> None:
    for url in (f"s3://{bucket}/none.tar", str(tmp_path / "none.tar")):
        for read in (stat, read_object):
            with pytest.raises(ObjectMissingError, match=r"none\.tar"):
                read(url)
    with pytest.raises(StorageError, match=r"s3://bucket-of-nobody/x: there is no such bucket\.$"):
        list(list_objects("s3://bucket-of-nobody/x"))


def test_a_store_that_refuses_is_an_error_of_one_line(proxy: Proxy, bucket: str) -> None:
    proxy.faults = lambda request: Fault("status", status=403)
    for ask in (stat, read_object, lambda url: list(list_objects(url))):
        with pytest.raises(StorageError, match="refuses access") as caught:
            ask(f"s3://{bucket}/x.json")
        assert "\n" not in str(caught.value) and f"s3://{bucket}/x.json" in str(caught.value)


def test_a_busy_store_is_asked_again(proxy: Proxy, bucket: str) -> None:
    put_object(proxy.endpoint, f"{bucket}/x.json", b"content")
    proxy.requests.clear()
    proxy.faults = first_times(2, Fault("status"), part="x.json")
    assert read_object(f"s3://{bucket}/x.json") == b"content"
    assert len(proxy.gets("x.json")) == 3


def test_files_have_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.tar").write_bytes(b"abc")
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    (info,) = list_objects(str(tmp_path))
    assert info == stat(f"file://{tmp_path}/deep/x.tar") and info.size == 3
    assert info.version == f"mtime:{(tmp_path / 'deep' / 'x.tar').stat().st_mtime_ns}" and info.etag is None
    assert read_object(info.url) == b"abc"
    assert list(list_objects(str(tmp_path / "none"))) == []


def test_a_web_server_gives_files_and_no_listing(s3_endpoint: str, bucket: str) -> None:
    put_object(s3_endpoint, f"{bucket}/a b/x.tar", b"abc")
    url = f"{s3_endpoint}/{bucket}/a%20b/x.tar"
    assert read_object(url) == b"abc" and stat(url).size == 3
    with pytest.raises(UsageError, match="can't list"):
        list(list_objects(f"{s3_endpoint}/{bucket}"))


def test_a_web_server_without_ranges_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(bytes(10240))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/x.tar"
        try:
            with pytest.raises(
                StorageError, match=r"sends files only whole .* Download the file, or serve it with"
            ) as caught:
                RangeReader(stat(url)).read([(0, 512)])
        finally:
            server.shutdown()
    assert url in str(caught.value) and "not supported" not in str(caught.value)


def test_credentials_that_change_are_used(s3_endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bucket(s3_endpoint, "elsewhere")
    call(s3_endpoint, "PUT", "/elsewhere/x", b"x")
    assert stat("s3://elsewhere/x").size == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("ray_mm.storage.stores._ATTEMPTS", 1)
    with pytest.raises(StorageError, match=r"s3://elsewhere/x: can't be reached; check its address and the network"):
        stat("s3://elsewhere/x")


def test_nothing_of_a_store_is_imported_before_it_is_used() -> None:
    code = "import sys, ray_mm.storage.ranges; print('obstore' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert ran.stdout == "False\n", ran.stderr
