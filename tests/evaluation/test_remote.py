"""An evaluation of a dataset in an object store that misbehaves: the same as on a disk, or stopped with a reason."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_mm.evaluation.evaluate import run_evaluate
from tests.evaluation.scenes import Scene, make_scene
from tests.evaluation.test_evaluate import job_for
from tests.object_store import Fault, Proxy, Request, upload

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def evaluate(scene: Scene, output: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """``ray-mm run`` in a process of its own, whose Ray has this test's environment."""
    path = output.with_suffix(".json")
    path.write_text(job_for(scene, output, **settings).model_dump_json())
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "ray_mm", "run", str(path)]
    return subprocess.run(command, env=environment, cwd=output.parent, capture_output=True, text=True, timeout=300)


def test_with_faults_the_figures_are_those_of_the_disk_and_a_shard_that_is_gone_stops_it(
    bucket: str, proxy: Proxy, local_ray: None, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "scene", ["image", "vector"], corrupt=[(7, "image")], missing={"image": 0.3})
    upload(proxy.endpoint, Path(scene.dataset.root), f"{bucket}/data")
    remote = f"s3://{bucket}/data"
    kinds = itertools.cycle([None, Fault("status"), Fault("cut", at=100), Fault("short", at=100), Fault("shifted")])
    proxy.faults = lambda request: next(kinds) if request.method == "GET" and ".tar" in request.path else None
    run_evaluate(job_for(scene, tmp_path / "disk"))
    ran = evaluate(scene, tmp_path / "store", data=remote)
    assert ran.returncode == 0, ran.stderr
    disk, store = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("disk", "store"))
    assert store["metrics"] == disk["metrics"] and disk["metrics"]["num_quarantined"] == 1
    assert len(proxy.gets(".tar")) > 4
    rows = [pq.read_table(tmp_path / name / "predictions.parquet") for name in ("disk", "store")]
    assert rows[0].equals(rows[1])

    def gone(request: Request) -> Fault | None:
        return Fault("status", status=404) if "000001.tar" in request.path else None

    proxy.faults = gone
    ran = evaluate(scene, tmp_path / "gone", data=remote)
    assert ran.returncode == 2
    assert "shards/000001.tar[sample0000" in ran.stderr and "Traceback" not in ran.stderr
    assert not (tmp_path / "gone" / "result.json").exists()
