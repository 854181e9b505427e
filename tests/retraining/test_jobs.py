"""The jobs of a night: what is trained on, with which weights, and what is in the shards."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_mm.config.load import load_job
from ray_mm.config.retrain import RetrainJob
from ray_mm.config.source import TrainSource, train_sources
from ray_mm.data.manifest import ShardInfo, open_dataset, write_dataset
from ray_mm.errors import DatasetError
from ray_mm.retraining.jobs import (
    Old,
    compress_job,
    evaluate_job,
    held_out_before,
    incoming_fields,
    index_job,
    lost_source,
    old_data,
    train_job,
    unchanged,
)
from ray_mm.storage.remote import stat
from tests.factories import edit_manifest, make_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "train", 90, ("vector", "label", "text"), seed=1)
    make_dataset(tmp_path / "new", 20, ("vector", "label"), seed=2)
    return tmp_path


def retrain_job(folder: Path, **settings: Any) -> RetrainJob:
    job = load_job(
        {
            "kind": "retrain",
            "name": "small",
            "arrivals": str(folder / "in"),
            "base": {
                "kind": "train",
                "name": "small",
                "data": {"train": str(folder / "train"), "batch_size": 8},
                "model": {"fields": {"vector": {}}, "task": {"type": "classify", "label": "label"}},
                "output": "unused",
            },
            "frozen_test": str(folder / "test"),
            "output": str(folder / "retrain"),
        },
        settings,
    )
    assert isinstance(job, RetrainJob)
    return job


def weights(job: RetrainJob, folder: Path, champion: Path | None, nights: int = 1) -> tuple[list[Any], int | None]:
    old = [Old(TrainSource(path=str(folder / "train")), 90)]
    old += [Old(TrainSource(path=f"night-{number}"), 30) for number in range(nights)]
    made = train_job(job, folder / "new", old, champion, folder / "run")
    return [(Path(each.path).name, each.weight) for each in train_sources(made.data.train)], made.data.epoch_samples


def test_a_warm_epoch_has_every_new_sample_once_and_its_share_of_old_ones(folder: Path) -> None:
    found, epoch = weights(retrain_job(folder), folder, folder / "champion")
    assert found == [("train", 15.0), ("night-0", 5.0), ("new", 20.0)] and epoch == 40
    found, epoch = weights(retrain_job(folder, replay=0.75), folder, folder / "champion")
    assert found == [("train", 45.0), ("night-0", 15.0), ("new", 20.0)] and epoch == 80
    # The train job's own size of an epoch stays; then the weights are its shares.
    assert weights(retrain_job(folder, **{"base.data.epoch_samples": 7}), folder, folder / "champion")[1] == 7


def test_datasets_that_the_train_job_weights_keep_their_weights_among_each_other(folder: Path) -> None:
    own = [{"path": str(folder / "train"), "weight": 0.75}, {"path": str(folder / "new"), "weight": 0.25, "limit": 10}]
    job = retrain_job(folder, **{"base.data.train": own})
    old, _ = old_data(job, [], {})
    assert [each.num_samples for each in old] == [90, 10]
    old = [*old, Old(TrainSource(path="night"), 100)]

    def made(champion: Path | None) -> list[float | None]:
        training = train_job(job, folder / "new", old, champion, folder / "run")
        return [each.weight for each in train_sources(training.data.train)]

    assert made(None) == [75.0, 25.0, 100.0, 20.0], "all data, as much of each as there is"
    assert made(folder / "champion") == [7.5, 2.5, 10.0, 20.0]


def test_where_there_is_little_old_data_all_of_it_is_taken_as_it_comes(folder: Path) -> None:
    found, epoch = weights(retrain_job(folder, replay=0.9), folder, folder / "champion")
    assert found == [("train", None), ("night-0", None), ("new", None)] and epoch is None


def test_without_replay_only_new_samples_are_trained_on(folder: Path) -> None:
    assert weights(retrain_job(folder, replay=0), folder, folder / "champion") == ([("new", None)], None)


def test_fresh_weights_get_all_data_as_it_comes(folder: Path) -> None:
    found, epoch = weights(retrain_job(folder), folder, None)
    assert found == [("train", None), ("night-0", None), ("new", None)] and epoch is None


def test_a_warm_training_begins_with_the_whole_champion_shrunk(folder: Path) -> None:
    job = retrain_job(folder, **{"warm_start": {"shrink": 0.5, "perturb": 0.25}, "base.seed": 3})
    old = [Old(TrainSource(path=str(folder / "train")), 90)]
    made = train_job(job, folder / "new", old, folder / "champion", folder / "run")
    initial = made.train.initial
    assert initial is not None and initial.parts == ("encoders", "fusion", "head")
    assert (initial.checkpoint, initial.shrink, initial.perturb) == (str(folder / "champion"), 0.5, 0.25)
    assert made.output == str(folder / "run")
    # All else is the train job's.
    kept = {"data": {"train", "epoch_samples"}, "train": {"init_from"}, "output": True}
    assert made.model_dump(exclude=kept) == job.train.model_dump(exclude=kept)


def test_fields_and_members_are_those_of_the_training_data_unless_they_are_said(folder: Path) -> None:
    first = open_dataset(folder / "train")
    fields, members = incoming_fields(retrain_job(folder), first)
    assert fields == {name: first.manifest.fields[name] for name in ("label", "vector")} and members == {}
    edit_manifest(folder / "train", lambda manifest: manifest["members"].update(vector=["x.npy"]))
    other = open_dataset(folder / "train")
    assert incoming_fields(retrain_job(folder), other)[1] == {"vector": ("x.npy",)}
    said = {
        "arrivals": {
            "shards": "in",
            "members": {"label": "json"},
            "fields": {"label": {"type": "label", "path": "kind"}},
        }
    }
    fields, members = incoming_fields(retrain_job(folder, **said), first)
    assert members == {"label": ("json",)} and fields["label"].path == "kind"  # type: ignore[union-attr]
    with pytest.raises(DatasetError, match="has no field 'image', which the model needs"):
        incoming_fields(retrain_job(folder, **{"base.model.fields": {"image": {}}}), first)


def test_new_samples_are_divided_by_their_keys(folder: Path) -> None:
    job = index_job(
        retrain_job(folder, holdout=0.25, seed=4), ["a.tar"], folder / "data", open_dataset(folder / "train")
    )
    assert job.splits.fractions == {"train": 0.75, "newest": 0.25}  # type: ignore[union-attr]
    assert job.seed == 4 and job.on_missing == "absent" and job.shards == ("a.tar",)


def test_a_night_whose_shards_are_not_what_they_were_is_not_replayed(folder: Path) -> None:
    nights = []
    for name in ("one", "two", "three"):
        night = folder / name
        make_dataset(night / "data" / "train", 10, ("vector", "label"), num_shards=1)
        nights.append(night)
    shutil.rmtree(nights[1] / "data")
    dataset = open_dataset(nights[0] / "data" / "train")
    info = stat(dataset.location(0))
    there = {
        info.url: type(info)(info.url, info.size, dataset.shards[0].version),
        dataset.location(0).replace("/one/", "/three/"): info,  # of another version
    }
    old, lost = old_data(retrain_job(folder), nights, there)
    assert [Path(each.source.path).parts[-3] for each in old[1:]] == ["one"]
    assert old[0].num_samples == 90 and lost == ["two", "three"]


def test_a_window_has_what_is_left_of_earlier_nights(folder: Path) -> None:
    for name in ("one", "two"):
        make_dataset(folder / name / "data" / "newest", 10, ("vector", "label"), num_shards=2)
    dataset = open_dataset(folder / "one" / "data" / "newest")
    there = {
        dataset.location(number): replace(stat(dataset.location(number)), version=version)
        for number, version in enumerate((dataset.shards[0].version, "another"))
    }
    nights = [folder / name for name in ("one", "gone", "two")]
    # Of the second one nothing is listed, and files have another version than what ray_mm wrote.
    assert held_out_before(nights, there) == [dataset.location(0)]


def test_a_training_that_was_planned_with_a_night_needs_its_shards(folder: Path) -> None:
    night = folder / "nights" / "one" / "data" / "train"
    make_dataset(night, 10, ("vector", "label"), num_shards=1)
    old = [Old(TrainSource(path=str(folder / "train")), 90), Old(TrainSource(path=str(night)), 10)]
    planned = train_job(retrain_job(folder), folder / "new", old, None, folder / "run").model_dump(mode="json")
    # These shards were written by ray_mm, so their version is no time of a file; a tar that came in has one.
    assert lost_source(planned, folder / "nights") == str(night)
    assert lost_source(planned, folder / "elsewhere" / "nights") is None, "it is the train job's own"
    dataset = open_dataset(night)
    info = stat(dataset.location(0))
    table = pq.read_table(night / "shards.parquet").to_pylist()
    write_dataset(
        night,
        name="one",
        shards=[ShardInfo(**{**table[0], "path": info.url, "version": info.version})],
        fields=dataset.manifest.fields,
        members=dataset.manifest.members,
        presence=dataset.manifest.presence,
        label_counts=dataset.manifest.label_counts,
        statistics=dataset.manifest.statistics,
    )
    assert lost_source(planned, folder / "nights") is None
    Path(info.url).unlink()
    assert lost_source(planned, folder / "nights") == str(night)
    shutil.rmtree(night)
    assert lost_source(planned, folder / "nights") == str(night)


def test_what_a_listing_does_not_have_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"x")
    version = stat(str(path)).version
    assert unchanged({str(path): version, str(tmp_path / "b.tar"): version}, {}) == [str(path)]
    assert unchanged({str(path): "mtime:1"}, {}) == []


def test_models_are_scored_and_compressed_as_the_job_says(folder: Path) -> None:
    settings = {"evaluate": {"batch_size": 7, "subsets": "full"}, "compress": {"gate": {"max_metric_drop": 0.5}}}
    job = retrain_job(folder, **settings)
    scored = evaluate_job(job, folder / "model", job.frozen_test, folder / "scores")
    assert (scored.batch_size, scored.subsets, scored.data) == (7, "full", job.frozen_test)
    compressed = compress_job(job, folder / "model", folder / "compress")
    assert compressed.gate.max_metric_drop == 0.5
    assert (compressed.calibration_data, compressed.data) == (str(folder / "train"), job.frozen_test)
