"""Locations in a job are found at any depth."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ray_mm.config.base import map_locations
from ray_mm.config.load import load_job
from tests.config.jobs import SMALLEST

LOCATIONS = {
    "preprocess": {"table", "root", "output"},
    "train": {"data.train", "data.validation", "output"},
    "evaluate": {"checkpoint", "data", "output"},
    "predict": {"checkpoint", "data", "output"},
    "compress": {"checkpoint", "calibration_data", "data", "output"},
    "tune": {"job.data.train", "job.data.validation", "job.output", "output"},
    "retrain": {"arrivals", "base.data.train", "base.output", "frozen_test", "output"},
}
OVERRIDES = {"preprocess": {"root": "files"}, "train": {"data.validation": "data/small/validation"}}


@pytest.mark.parametrize("kind", SMALLEST)
def test_every_location_of_a_job_is_changed_and_nothing_else(kind: str) -> None:
    job = load_job(SMALLEST[kind], OVERRIDES.get(kind))
    moved = map_locations(job, lambda location: f"/elsewhere/{location}")
    before, after = flat(job.model_dump(mode="json")), flat(moved.model_dump(mode="json"))
    changed = {key for key in before if before[key] != after[key]}
    assert changed == LOCATIONS[kind]
    assert all(after[key] == f"/elsewhere/{before[key]}" for key in changed)


def test_folders_and_sections_stand_side_by_side() -> None:
    job = load_job(SMALLEST["train"], {"data.train": ["a", {"path": "b", "weight": 2}]})
    moved = map_locations(job, lambda location: f"/elsewhere/{location}").model_dump(mode="json")["data"]["train"]
    assert (moved[0], moved[1]["path"], moved[1]["weight"]) == ("/elsewhere/a", "/elsewhere/b", 2)
    assert map_locations(job, lambda location: location) is job


def test_an_unset_location_stays_unset() -> None:
    job = map_locations(load_job(SMALLEST["preprocess"]), lambda location: "/x")
    assert job.kind == "preprocess" and job.root is None


def test_a_loaded_job_can_not_be_changed() -> None:
    job = load_job(SMALLEST["train"])
    with pytest.raises(ValidationError, match="frozen"):
        job.output = "elsewhere"  # type: ignore[misc]


def flat(content: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(content, dict):
        return {prefix.removesuffix("."): content}
    return {key: value for name, inner in content.items() for key, value in flat(inner, f"{prefix}{name}.").items()}
