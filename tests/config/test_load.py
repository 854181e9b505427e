"""A job file is loaded as written, or refused in one paragraph that says where and what to change."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings

from ray_mm.config.load import JOB_KINDS, job_schema, load_job, parse_overrides, placed
from ray_mm.config.train import TrainJob
from ray_mm.errors import JobFileError
from tests.config.jobs import SMALLEST, jobs

REPOSITORY = Path(__file__).parents[2]
TRAIN = """\
kind: train
name: fit
data:
  train: data/train
model:
  fields:
    image: {encoder: cnn}
  task: {type: classify, label: label}
train:
  epochs: 3
output: runs/fit
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(source: Any, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(JobFileError) as caught:
        load_job(source, overrides)
    message = str(caught.value)
    assert "\n" not in message, "an error is one paragraph"
    return message


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_the_smallest_job_of_every_kind_loads(kind: str) -> None:
    assert load_job(SMALLEST[kind]).kind == kind


def test_a_file_and_its_content_give_the_same_job(write: Write) -> None:
    assert load_job(write(TRAIN)) == load_job(yaml.safe_load(TRAIN))


@settings(max_examples=150)
@given(content=jobs)
def test_any_valid_job_dumps_and_reloads_to_itself(content: dict[str, Any]) -> None:
    job = load_job(content)
    dumped = job.model_dump(mode="json")
    assert load_job(dumped) == job
    # A run's folder holds the job as JSON, which is YAML, too.
    assert load_job(json.loads(json.dumps(dumped))) == job


@settings(max_examples=30)
@given(content=jobs)
def test_the_schema_accepts_what_loads_and_what_is_dumped(content: dict[str, Any]) -> None:
    dumped = load_job(content).model_dump(mode="json")
    assert list(jsonschema.Draft202012Validator(job_schema()).iter_errors(content)) == []
    assert list(jsonschema.Draft202012Validator(job_schema(content["kind"])).iter_errors(dumped)) == []


@pytest.mark.parametrize("kind", [None, *JOB_KINDS])
def test_the_schema_is_valid_draft_2020_12(kind: str | None) -> None:
    schema = job_schema(kind)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


def test_every_key_of_the_schema_says_what_it_is() -> None:
    schema = job_schema()
    silent = [
        f"{name}.{key}"
        for name, section in schema["$defs"].items()
        for key, value in section.get("properties", {}).items()
        if not value.keys() & {"description", "const", "$ref"} and key != "name"
    ]
    assert silent == []


def test_a_schema_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(JobFileError, match="no job kind 'trian'; kinds are preprocess, train"):
        job_schema("trian")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "jobs").glob("**/*.yaml")), ids=str)
def test_every_job_of_the_repository_loads_and_fits_the_schema(path: Path) -> None:
    job = load_job(path)
    assert list(jsonschema.Draft202012Validator(job_schema()).iter_errors(job.model_dump(mode="json"))) == []


def test_a_misspelled_key_names_the_file_the_line_and_the_nearest_key(write: Write) -> None:
    path = write(TRAIN.replace("epochs", "epoch"))
    assert refusal(path) == f"{path}:10: train.epoch: unknown key 'epoch'; did you mean 'epochs'?"


def test_a_key_in_the_wrong_section_is_sent_to_the_right_one(write: Write) -> None:
    message = refusal(write(TRAIN.replace("epochs: 3", "lr: 0.1")))
    assert "job.yaml:10: train.lr: unknown key 'lr'; it belongs under train.optimizer (train.optimizer.lr)." in message


def test_a_key_that_resembles_none_lists_the_valid_keys(write: Write) -> None:
    message = refusal(write(TRAIN + "xyzzy: 1\n"))
    assert "job.yaml:12: xyzzy: unknown key 'xyzzy'; valid keys here are data, kind, model" in message


def test_a_misspelled_key_below_a_name_of_the_users_finds_the_nearest(write: Write) -> None:
    message = refusal(write(TRAIN.replace("encoder", "encodr")))
    assert "job.yaml:7: model.fields.image.encodr: unknown key 'encodr'; did you mean 'encoder'?" in message


def test_a_misspelled_key_in_a_tagged_section_finds_the_nearest(write: Write) -> None:
    message = refusal(write(TRAIN.replace("label: label", "labl: label")))
    assert "job.yaml:8: model.task.labl: unknown key 'labl'; did you mean 'label'?" in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.epochs", "three", "train.epochs: input should be a valid integer; found 'three'."),
        ("train.epochs", True, "train.epochs: input should be a valid integer; found True."),
        ("train.epochs", "3", "train.epochs: input should be a valid integer; found '3'; write it without quotes."),
        ("train.epochs", None, "train.epochs: input should be a valid integer; found nothing."),
        ("train.epochs", 0, "train.epochs: input should be greater than or equal to 1; found 0."),
        ("train.optimizer.lr", float("nan"), "train.optimizer.lr: input should be a finite number; found nan."),
        ("train.optimizer.betas", [0.9], "train.optimizer.betas.1: this key is required and is missing."),
        ("train.optimizer.betas", [0.9, 1.0], "train.optimizer.betas.1: input should be less than 1; found 1.0."),
        ("name", 7, "name: input should be a valid string; found 7."),
        ("name", "7up", "name: string should match pattern"),
        ("output", "", "output: string should have at least 1 character; found ''."),
        ("data", ["data/train"], "data: input should be an object; found ['data/train']."),
        ("train.precision", "fp23", "must be one of auto, bf16, fp16, tf32, fp32; found 'fp23'. Did you mean 'fp32'?"),
        (
            "model.task.type",
            "clasify",
            "model.task.type: must be one of classify, multilabel, regress, segment, grid, retrieve, reconstruct, several; found "
            "'clasify'.",
        ),
        ("model.task", {"label": "label"}, "model.task.type: this key is required and is missing"),
        ("model.fields", {}, "model.fields: dictionary should have at least 1 item"),
        ("model.fields", {"a.b": {}}, "model.fields.a.b: string should match pattern"),
        ("data.fields.image", {"type": "depth"}, "data.fields.image.type: must be one of image, text, audio, video"),
        ("data.fields.y", {"type": "label", "classes": ["a", "a"]}, "data.fields.y: classes must differ"),
        ("model.task.label", "image", "job: model.task.label 'image' is also an input field of the model."),
        ("resources.workers", 500, "job: data.batch_size 128 is smaller than resources.workers 500"),
    ],
)
def test_a_wrong_value_is_told_with_what_was_expected(key: str, value: Any, expected: str) -> None:
    assert expected in refusal(SMALLEST["train"], {key: value})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("shard_size", "12 parsecs", "shard_size: expected a size such as 256MB or 64MiB, found '12 parsecs'."),
        ("shard_size", 0, "shard_size: input should be greater than 0; found 0."),
        ("splits", {"by": "hash", "fractions": {"train": 0.5}}, "fractions must add up to 1, found 0.5."),
        ("splits", {"by": "hsh"}, "splits.by: must be one of column, hash; found 'hsh'. Did you mean 'hash'?"),
        ("columns", {"sound": "path"}, "columns.sound: no such field; fields are image, label."),
        ("columns", {"image": ["a", "b"]}, "columns.image: only a vector takes a list of columns."),
        ("columns", {"image": 3}, "columns.image: input should be a valid string; found 3."),
        ("on_missing", "ignore", "on_missing: must be one of error, absent; found 'ignore'."),
    ],
)
def test_a_wrong_value_of_a_preprocess_job_is_told_with_what_was_expected(key: str, value: Any, expected: str) -> None:
    assert expected in refusal(SMALLEST["preprocess"], {key: value})


def test_a_missing_key_points_at_its_section(write: Write) -> None:
    message = refusal(write(TRAIN.replace("  train: data/train\n", "  batch_size: 4\n")))
    assert "job.yaml:3: data.train: this key is required and is missing." in message


def test_the_first_wrong_line_is_told_in_full_and_the_others_by_name(write: Write) -> None:
    message = refusal(
        write(TRAIN.replace("output:", "outptu:").replace("epochs: 3", "epochs: x").replace("fit\n", "7\n"))
    )
    assert ":2: name: " in message
    assert message.endswith("Also wrong: outptu, train.epochs.")


def test_a_list_is_not_too_short_because_what_is_in_it_is_wrong() -> None:
    told = refusal(SMALLEST["train"], {"data.train": [{"path": "data/train", "fraction": 1.5}]})
    assert told.endswith("data.train.0.fraction: input should be less than or equal to 1; found 1.5.")
    assert "data.train: tuple should have at least 1 item" in refusal(SMALLEST["train"], {"data.train": []})


def test_what_is_missing_is_not_called_wrong() -> None:
    content = {key: value for key, value in SMALLEST["train"].items() if key not in ("model", "output")}
    message = refusal(content | {"name": 7})
    assert message.endswith("found 7. Also missing: model, output.")


def test_a_section_at_the_left_margin_is_sent_to_where_it_belongs() -> None:
    message = refusal(SMALLEST["train"], {"fusion": {"method": "gated"}})
    assert "unknown key 'fusion'; it belongs under model (model.fusion). Valid keys here are data, kind" in message
    assert "unknown key 'epochs'; it belongs under train (train.epochs)." in refusal(SMALLEST["train"], {"epochs": 3})


def test_a_message_about_a_key_gets_the_line_of_the_key(write: Write) -> None:
    path = write(TRAIN)
    line = 1 + TRAIN.splitlines().index("  train: data/train")
    place = Path("data/train").absolute()
    assert placed("data.train: is odd.", str(path), {}) == f"{path}:{line}: data.train: is odd."
    assert placed(f"{place}: no such dataset.", str(path), {}).startswith(
        f"{path}:{line}: data.train: {place}: no such"
    )
    assert placed("data.train.limit: is odd.", str(path), {"data.train": "x"}).startswith(
        f"{path} with data.train='x': "
    )
    for other in ("nothing of the kind.", "http: is no key.", "fit is a name"):
        assert placed(other, str(path), {}) == other


def test_many_wrong_keys_are_counted_not_listed() -> None:
    message = refusal(SMALLEST["train"], {f"train.wrong{number}": 1 for number in range(9)})
    assert message.endswith("and 5 more.")


@pytest.mark.parametrize("value", ["trian", ["train"], None, 3])
def test_a_wrong_kind_is_told_with_its_line(write: Write, value: Any) -> None:
    path = write(TRAIN.replace("kind: train", f"kind: {json.dumps(value)}"))
    assert (
        f"{path}:1: kind must be one of preprocess, train, evaluate, predict, compress, tune, retrain; found {value!r}."
        in refusal(path)
    )


def test_a_misspelled_kind_is_told_the_nearest() -> None:
    assert refusal({"kind": "trian"}).endswith("found 'trian'. Did you mean 'train'?")


def test_a_job_without_a_kind_is_told_so() -> None:
    assert refusal({"name": "x"}).endswith("the key is missing.")


def test_an_override_replaces_a_value_and_leaves_the_callers_content_alone() -> None:
    content = deepcopy(SMALLEST["train"])
    job = load_job(content, {"train.epochs": 7, "model.fields.image.size": "base"})
    assert isinstance(job, TrainJob)
    assert (job.train.epochs, job.model.fields["image"].size) == (7, "base")
    assert content == SMALLEST["train"]


def test_a_wrong_override_is_told_as_one_and_not_by_a_line_of_the_file(write: Write) -> None:
    path = write(TRAIN)
    assert refusal(path, {"train.epochs": "x"}).startswith(f"{path} with train.epochs='x': train.epochs: input should")


def test_an_override_of_an_unknown_key_finds_the_nearest() -> None:
    message = refusal(SMALLEST["train"], {"train.optimiser.lr": 1})
    assert "train.optimiser: unknown key 'optimiser'; did you mean 'optimizer'?" in message


def test_a_path_from_python_is_taken_as_its_text() -> None:
    assert load_job(SMALLEST["train"], {"output": Path("runs") / "here"}).output == "runs/here"


def test_lists_become_tuples_so_that_a_job_can_not_change() -> None:
    job = load_job(SMALLEST["compress"], {"latency.batch_sizes": [1, 8]})
    assert job.kind == "compress" and job.latency.batch_sizes == (1, 8)


@pytest.mark.parametrize(
    ("written", "size"), [(1000, 1000), (1e9, 10**9), ("256MB", 256 * 10**6), ("64 MiB", 2**26), ("1.5kb", 1500)]
)
def test_a_size_is_a_number_of_bytes_or_has_a_unit(written: Any, size: int) -> None:
    job = load_job(SMALLEST["preprocess"], {"shard_size": written})
    assert job.kind == "preprocess" and job.shard_size == size


def test_set_arguments_are_yaml_values() -> None:
    assignments = ["train.epochs=3", "a.b=1e-3", "name=x=y", "c=[1, 2]", "d=", "e=no"]
    expected = {"train.epochs": 3, "a.b": 1e-3, "name": "x=y", "c": [1, 2], "d": None, "e": "no"}
    assert parse_overrides(assignments) == expected


@pytest.mark.parametrize("assignment", ["train.epochs", "=3", "a..b=1", ".a=1"])
def test_a_set_argument_without_key_and_value_is_refused(assignment: str) -> None:
    with pytest.raises(JobFileError, match=r"--set takes KEY=VALUE, such as train\.epochs=3; found"):
        parse_overrides([assignment])


def test_a_set_argument_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(JobFileError, match=r"--set a: the value '\[1' is not YAML"):
        parse_overrides(["a=[1"])


def test_decoded_samples_are_kept_for_a_training_only() -> None:
    cache = {"decoded": {"folder": "cache", "size": "10GB"}}
    job = load_job(SMALLEST["train"], {"data.cache": cache})
    assert isinstance(job, TrainJob) and job.data.cache.decoded is not None
    assert job.data.cache.decoded.size == 10**10
    # An evaluation reads every sample once.
    assert "cache.decoded" in refusal(SMALLEST["evaluate"], {"cache": cache})
    for kept in ("decoded", "remote"):
        elsewhere = {f"data.cache.{kept}": {"folder": "s3://bucket/cache", "size": "10GB"}}
        told = refusal(SMALLEST["train"], elsewhere)
        assert f"data.cache.{kept}.folder: expected a folder on a disk" in told and "'s3://bucket/cache'" in told
