"""Google Cloud Storage as users name it (``gs://…``): who calls, listings, tars, ranges on a bad network, conditional writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from ray_mm.data.epochs import sequence
from ray_mm.data.indexing import index_tars
from ray_mm.data.inspect import inspect_tars
from ray_mm.data.manifest import open_dataset
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.reader import read_batches
from ray_mm.data.shards import find_shards
from ray_mm.data.sidecar import read_index
from ray_mm.errors import ObjectChangedError, ObjectMissingError, StorageError, WriteConflictError
from ray_mm.storage.ranges import RangeReader, ReadPolicy
from ray_mm.storage.remote import list_objects, put_if_absent, put_if_match, read_object, stat
from tests.factories import make_dataset, member_of, write_tar
from tests.google_store import PAGE, GoogleStore, google_store, pem
from tests.object_store import Fault, Proxy, faulty_proxy, first_times

QUICK = ReadPolicy(part_bytes=1 << 20, attempt_s=5.0, stall_s=0.3, give_up_s=30.0, backoff_s=0.01)
_TAR = "%2Etar"
"""As it stands in the address of a request: of Google's store all but letters and digits has percent signs."""


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[GoogleStore]:
    """A store, and an environment without any credentials that leads to it."""
    for name in [name for name in os.environ if name.startswith(("GOOGLE_", "STORAGE_EMULATOR_", "GCE_METADATA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with google_store() as store:
        monkeypatch.setenv("GOOGLE_BASE_URL", store.endpoint)
        monkeypatch.setenv("GCE_METADATA_HOST", store.endpoint.removeprefix("http://"))
        yield store


@pytest.fixture
def proxy(google: GoogleStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the store, which asks nobody who calls."""
    google.is_public = True
    with faulty_proxy(google.endpoint) as running:
        monkeypatch.setenv("GOOGLE_BASE_URL", running.endpoint)
        monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
        yield running


@pytest.mark.parametrize("variable", ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", ""])
def test_requests_are_signed_for_a_service_account(
    google: GoogleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    google.put("team/a b/x%.tar", b"0123456789")
    if variable:
        monkeypatch.setenv(variable, str(google.account_file(tmp_path / "account.json")))
    else:  # where gcloud leaves the credentials of a person
        (tmp_path / "home/.config/gcloud").mkdir(parents=True)
        google.account_file(tmp_path / "home/.config/gcloud/application_default_credentials.json")
    info = stat("gs://team/a b/x%.tar")
    assert (info.size, info.etag, info.generation) == (10, google.objects["team/a b/x%.tar"].etag, "1700000000000001")
    assert read_object(info.url) == b"0123456789"
    assert [found.url for found in list_objects("gs://team/a b")] == [info.url]
    assert bytes(RangeReader(info).read([(3, 4)])[0]) == b"3456"
    assert set(google.callers) == {"account"}


def test_the_machine_is_asked_where_there_is_no_account(google: GoogleStore) -> None:
    google.put("team/x", b"0123")
    assert read_object("gs://team/x") == b"0123" and set(google.callers) == {"machine"}


def test_a_public_bucket_and_an_emulator_are_read_without_an_account(
    google: GoogleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    google.put("team/x", b"0123")
    google.is_public = True
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    assert read_object("gs://team/x") == b"0123"
    monkeypatch.delenv("GOOGLE_SKIP_SIGNATURE")
    monkeypatch.setenv("GOOGLE_BASE_URL", "http://127.0.0.1:9")
    for emulator in (google.endpoint, google.endpoint.removeprefix("http://")):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
        # An emulator is never told who calls.
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(google.account_file(tmp_path / "account.json")))
        assert read_object("gs://team/x") == b"0123"
    assert set(google.callers) == {"nobody"}


def test_an_account_that_the_store_does_not_know_is_told_so(
    google: GoogleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    google.put("team/x", b"0123")
    account = google.account_file(tmp_path / "account.json", private_key=pem(rsa.generate_private_key(65537, 2048)))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
    for call in (stat, read_object, lambda url: list(list_objects(url))):
        with pytest.raises(
            StorageError, match=r"gs://team/x: the store refuses access \(HTTP 401\); check the credent"
        ):
            call("gs://team/x")
    account.write_text("{}")
    with pytest.raises(StorageError, match=r"gs://elsewhere: .*type"):  # of another bucket: that one was opened before
        stat("gs://elsewhere/x")


def test_a_listing_has_all_pages_of_a_folder_and_nothing_of_its_neighbours(proxy: Proxy, google: GoogleStore) -> None:
    names = [f"gs://team/train/{number:03d}.tar" for number in range(3 * PAGE + 1)]
    for name in (*names, "gs://team/train2/0.tar", "gs://team/train.tar", "gs://other/train/0.tar"):
        google.put(name.removeprefix("gs://"), name.encode())
    for pattern in ("gs://team/train", "gs://team/train/*.tar", "gs://team/train/{000..009}.tar"):
        proxy.requests.clear()
        found = find_shards([pattern])
        assert [info.url for info in found] == names
        assert [(info.size, info.etag) for info in found] == [(info.size, info.etag) for info in map(stat, names)]
        assert len(proxy.requests) - len(names) == 4, "a request per page, and none per shard"


def test_tars_are_indexed_and_inspected_as_on_a_disk(proxy: Proxy, google: GoogleStore, tmp_path: Path) -> None:
    for shard in range(2):
        members = {
            f"{sample:03d}.{suffix}": content
            for sample in range(shard * 4, shard * 4 + 4)
            for suffix, content in (member_of(field, sample) for field in ("image", "number"))
        }
        path = write_tar(tmp_path / f"tars/{shard}.tar", members)
        google.put(f"team/{path.name}", path.read_bytes())
    here = list(index_tars([tmp_path / "tars/*.tar"], output=tmp_path / "here"))
    proxy.faults = first_times(3, Fault("cut", at=700), part=_TAR)
    there = list(index_tars(["gs://team/{0..1}.tar"], output=tmp_path / "there", with_checksums=True))
    assert len(proxy.gets(_TAR)) > 3
    assert [report.num_samples for report in there] == [4, 4]
    for one, other in zip(here, there, strict=True):
        local, remote = read_index(one.index, one.shard), read_index(other.index, other.shard)
        assert remote.keys == local.keys and remote.version.startswith("etag:") and remote.checksums
        assert {name: list(at) for name, at in remote.offsets.items()} == {
            name: list(at) for name, at in local.offsets.items()
        }
    found, local_found = inspect_tars(["gs://team"]), inspect_tars([tmp_path / "tars"])
    assert found.data["fields"] == local_found.data["fields"] and found.data["num_samples"] == 8
    assert [one.is_new for one in index_tars(["gs://team/*.tar"], output=tmp_path / "there")] == [False, False]
    google.put("team/0.tar", google.objects["team/1.tar"].content)
    assert [one.is_new for one in index_tars(["gs://team/*.tar"], output=tmp_path / "there")] == [False, True]


def test_a_body_that_is_cut_goes_on_at_the_byte_where_it_broke(proxy: Proxy, google: GoogleStore) -> None:
    content = os.urandom(300_000)
    google.put("team/x.tar", content)
    reader = RangeReader(stat("gs://team/x.tar"), QUICK)
    proxy.faults = first_times(2, Fault("cut", at=65_536), part=_TAR)
    assert bytes(reader.read([(1000, 200_000)])[0]) == content[1000:201_000]
    starts = [request.range[0] for request in proxy.gets(_TAR) if request.range]
    assert starts == [1000, 1000 + 65_536, 1000 + 2 * 65_536]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=503),
        Fault("status", status=429),
        Fault("hang", at=70),
        Fault("short", at=70),
        Fault("shifted"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_a_fault_that_passes_costs_time_and_no_byte(proxy: Proxy, google: GoogleStore, fault: Fault) -> None:
    google.put("team/x.tar", bytes(range(256)) * 8)
    reader = RangeReader(stat("gs://team/x.tar"), QUICK)
    proxy.faults = first_times(2, fault, part=_TAR)
    assert bytes(reader.read([(10, 2000)])[0]) == (bytes(range(256)) * 8)[10:2010]


def test_an_object_that_is_replaced_or_deleted_is_not_read_on(proxy: Proxy, google: GoogleStore) -> None:
    google.put("team/x.tar", bytes(2048))
    reader = RangeReader(stat("gs://team/x.tar"), QUICK)
    google.put("team/x.tar", b"1" * 2048)
    with pytest.raises(ObjectChangedError, match=r"gs://team/x\.tar: was replaced while it was read"):
        reader.read([(0, 100)])
    del google.objects["team/x.tar"]
    with pytest.raises(ObjectMissingError, match=r"gs://team/x\.tar: there is no such object"):
        reader.read([(0, 100)])


def test_a_dataset_is_read_as_on_a_disk(proxy: Proxy, google: GoogleStore, tmp_path: Path) -> None:
    google.upload(make_dataset(tmp_path / "data", 12, ("image", "vector", "number"), num_shards=3), "team/data")
    proxy.faults = first_times(2, Fault("cut", at=300), part=_TAR)
    batches = []
    for root in (str(tmp_path / "data"), "gs://team/data"):
        dataset = open_dataset(root)
        preprocessor = preprocessor_for(dataset, {}, dataset.manifest.fields)
        batches.append(list(read_batches(sequence(dataset), preprocessor, 5)))
    assert len(proxy.gets(_TAR)) > 2
    for one, other in zip(*batches, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_of_several_writers_one_wins(google: GoogleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(google.account_file(tmp_path / "account.json")))
    url = "gs://team/alias.json"

    def attempt(write: object) -> bool:
        try:
            write()  # type: ignore[operator]
        except WriteConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, [lambda n=n: put_if_absent(url, b"%d" % n) for n in range(8)]))
        assert won.count(True) == 1 and read_object(url) == b"%d" % won.index(True)
        seen = stat(url)
        won = list(pool.map(attempt, [lambda n=n: put_if_match(url, b"1%d" % n, seen) for n in range(8)]))
        assert won.count(True) == 1 and read_object(url) == b"1%d" % won.index(True)
    written = put_if_match(url, b"next", stat(url))
    # What a write returns is enough for the next one.
    assert read_object(put_if_match(url, b"after", written).url) == b"after"
