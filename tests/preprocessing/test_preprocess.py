"""The whole stage on a real Ray: table → datasets, again, interrupted, and refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mm.config.fields import AudioField, VideoField
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.data.collate import Collator
from ray_mm.data.epochs import sequence
from ray_mm.data.inspect import inspect_dataset
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.reader import read_batches
from ray_mm.errors import DatasetError, OutputFolderError, RayMMError, UsageError
from ray_mm.preprocessing.preprocess import run_preprocess
from tests.data.decode.videos import video_bytes
from tests.factories import CLASSES, SPECS, audio_bytes, class_of, image_bytes, member_of, number_of
from tests.preprocessing.tables import FIELDS, make_job, make_rows, write_csv, write_file, write_json_lines

ray_test = pytest.mark.ray
_SPLITS = {"by": "hash", "group": "speaker", "fractions": {"train": 0.6, "test": 0.4}}
_NUM_ROWS = 30


def _made_job(folder: Path, **more: Any) -> PreprocessJob:
    return make_job(folder / "t.csv", key="key", splits=_SPLITS, shard_size=60_000, **more)


@pytest.fixture(scope="module")
def made(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a table of all field types, preprocessed once, and the result."""
    folder = tmp_path_factory.mktemp("made")
    write_csv(folder / "t.csv", make_rows(folder, _NUM_ROWS))
    return folder, run_preprocess(_made_job(folder))


def _tree(folder: Path) -> dict[str, bytes]:
    """Every file of the datasets; what says how a run went is not part of them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("job.json", "result.json")
    }


def _samples(dataset: Dataset) -> dict[str, dict[str, bytes]]:
    """Key → field → bytes."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in range(dataset.manifest.num_shards):
        index, content = dataset.read_index(shard), dataset.shard_path(shard).read_bytes()
        for row, key in enumerate(index.keys):
            found[key] = {}
            for field, suffixes in dataset.manifest.members.items():
                for suffix in suffixes:
                    if suffix in index.offsets and index.offsets[suffix][row] >= 0:
                        start = int(index.offsets[suffix][row])
                        found[key][field] = content[start : start + int(index.sizes[suffix][row])]
    return found


@ray_test
def test_every_field_comes_back_as_it_went_in(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    seen: dict[str, str] = {}
    for split in ("train", "test"):
        dataset = open_dataset(folder / "out" / split)
        assert dataset.manifest.name == f"made/{split}"
        samples = _samples(dataset)
        arrays, bad = Collator(preprocessor_for(dataset, {}, SPECS)).collate(samples.values())
        assert bad == {} and all(arrays[f"{field}.presence"].all() for field in SPECS)
        for row, (key, members) in enumerate(samples.items()):
            i = int(key[1:])
            seen[key] = split
            assert members["image"] == image_bytes(i) and members["audio"] == audio_bytes(i)
            for field in ("series", "points", "vector"):
                assert members[field] == member_of(field, i)[1]
            assert CLASSES[arrays["label"][row]] == CLASSES[class_of(i)]
            assert arrays["number"][row] == pytest.approx(number_of(i))
            assert arrays["text"][row, 0] > 1
    assert sorted(seen) == [f"k{i:03d}" for i in range(_NUM_ROWS)]
    # Speakers are i % 5.
    assert all(seen[f"k{i:03d}"] == seen[f"k{i % 5:03d}"] for i in range(_NUM_ROWS))


@ray_test
def test_shapes_statistics_and_counts_are_those_of_the_data(made: tuple[Path, dict[str, Any]]) -> None:
    folder, result = made
    train, test = (open_dataset(folder / "out" / split).manifest for split in ("train", "test"))
    assert train.fields == test.fields and train.statistics == test.statistics
    fields = {name: spec.model_dump() for name, spec in train.fields.items()}
    assert (fields["image"]["height"], fields["image"]["width"]) == (16, 16)
    assert (fields["audio"]["rate_hz"], fields["audio"]["max_seconds"]) == (8000, 0.2)
    assert (fields["series"]["channels"], fields["series"]["max_length"]) == (3, 20)
    assert (fields["points"]["channels"], fields["points"]["max_points"]) == (4, 12)
    assert fields["vector"]["size"] == 5 and fields["text"]["max_tokens"] == 5
    assert fields["label"]["classes"] == tuple(sorted(CLASSES))
    assert (folder / "out/train/tokenizer.text.json").read_bytes() == (
        folder / "out/test/tokenizer.text.json"
    ).read_bytes()
    keys = [int(key[1:]) for key in _samples(open_dataset(folder / "out/train"))]
    series = np.concatenate([np.load(folder / f"files/series{i}.npy") for i in keys]).astype(np.float64)
    assert train.statistics["series"].mean == pytest.approx(series.mean(axis=0), rel=1e-6)
    assert train.statistics["series"].std == pytest.approx(series.std(axis=0), rel=1e-6)
    assert train.statistics["number"].mean == pytest.approx([np.mean([number_of(i) for i in keys])], rel=1e-6)
    assert set(train.statistics) == {"series", "points", "vector", "number"}
    assert train.label_counts["label"] == {
        name: sum(CLASSES[class_of(i)] == name for i in keys) for name in sorted(CLASSES)
    }
    metrics = result["metrics"]
    assert result["status"] == "done" and result == json.loads((folder / "out/result.json").read_text())
    assert metrics["num_samples"] == {"train": train.num_samples, "test": test.num_samples}
    assert metrics["num_shards"] == train.num_shards + test.num_shards > 2
    assert metrics["size_bytes"] == train.size_bytes + test.size_bytes
    assert metrics["num_absent"] == dict.fromkeys(sorted(SPECS), 0) and metrics["num_empty"] == 0
    assert metrics["samples_per_second"] > 0


@ray_test
def test_running_it_again_touches_no_file(made: tuple[Path, dict[str, Any]]) -> None:
    folder, first = made
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (folder / "out").rglob("*")}
    again = run_preprocess(_made_job(folder))
    assert again["status"] == "unchanged" and again["metrics"] == first["metrics"]
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (folder / "out").rglob("*")} == before


@ray_test
def test_the_bytes_do_not_depend_on_how_many_tasks_write_them(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    one = str(folder / "one")
    run_preprocess(_made_job(folder, output=one, resources={"workers": 1, "cpus_per_worker": 0.5}))
    assert _tree(folder / "one") == _tree(folder / "out")


@ray_test
def test_what_a_dataset_is_does_not_depend_on_the_times_of_the_files(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(made[0], tmp_path / "copy", ignore=shutil.ignore_patterns("out")))
    for file in (copy / "files").iterdir():
        os.utime(file, (1e9, 1e9))
    run_preprocess(_made_job(copy))
    first, second = (open_dataset(folder / "out/train").manifest for folder in (made[0], copy))
    assert first.source != second.source and first.digest == second.digest


@ray_test
def test_a_dataset_that_lost_a_shard_is_made_again(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = made
    shutil.copytree(folder / "out", tmp_path / "out")
    (tmp_path / "out/test/shards/000001.tar").unlink()
    assert run_preprocess(_made_job(folder, output=str(tmp_path / "out")))["status"] == "done"
    assert _tree(tmp_path / "out") == _tree(folder / "out")


@ray_test
def test_other_settings_another_job_or_changed_files_do_not_overwrite_a_dataset(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = made
    before = _tree(folder / "out")
    with pytest.raises(
        OutputFolderError, match=r"was made with other settings \(seed\): seed was 0 and is now 1; choose another"
    ):
        run_preprocess(_made_job(folder, seed=1))
    with pytest.raises(
        OutputFolderError, match="holds a run of the preprocess job 'made', not of the preprocess job 'other'"
    ):
        run_preprocess(_made_job(folder, name="other"))
    image = folder / "files/image3.bin"
    times = image.stat().st_atime_ns, image.stat().st_mtime_ns
    os.utime(image, ns=(1, 1))
    try:
        with pytest.raises(
            OutputFolderError, match=r"was made from another state of .*t\.csv or of the files that it names"
        ):
            run_preprocess(_made_job(folder))
    finally:
        os.utime(image, ns=times)
    write_file(tmp_path / "precious.txt", b"mine")
    with pytest.raises(OutputFolderError, match="exists and is not a run's folder"):
        run_preprocess(_made_job(folder, output=str(tmp_path)))
    assert _tree(folder / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@ray_test
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


@ray_test
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
    samples = _samples(dataset)
    assert "image" not in samples["k001"] and "image" not in samples["k002"] and "text" not in samples["k004"]


@ray_test
def test_a_column_without_a_single_picture_is_refused(local_ray: None, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 6)
    fields = {"image": {"type": "image", "height": 8, "width": 8}, "label": {"type": "label"}}
    job = make_job(write_csv(tmp_path / "t.csv", rows), fields, columns={"image": "audio"}, on_missing="absent")
    with pytest.raises(
        RayMMError, match=r"fields\.image: none of its 6 cells could be used \(row 1: .*audio0\.bin: is not"
    ):
        run_preprocess(job)
    assert not list((tmp_path / "out").glob("*/dataset.json"))


@ray_test
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


@ray_test
def test_killed_in_the_middle_it_never_looks_whole_and_ends_with_the_same_bytes(
    local_ray: None, tmp_path: Path
) -> None:
    write_csv(tmp_path / "t.csv", make_rows(tmp_path, 60))
    splits = {"by": "hash", "group": "speaker", "fractions": {"train": 0.6, "test": 0.4}}
    job = make_job(tmp_path / "t.csv", key="key", shard_size=1, splits=splits)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from ray_mm.config.load import load_job; "
        "from ray_mm.preprocessing.preprocess import run_preprocess; import json; "
        "run_preprocess(load_job(json.loads(Path(sys.argv[1]).read_text())))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "job.json")], env=environment)
    try:
        receipts = tmp_path / "out/.progress"
        deadline = time.monotonic() + 300
        while not receipts.is_dir() or len(list(receipts.iterdir())) < 5:
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert not list((tmp_path / "out").glob("*/dataset.json"))
    for split in ("train", "test"):
        with pytest.raises(DatasetError, match=r"not a|no such"):
            open_dataset(tmp_path / "out" / split)
    time.sleep(1)  # the tasks end with their driver
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/shards/*.tar")}
    assert 5 <= len(done) < 60
    resumed = run_preprocess(job)
    assert resumed["status"] == "done" and sum(resumed["metrics"]["num_samples"].values()) == 60
    kept = [path for path, mtime in done.items() if path.stat().st_mtime_ns == mtime]
    assert len(kept) >= 5
    whole = job.model_copy(update={"output": str(tmp_path / "whole")})
    run_preprocess(whole)
    assert _tree(tmp_path / "out") == _tree(tmp_path / "whole")


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


@ray_test
def test_clips_become_frames_and_their_sound_another_field(local_ray: None, tmp_path: Path) -> None:
    rows = []
    for i in range(4):
        write_file(tmp_path / f"clips/{i}.bin", video_bytes(10 + i, sound_seconds=1.0))
        rows.append({"clip": f"clips/{i}.bin" if i else "", "y": i})
    fields = {"clip": {"type": "video", "num_frames": 3}, "sound": {"type": "audio"}, "y": FIELDS["number"]}
    job = make_job(write_csv(tmp_path / "t.csv", rows), fields, columns={"sound": "clip"})
    run_preprocess(job)
    dataset = open_dataset(tmp_path / "out/train")
    assert dataset.manifest.fields["clip"] == VideoField(num_frames=3, height=48, width=64)
    sound = dataset.manifest.fields["sound"]
    assert isinstance(sound, AudioField) and sound.rate_hz == 16000
    assert dataset.manifest.presence == {"clip": 3, "sound": 3, "y": 4}
    assert dataset.manifest.members["clip"] == ("clip.mp4",) and dataset.manifest.members["sound"] == ("sound.mp4",)
    (batch,) = read_batches(sequence(dataset), preprocessor_for(dataset, {}, fields), 4)
    assert sorted(batch["clip.length"].tolist()) == [0, 3, 3, 3] and batch["weight"].all()
    assert (batch["sound.length"][batch["sound.presence"]] > 15000).all()
    (table,) = [table for table in inspect_dataset(tmp_path / "out/train").tables if table.title == "fields"]
    assert table.rows[0][:3] == ("clip", "video", "uint8 [3, 48, 64, 3]")


def test_a_job_with_clips_needs_pyav_and_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    job = make_job(write_csv(tmp_path / "t.csv", [{"clip": "a.mp4"}]), {"clip": {"type": "video"}})
    with pytest.raises(UsageError, match=r"fields\.clip \(video\) needs PyAV; install it with pip install"):
        run_preprocess(job)
    assert not (tmp_path / "out").exists()
