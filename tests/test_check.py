"""What a job names is looked at without torch, Ray or Arrow, and judged as the run would."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_mm.check import check_job
from ray_mm.config.fields import LabelField
from ray_mm.config.load import load_job
from ray_mm.config.source import TrainSource
from ray_mm.config.train import TrainJob
from ray_mm.data.manifest import open_dataset, write_dataset
from ray_mm.data.row_cache import cache_notices
from ray_mm.data.samples import plan_samples
from ray_mm.errors import CheckpointError, DatasetError, OutputFolderError, UsageError
from ray_mm.training.train import plan_training
from tests.config.jobs import SMALLEST
from tests.factories import SPECS, edit_manifest, make_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, a table and a train run's best checkpoint, as far as small files say what they are."""
    folder = tmp_path_factory.mktemp("checked")
    make_dataset(folder / "train", 6)
    make_dataset(folder / "poor", 6, ("audio", "label"))
    (folder / "table.csv").write_text("\ufeffimage,label,speaker\na.png,x,1\n", encoding="utf-8")
    (folder / "semicolons.csv").write_text("image;label\na.png;x\n")
    (folder / "empty.csv").touch()
    make_dataset(folder / "patchy", 6, missing={"audio": 0.5})
    make_dataset(folder / "soundless", 6, ("image", "label"))
    write_model(folder / "run" / "best")
    (folder / "run" / "job.json").write_text('{"kind": "train"}')
    return folder


def write_model(folder: Path, **changes: Any) -> None:
    folder.mkdir(parents=True)
    content = {"format": "ray_mm.model", "version": 1, "model": SMALLEST["train"]["model"]} | changes
    (folder / "model.json").write_text(json.dumps(content))
    fields = {name: SPECS[name].model_dump() for name in ("audio", "image", "label")}
    preprocessor = {"format": "ray_mm.preprocessor", "version": 1, "fields": fields}
    (folder / "preprocessor.json").write_text(json.dumps(preprocessor))


def check(folder: Path, kind: str, **overrides: Any) -> list[str]:
    places = {
        "preprocess": {"table": folder / "table.csv"},
        "train": {"data.train": folder / "train"},
        "evaluate": {"data": folder / "train", "checkpoint": folder / "run"},
        "predict": {"data": folder / "train", "checkpoint": folder / "run"},
        "compress": {"data": folder / "train", "calibration_data": folder / "train", "checkpoint": folder / "run"},
    }[kind]
    return check_job(load_job(SMALLEST[kind], places | {"output": folder / "out"} | overrides))


def test_what_a_preprocess_job_names_is_found(folder: Path) -> None:
    table, columns = check(folder, "preprocess")
    assert table.startswith(f"table: {folder / 'table.csv'}, ")
    assert columns == "columns: image, label, speaker"


@pytest.mark.parametrize("kind", ["preprocess", "evaluate", "compress"])
def test_when_a_job_comes_next_is_told_and_where_schedulers_would_differ(folder: Path, kind: str) -> None:
    assert not any("schedule" in line for line in check(folder, kind))
    same = {"cron": "0 4 * * *", "timezone": "Europe/Berlin"}
    (line,) = [line for line in check(folder, kind, schedule=same) if "schedule" in line]
    assert line.startswith("schedule: 0 4 * * * in Europe/Berlin; next ") and " 04:00 CE" in line
    _, late, twice = [
        line for line in check(folder, kind, schedule={**same, "cron": "30 2 * * *"}) if "schedule" in line
    ]
    assert "clocks go forward over that time" in late and "02:30 comes twice, because clocks go back" in twice


def test_what_a_train_job_names_is_found(folder: Path) -> None:
    train, validation, steps, *warnings = check(folder, "train", **{"data.validation": folder / "train"})
    assert train.startswith(f"data.train: {folder / 'train'}, 6 samples of audio (audio), image (image), label (label)")
    assert validation.startswith("data.validation: ")
    assert steps == "train: 10 steps: 10 epochs of 1 step, 128 samples each"
    too_large, same = warnings
    assert too_large.startswith("warning: data.batch_size: 128 is more than the 6 samples of an epoch")
    assert same.startswith("warning: data.validation: these are samples that the model is trained on")


def test_few_steps_are_told_and_a_usual_training_is_not_warned_about(folder: Path) -> None:
    half = {"path": str(folder / "train"), "limit": 3}
    *_, steps, warning = check(folder, "train", **{"data.train": [half, str(folder / "train")], "data.batch_size": 2})
    assert steps == "train: 50 steps: 10 epochs of 5 steps, 2 samples each"
    assert warning.startswith("warning: train.epochs: the training has only 50 steps")
    lines = check(folder, "train", **{"data.batch_size": 2, "train.epochs": 50, "data.validation": half})
    assert lines[-1] == "train: 150 steps: 50 epochs of 3 steps, 2 samples each"


def test_rare_classes_are_told_of_where_nothing_is_done_about_them(folder: Path, tmp_path: Path) -> None:
    def rare(content: dict[str, Any]) -> None:
        content["label_counts"] = {"label": {"left": 5, "right": 50, "stop": 30}}

    edit_manifest(make_dataset(tmp_path / "rare", 6), rare)

    def told(**overrides: Any) -> list[str]:
        lines = check(folder, "train", **{"data.train": str(tmp_path / "rare")} | overrides)
        return [line for line in lines if line.startswith("warning: model.task")]

    (line,) = told()
    assert "of 'label' the class 'left' has 5 samples and 'right' 50" in line
    assert "model.task.logit_adjustment" in line and "data.balance" in line
    for settings in (
        {"model.task.loss": "focal"},
        {"model.task.class_weights": "balanced"},
        {"model.task.logit_adjustment": 1.0},
        {"data.balance": {"label": "label"}},
        {"data.train": {"path": str(tmp_path / "rare"), "where": {"label": ["left"]}}},
        {"data.train": str(folder / "train")},
        # Together with the other dataset it is less than ten to one.
        {"data.train": [str(tmp_path / "rare"), str(folder / "train")]},
    ):
        assert told(**settings) == [], settings


def test_steps_that_only_an_index_can_tell_are_left_out(folder: Path) -> None:
    (train,) = check(folder, "train", **{"data.train": {"path": str(folder / "patchy"), "require": ["audio"]}})
    assert train.startswith(f"data.train: {folder / 'patchy'}, at most ") and " of 6 samples of audio" in train


def test_of_a_part_the_samples_that_take_part_are_told(folder: Path) -> None:
    part = {"path": str(folder / "train"), "fraction": 0.5}
    train, steps, *_ = check(folder, "train", **{"data.train": part, "data.batch_size": 2})
    assert train.startswith(f"data.train: {folder / 'train'}, 3 of 6 samples of audio")
    assert steps == "train: 20 steps: 10 epochs of 2 steps, 2 samples each"
    _, scored = check(folder, "evaluate", data={"path": str(folder / "train"), "where": {"label": ["left"]}})
    counts = open_dataset(folder / "train").manifest.label_counts["label"]
    assert scored.startswith(f"data: {folder / 'train'}, {counts['left']} of 6 samples of ")
    weighted = [{"path": str(folder / "train"), "weight": weight} for weight in (1, 3)]
    _, _, steps, *_ = check(folder, "train", **{"data.train": weighted, "data.batch_size": 2})
    assert steps == "train: 60 steps: 10 epochs of 6 steps, 2 samples each"


def test_what_caches_will_not_do_is_told_as_the_training_does(folder: Path, tmp_path: Path) -> None:
    quiet = {"data.batch_size": 2, "train.epochs": 50, "data.cache.decoded.folder": tmp_path / "cache"}
    image = {"type": "image", "random_crop": {"scale": [0.5, 1]}}
    cropped = quiet | {"data.cache.decoded.size": "1GB", "data.fields.image": image}
    notice = "warning: data.cache.decoded: image with random_crop can't be kept"
    assert check(folder, "train", **cropped)[-1].startswith(notice)
    # Twelve rows of a picture of 16 × 16, its presence, its class and its key.
    half = quiet | {"data.cache.decoded.size": 6 * (16 * 16 * 3 + 1 + 8 + 1 + 256 + 4)}
    make_dataset(tmp_path / "validation", 6, seed=1)
    *_, told = check(folder, "train", **half, **{"data.validation": tmp_path / "validation"})
    assert told.startswith(
        "warning: data.cache.decoded.size: 6.2 kB hold 50% of the decoded samples, which need 12.5 kB"
    )
    for overrides in (half, cropped):
        job = load_job(SMALLEST["train"], {"data.train": folder / "train", "output": folder / "out"} | overrides)
        assert isinstance(job, TrainJob) and job.data.cache.decoded is not None
        found = cache_notices(job.data.cache.decoded, [open_dataset(folder / "train")], plan_training(job).preprocessor)
        told = [line for line in check(folder, "train", **overrides) if line.startswith("warning: data.cache")]
        assert told == [f"warning: {text}" for text in found]


def test_a_cache_that_is_too_small_for_the_shuffle_is_refused_as_the_training_does(
    folder: Path, tmp_path: Path
) -> None:
    cached = {"data.cache.remote": {"folder": str(tmp_path / "cache"), "size": "64MiB"}}
    check(folder, "train", **cached)
    with pytest.raises(
        UsageError, match=r"data\.cache\.remote\.size: 67,108,864 bytes are less than .* a window of the shuffle"
    ):
        check(folder, "train", **cached, **{"data.train": elsewhere(folder / "train", tmp_path / "remote")})


def elsewhere(dataset: Path, folder: Path) -> Path:
    """The same dataset, its shards large and in a store that nobody has asked yet."""
    shutil.copytree(dataset, folder)
    opened = open_dataset(folder)
    known = opened.manifest
    shards = [
        replace(shard, path=f"s3://nowhere/{number}.tar", version=f"etag:{number}", size_bytes=10**9)
        for number, shard in enumerate(opened.shards)
    ]
    write_dataset(
        folder,
        shards=shards,
        **{key: getattr(known, key) for key in ("name", "fields", "members", "presence", "label_counts", "statistics")},
    )
    return folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"require": ["radar"]}, r"data\.train\.require: .*train has no field 'radar'; it has audio, image, label, "),
        ({"where": {"label": ["cat"]}}, r"data\.train\.where\.label: has no class 'cat'; .* are left, right, stop\."),
        ({"where": {"image": ["cat"]}}, r"data\.train\.where: 'image' is not a class label .* are label\."),
    ],
)
def test_a_part_that_the_dataset_does_not_have_is_refused_as_the_run_does(
    folder: Path, overrides: dict[str, Any], message: str
) -> None:
    part = {"path": str(folder / "train"), **overrides}
    with pytest.raises(DatasetError, match=message):
        check(folder, "train", **{"data.train": part})
    with pytest.raises(DatasetError, match=message):
        plan_samples([TrainSource.model_validate(part)], None, None)
    with pytest.raises(DatasetError, match=message.replace("train", "validation", 1)):
        check(folder, "train", **{"data.validation": part})
    for kind, key in (("evaluate", "data"), ("compress", "calibration_data")):
        with pytest.raises(DatasetError, match=message.replace(r"data\.train", key, 1)):
            check(folder, kind, **{key: part})


def test_a_class_that_no_sample_has_and_a_balance_without_classes_are_refused(folder: Path) -> None:
    def empty(content: dict[str, Any]) -> None:
        content["label_counts"]["label"] = {"left": 0, "right": 3, "stop": 3}

    make_dataset(folder / "leftless", 6)
    edit_manifest(folder / "leftless", empty)
    with pytest.raises(DatasetError, match=r"nothing of .*leftless is left by require, where"):
        check(folder, "evaluate", data={"path": str(folder / "leftless"), "where": {"label": ["left"]}})
    with pytest.raises(DatasetError, match=r"data\.balance\.label: 'image' is not a class label of data\.train"):
        check(folder, "train", **{"data.balance": {"label": "image"}})


def test_an_output_folder_of_another_job_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"kind": "evaluate", "name": "score"}')
    with pytest.raises(OutputFolderError, match="holds a run of the evaluate job 'score', not of the train job 'fit'"):
        check(folder, "train", output=tmp_path)


@pytest.mark.parametrize("kind", ["evaluate", "predict", "compress"])
def test_what_a_job_on_a_checkpoint_names_is_found(folder: Path, kind: str) -> None:
    checkpoint, *datasets = check(folder, kind)
    assert checkpoint == f"checkpoint: {folder / 'run' / 'best'}, classify label from image"
    assert len(datasets) == {"evaluate": 1, "predict": 1, "compress": 2}[kind]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"table": "absent.csv"}, "absent.csv: no such file"),
        ({"table": "table.xlsx"}, "must end in .csv, .jsonl or .parquet"),
        ({"root": "absent"}, "root: .*absent is not a folder"),
        ({"fields.imagee": {"type": "image"}}, "fields.imagee: .* has no column 'imagee'; did you mean 'image'"),
        ({"columns": {"image": "xyzzy"}}, "columns.image: .* no column 'xyzzy'; its columns are image, label, speaker"),
        ({"key": "idd"}, "key: .* has no column 'idd'; its columns are image, label, speaker"),
        ({"table": "semicolons.csv"}, r"its only column is 'image;label'\. Is it separated by \";\"\?"),
        ({"table": "empty.csv"}, "empty.csv: the table is empty"),
        ({"splits": {"by": "column", "column": "splt"}}, "splits.column: .* has no column 'splt'"),
        ({"splits": {"by": "hash", "group": "speakr"}}, "splits.group: .* did you mean 'speaker'"),
    ],
)
def test_what_a_preprocess_job_names_wrongly_is_told(folder: Path, overrides: dict[str, Any], message: str) -> None:
    if "table" in overrides:
        overrides = overrides | {"table": folder / overrides["table"]}
    with pytest.raises(UsageError, match=message):
        check(folder, "preprocess", **overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"data.train": "absent"},
            "absent: no such dataset folder; .* starts from the folder where the command is given, now /",
        ),
        ({"model.fields": {"camera": {}}}, "model.fields.camera: the dataset has no field 'camera'"),
        (
            {"model.task.label": "action"},
            "model.task.label: the dataset has no field 'action'; labels are label, number",
        ),
        ({"model.task.label": "number"}, "classify needs a label with target class, .* set model.task.type to regress"),
        (
            {"model.task": {"type": "regress", "label": "label"}},
            r"make the dataset again with label: \{type: label, target: number\}, or, to tell its 3 classes apart",
        ),
        ({"model.fields": {"image": {"encoder": "mlp"}}}, "'mlp' does not take a field of type image"),
        (
            {"train.augment.fields": {"image": {"noise": 0.1}}},
            "train.augment.fields.image.noise: this can't be done to",
        ),
        ({"train.augment.mixup": 0.2, "data.batch_size": 7}, "train.augment.mixup mixes pairs of neighbours"),
        ({"data.fields": {"camera": {"type": "image"}}}, "data.fields.camera: the dataset has no such field"),
    ],
)
def test_what_does_not_fit_the_dataset_is_told(folder: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(folder, "train", **overrides)


def test_a_validation_dataset_without_an_input_is_told(folder: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"data.validation: .*poor has no field 'image', .* fields are audio, label\."
    ):
        check(folder, "train", **{"data.validation": folder / "poor"})


def test_a_dataset_whose_field_is_of_another_type_is_told(folder: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path, 6, ("image", "label"))
    edit_manifest(tmp_path, lambda content: content["fields"].update(image={"type": "vector", "size": 3}))
    message = "data.train.1: .*: field 'image' is of type vector, in the first training dataset it is of type image"
    with pytest.raises(DatasetError, match=message):
        check(folder, "train", **{"data.train": [str(folder / "train"), str(tmp_path)]})


def test_a_dataset_whose_members_are_written_in_another_way_is_told(folder: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path, 6, ("image", "label"))
    edit_manifest(tmp_path, lambda content: content["fields"]["label"].update(written_as="name"))
    message = "data.validation: .* does not fit the model: label.written_as is 'name', the model has 'number'"
    with pytest.raises(DatasetError, match=message):
        check(folder, "train", **{"data.validation": tmp_path})


def test_a_dataset_that_does_not_fit_the_checkpoint_is_told(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"calibration_data: .*poor does not fit the model: has no field 'image'\."):
        check(folder, "compress", calibration_data=folder / "poor")


def test_scored_data_may_lack_an_input_and_not_all_of_them(folder: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "two", model={**SMALLEST["train"]["model"], "fields": {"audio": {}, "image": {}}})
    for kind in ("evaluate", "compress"):
        lines = check(folder, kind, checkpoint=tmp_path / "two", data=folder / "soundless")
        assert "data: has no field 'audio': absent in every sample" in lines
    make_dataset(tmp_path / "other", 6, ("vector", "label"))
    with pytest.raises(DatasetError, match="it has none of the fields that the model reads, audio, image"):
        check(folder, "evaluate", checkpoint=tmp_path / "two", data=tmp_path / "other")
    make_dataset(tmp_path / "unlabelled", 6, ("image", "audio"))
    with pytest.raises(DatasetError, match="has no field 'label'"):
        check(folder, "evaluate", checkpoint=tmp_path / "two", data=tmp_path / "unlabelled")
    assert len(check(folder, "predict", checkpoint=tmp_path / "two", data=tmp_path / "unlabelled")) == 2
    make_dataset(tmp_path / "others", 6, ("image", "label"), specs={"label": LabelField(classes=("a", "b", "c"))})
    with pytest.raises(DatasetError, match="label has classes that the model does not know"):
        check(folder, "evaluate", data=tmp_path / "others")
    assert len(check(folder, "predict", data=tmp_path / "others")) == 2, "a label is not looked at"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": "ray_mm.dataset", "version": 99}', "format version 99, this ray_mm reads versions 1 to"),
        ('{"format": "ray_mm.dataset", "version": "1"}', "format version '1'"),
        ('{"format": "other"}', "has format 'other'"),
        ('{"format": "ray_mm.dataset", "version": 1}', "is damaged"),
        (
            '{"format": "ray_mm.dataset", "version": 1, "num_samples": 1, "fields": {"a": {"type": "smell"}}}',
            "is damaged",
        ),
        ("[]", "holds no JSON object"),
        ("{", "can't be read"),
    ],
)
def test_a_dataset_that_can_not_be_read_is_told(folder: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        check(folder, "train", **{"data.train": tmp_path})


def test_a_dataset_that_was_changed_by_hand_is_told(folder: Path, tmp_path: Path) -> None:
    content = {"format": "ray_mm.dataset", "version": 1, "num_samples": 1, "fields": {}, "crc32c": "00000000"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"expected '00000000': it is damaged, or was changed by hand"):
        check(folder, "train", **{"data.train": tmp_path})


def test_a_train_run_without_a_checkpoint_is_told_as_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"kind": "train"}')
    with pytest.raises(CheckpointError, match="the train run has no model yet; run the job that makes it"):
        check(folder, "evaluate", checkpoint=tmp_path)


def test_a_folder_without_a_model_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        check(folder, "evaluate", checkpoint=tmp_path)


@pytest.mark.parametrize("place", ["", "last"])
def test_a_model_is_found_in_its_folder_or_in_its_run(folder: Path, tmp_path: Path, place: str) -> None:
    write_model(tmp_path / "run" / place)
    (tmp_path / "run" / "job.json").write_text('{"kind": "train"}')
    found = check(folder, "evaluate", checkpoint=tmp_path / "run")[0]
    assert found.startswith(f"checkpoint: {tmp_path / 'run' / place}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "format version 99"),
        ({"model": {}}, "is damaged; train again"),
        ({"format": "x"}, "format 'x'"),
    ],
)
def test_a_model_that_can_not_be_read_is_told(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_model(tmp_path / "model", **changes)
    with pytest.raises(CheckpointError, match=message):
        check(folder, "evaluate", checkpoint=tmp_path / "model")
