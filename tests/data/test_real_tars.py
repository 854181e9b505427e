"""Tars that other projects test with: each is indexed, inspected, and becomes a dataset or is refused with a reason."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import yaml

from ray_mm.config.load import load_job
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.data.epochs import sequence
from ray_mm.data.indexing import index_tars
from ray_mm.data.inspect import inspect_tars
from ray_mm.data.manifest import open_dataset
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.reader import read_batches
from ray_mm.preprocessing.preprocess import run_preprocess

pytestmark = [pytest.mark.real_data, pytest.mark.ray]

_EXPECTED: dict[str, tuple[int, dict[str, str], str]] = {
    "testgz.tar": (1000, {}, "members that are compressed one by one are not read"),
    "compressed.tar": (3, {}, "members that are compressed one by one are not read"),
    "tendata.tar": (100, {}, "no format that ray_mm reads"),
    "mpdata.tar": (100, {}, "no format that ray_mm reads"),
    "sample.tgz": (90, {"image": "image", "label": "label"}, ""),
    "return_all_test.tar": (6, {"text": "text", "caption": "text", "width": "label"}, ""),
}


@pytest.fixture(scope="module")
def tars(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tars")
    with tarfile.open(real_data / "tars.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return {path.name: path for path in folder.rglob("*") if path.suffix in (".tar", ".tgz")}


def test_no_tar_is_left_out(tars: dict[str, Path]) -> None:
    assert tars.keys() == _EXPECTED.keys()


@pytest.mark.parametrize("name", list(_EXPECTED))
def test_a_tar_becomes_a_dataset_or_is_refused(
    tars: dict[str, Path], local_ray: None, tmp_path: Path, name: str
) -> None:
    num_samples, fields, reason = _EXPECTED[name]
    (report,) = index_tars([tars[name]], output=tmp_path / "index")
    assert report.num_samples == num_samples
    found = inspect_tars([tars[name]])
    assert found.data["num_samples"] == num_samples
    if reason:
        assert found.job == "" and reason in str(found.tables[2].rows)
        return
    content = yaml.safe_load(found.job)
    content.pop("splits", None)  # few samples are proposed as one split, and here the shards say which
    assert {field: content["fields"][field]["type"] for field in fields} == fields
    job = load_job(content | {"shards": {"train": [str(tars[name])]}, "output": str(tmp_path / "data")})
    assert isinstance(job, PreprocessJob)
    assert run_preprocess(job)["metrics"]["num_samples"] == {"train": num_samples}
    dataset = open_dataset(tmp_path / "data/train")
    preprocessor = preprocessor_for(dataset, {}, dataset.manifest.fields)
    rows = sum(len(batch["position"]) for batch in read_batches(sequence(dataset), preprocessor, 32))
    assert rows == num_samples


def test_a_suffix_of_several_kinds_gives_the_one_that_is_meant(
    tars: dict[str, Path], local_ray: None, tmp_path: Path
) -> None:
    """Half of the members ``.mp4`` of this tar are JPEG pictures."""
    found = inspect_tars([tars["return_all_test.tar"]])
    assert ("mp4", "mixed", "jpg 3, mp4 3") in [row[:3] for row in found.tables[2].rows]
    job = load_job(
        {
            "kind": "preprocess",
            "name": "pictures",
            "shards": {"train": str(tars["return_all_test.tar"])},
            "fields": {"picture": {"type": "image"}},
            "members": {"picture": "mp4"},
            "on_missing": "absent",
            "output": str(tmp_path / "data"),
        }
    )
    assert isinstance(job, PreprocessJob)
    assert run_preprocess(job)["metrics"]["num_unusable"] == {"picture": 3}
    assert open_dataset(tmp_path / "data/train").manifest.presence == {"picture": 3}
