"""Cells that name nothing or something else, and jobs that are refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_mm.data.manifest import open_dataset
from ray_mm.errors import DatasetError, RayMMError, UsageError
from ray_mm.preprocessing.preprocess import run_preprocess
from tests.factories import audio_bytes
from tests.preprocessing.tables import make_job, make_rows, members_by_key, write_csv, write_file, write_json_lines


@pytest.mark.ray
def test_files_that_are_something_else_are_listed_and_a_corrected_run_writes_only_what_is_missing(
    local_ray: None, tmp_path: Path
) -> None:
    rows = make_rows(tmp_path, 12)
    job = make_job(write_csv(tmp_path / "t.csv", rows), key="key", shard_size=30_000)
    good = (tmp_path / "files/image5.bin").read_bytes()
    write_file(tmp_path / "files/image5.bin", b"this is a text, not a picture")
    write_file(tmp_path / "files/audio5.bin", b"neither")
    with pytest.raises(RayMMError) as caught:
        run_preprocess(job)
    message = str(caught.value)
    assert caught.value.exit_status == 1
    assert (
        f"2 cells: row 6 audio ({tmp_path}/files/audio5.bin: is not WAV, FLAC, OGG, MP3 or another recording), row 6 image ("
        in message
    )
    assert "on_missing: absent" in message
    with pytest.raises(DatasetError, match=r"has no dataset\.json"):
        open_dataset(tmp_path / "out/train")
    shards = tmp_path / "out/train/shards"
    kept = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    write_file(tmp_path / "files/image5.bin", good)
    write_file(tmp_path / "files/audio5.bin", audio_bytes(5))
    result = run_preprocess(job)
    assert result["metrics"]["num_samples"] == {"train": 12}
    after = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    assert len(after) == len(kept) + 1 > 2 and all(after[name] == kept[name] for name in kept)
    assert not (tmp_path / "out/.progress").exists()


@pytest.mark.ray
def test_what_is_missing_or_something_else_can_be_left_absent(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(tmp_path, 10)
    (tmp_path / "files/image1.bin").unlink()
    write_file(tmp_path / "files/image2.bin", b"no picture")
    write_file(tmp_path / "files/series3.npy", b"no array")
    rows[4]["text"] = None
    rows.append(dict.fromkeys(rows[0]) | {"key": "empty"})
    table = write_csv(tmp_path / "t.csv", rows)
    with pytest.raises(UsageError, match=r"1 cell: row 2 image .*image1\.bin \(no such file\)"):
        run_preprocess(make_job(table, key="key"))
    assert not (tmp_path / "out").exists()
    metrics = run_preprocess(make_job(table, key="key", on_missing="absent"))["metrics"]
    assert metrics["num_samples"] == {"train": 10} and metrics["num_empty"] == 1
    assert {field: count for field, count in metrics["num_absent"].items() if count} == {
        "image": 2,
        "series": 1,
        "text": 1,
    }
    assert {field: count for field, count in metrics["num_unusable"].items() if count} == {"image": 2, "series": 1}
    listed = [json.loads(line) for line in (tmp_path / "out/unusable.jsonl").read_text().splitlines()]
    assert [(cell["row"], cell["key"], cell["field"]) for cell in listed] == [
        (2, "k001", "image"),
        (3, "k002", "image"),
        (4, "k003", "series"),
    ]
    assert listed[0]["reason"] == f"{tmp_path}/files/image1.bin: no such file"
    assert listed[1]["reason"].startswith(f"{tmp_path}/files/image2.bin: is not JPEG")
    told = capsys.readouterr().err
    assert "ray-mm: 1 row has none of the fields and left no sample" in told
    assert f"left absent in 3 cells: row 2 image ({tmp_path}/files/image1.bin: no such file)" in told
    assert f"All: {tmp_path}/out/unusable.jsonl" in told
    dataset = open_dataset(tmp_path / "out/train")
    assert dataset.manifest.presence["image"] == 8 and dataset.manifest.presence["text"] == 9
    samples = members_by_key(dataset)
    assert "image" not in samples["k001"] and "image" not in samples["k002"] and "text" not in samples["k004"]


@pytest.mark.ray
def test_a_column_without_a_single_picture_is_refused(local_ray: None, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 6)
    fields = {"image": {"type": "image", "height": 8, "width": 8}, "label": {"type": "label"}}
    job = make_job(write_csv(tmp_path / "t.csv", rows), fields, columns={"image": "audio"}, on_missing="absent")
    with pytest.raises(
        RayMMError, match=r"fields\.image: none of its 6 cells could be used \(row 1: .*audio0\.bin: is not"
    ):
        run_preprocess(job)
    assert not list((tmp_path / "out").glob("*/dataset.json"))


@pytest.mark.ray
def test_values_in_the_table_and_changed_settings_after_a_failed_run(local_ray: None, tmp_path: Path) -> None:
    rows = [
        {"imu": [[1, 2], [3, 4]], "a": 1, "b": 2.5, "word": "héllo", "y": 0.5},
        {"imu": [[1, 2, 3]], "a": 2, "b": 3.5, "word": "☃", "y": 1.5},
        {"imu": [[5, 6]], "a": 3, "b": 4.5, "word": "x", "y": None},
    ]
    fields: dict[str, dict[str, Any]] = {
        "imu": {"type": "series"},
        "state": {"type": "vector"},
        "word": {"type": "text"},
        "y": {"type": "label", "target": "number"},
    }
    table = write_json_lines(tmp_path / "t.jsonl", rows)
    more: dict[str, Any] = {"columns": {"state": ["a", "b"]}}
    with pytest.raises(RayMMError, match=r"2 values: 2 in 2 rows from row 1 on, 3 in 1 rows from row 2 on"):
        run_preprocess(make_job(table, fields, **more))
    fields["imu"]["channels"] = 2
    run_preprocess(make_job(table, fields, **more, on_missing="absent"))
    manifest = open_dataset(tmp_path / "out/train").manifest
    assert manifest.presence == {"imu": 2, "state": 3, "word": 3, "y": 2}
    assert manifest.statistics["state"].mean == pytest.approx((2.0, 3.5))
    assert manifest.statistics["y"].mean == (1.0,) and manifest.statistics["imu"].mean == (3.0, 4.0)


@pytest.mark.parametrize(
    ("more", "wrong", "reason"),
    [
        ({}, {"table": "no.csv"}, r"no\.csv: no such file"),
        ({"columns": {"label": "lable"}}, {}, r"columns\.label: .* has no column 'lable'; did you mean 'label'\?"),
        ({"fields": {"label": {"type": "label", "classes": ["left"]}}}, {}, r"fields\.label\.classes: \d+ rows"),
        ({"fields": {"image": {"type": "image"}}, "root": "/"}, {}, r"names files that can't be used in 6 cells"),
        (
            {"fields": {"image": {"type": "image"}}, "columns": {"image": "text"}, "on_missing": "absent"},
            {},
            r"columns\.image: none of the 6 cells of column 'text' of .* names a usable file \(row 1: .*: no such file\); "
            "is it the right column",
        ),
        ({}, {"table": "s3://bucket/t.csv"}, r"s3:// can't be used here"),
    ],
)
def test_bad_input_ends_with_status_two_before_ray_is_imported(
    tmp_path: Path, more: dict[str, Any], wrong: dict[str, Any], reason: str
) -> None:
    table = write_csv(tmp_path / "t.csv", make_rows(tmp_path, 6))
    job = make_job(table, **({"fields": {"label": {"type": "label"}}} | more)).model_copy(update=wrong)
    code = (
        "import sys, json; from ray_mm.config.load import load_job; from ray_mm.errors import RayMMError\n"
        "from ray_mm.preprocessing.preprocess import run_preprocess\n"
        "try: run_preprocess(load_job(json.loads(sys.argv[1])))\n"
        "except RayMMError as error: print(error); sys.exit(error.exit_status + 10 * ('ray' in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code, job.model_dump_json()], capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert re.search(reason, ended.stdout)
    assert not (tmp_path / "out").exists()
