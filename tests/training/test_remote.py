"""A training on datasets in an object store that misbehaves: the same as on a disk, or stopped with a reason."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_mm.training.ledger import audit
from ray_mm.training.state import attempt_starts
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training
from tests.factories import make_dataset
from tests.object_store import Fault, Proxy, Request, upload
from tests.training.test_train import FIELDS, train_job

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_DRIVER = """
import sys
from ray_mm.config.load import load_job
from ray_mm.training.train import run_train
run_train(load_job(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the datasets and a run on them."""
    folder = tmp_path_factory.mktemp("local")
    make_dataset(folder / "train", num_samples=150, num_shards=3, fields=FIELDS, seed=0)
    make_dataset(folder / "validation", num_samples=40, num_shards=1, fields=FIELDS, seed=1)
    ran = train(folder)
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture
def remote(local: Path, bucket: str, proxy: Proxy) -> dict[str, Any]:
    """The same datasets in a store behind the proxy: what to set in the job."""
    upload(proxy.endpoint, local, bucket)
    proxy.requests.clear()
    return {"data.train": f"s3://{bucket}/train", "data.validation": f"s3://{bucket}/validation"}


def train(folder: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Runs a training in a process of its own, whose Ray has this test's environment."""
    path = folder / "job.json"
    path.write_text(train_job(folder, **settings).model_dump_json())
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", _DRIVER, str(path)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def losses(run: Path) -> dict[tuple[str, int], float]:
    return {(line["kind"], line["step"]): line["loss"] for line in read_metrics(run)}


@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
def test_with_faults_it_trains_on_every_sample_as_it_does_on_a_disk(
    local: Path, remote: dict[str, Any], proxy: Proxy, tmp_path: Path, cached: bool
) -> None:
    kinds = [Fault("status"), Fault("cut", at=100), Fault("short", at=100), Fault("cut"), Fault("shifted")]
    faults = itertools.chain([Fault("hang", at=50)], itertools.cycle([None, *kinds]))
    proxy.faults = lambda request: next(faults) if request.method == "GET" and ".tar" in request.path else None
    if cached:
        remote["data.cache.remote"] = {"folder": str(tmp_path / "cache"), "size": "64MiB"}
    ran = train(tmp_path, **remote)
    assert ran.returncode == 0, ran.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(local / "run"), rel=1e-5)
    schedule = plan_training(train_job(tmp_path, **remote)).schedule
    for epoch in audit(tmp_path / "run" / "ledger", schedule, attempt_starts(tmp_path / "run")):
        assert epoch.exact
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["num_quarantined"] == 0
    # Each shard fits into a block: with the cache it is fetched once, whatever the number of epochs and processes.
    whole = [request for request in proxy.gets(".tar") if request.range is not None and request.range[0] == 0]
    assert (len({request.path for request in whole}) == 4) if cached else (len(proxy.gets(".tar")) > 30)
    assert len(list((tmp_path / "cache").rglob("*.block"))) == (4 if cached else 0)


def test_a_shard_that_is_deleted_stops_it_by_name(remote: dict[str, Any], proxy: Proxy, tmp_path: Path) -> None:
    def deleted(request: Request) -> Fault | None:
        # After the first epoch.
        gone = "train/shards/000001.tar" in request.path and len(proxy.gets(".tar")) > 20
        return Fault("status", status=404) if gone else None

    proxy.faults = deleted
    ran = train(tmp_path, **remote)
    assert ran.returncode != 0
    assert len(attempt_starts(tmp_path / "run")) == 1, "another start would only meet it again"
    last = ran.stderr.strip().splitlines()[-1]
    assert "DatasetError" in last and "train/shards/000001.tar[sample0000" in last and "no such object" in last
    assert not (tmp_path / "run" / "result.json").exists()
