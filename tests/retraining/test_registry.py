"""The registry: which model is in use is decided once, and a damaged one never is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_mm.check import check_job
from ray_mm.config.base import map_locations
from ray_mm.config.load import load_job
from ray_mm.config.predict import PredictJob
from ray_mm.errors import (
    CheckpointError,
    DatasetError,
    LeaseLost,
    OutputFolderError,
    RegistryError,
    WriteConflictError,
)
from ray_mm.predictor import load_predictor
from ray_mm.registered import absolute, is_registered, parse_reference, pinned, registered_folder
from ray_mm.retraining.registry import Registry, model_names
from ray_mm.running import run_job
from ray_mm.storage.folders import digest_of
from ray_mm.storage.remote import put_if_match, stat
from tests.evaluation.scenes import make_scene
from tests.retraining.models import lineage, write_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return [write_checkpoint(folder / str(number), number / 10) for number in range(4)]


@pytest.fixture
def registry(tmp_path: Path, checkpoints: list[Path]) -> Registry:
    """Three versions, of which none is in use."""
    found = Registry(tmp_path / "registry", "driving")
    for number, checkpoint in enumerate(checkpoints[:3], start=1):
        assert found.register(checkpoint, lineage(f"night-{number}")) == number
    return found


def test_a_version_knows_where_it_comes_from(registry: Registry, checkpoints: list[Path]) -> None:
    registry.promote(1, expected=None)
    number = registry.register(checkpoints[3], lineage("night-4", parent=1))
    version = registry.version(number)
    assert (version.number, version.kind, version.denied, version.aliases) == (4, "checkpoint", None, ())
    assert version.lineage == lineage("night-4", parent=1)
    assert registry.version("champion").number == 1 and registry.version("champion").aliases == ("champion",)
    assert model_names(registry.root) == ["driving"]


def test_registering_again_gives_the_same_version(registry: Registry, checkpoints: list[Path]) -> None:
    assert registry.register(checkpoints[1], lineage("night-2")) == 2
    # Another run may come to the same files; that is a version of its own.
    assert registry.register(checkpoints[1], lineage("night-9")) == 4
    assert len(list((Path(registry.root) / "driving" / "versions").iterdir())) == 3


def test_the_run_that_made_it_may_be_removed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "run")
    registry = Registry(tmp_path / "registry", "driving")
    registry.register(folder, lineage("night-1"))
    shutil.rmtree(folder)
    registry.promote(1, expected=None)
    assert load_predictor(f"registry:{registry.root}#driving@champion").input_fields == ["vector"]


def test_promotion_keeps_the_one_before(registry: Registry) -> None:
    assert registry.champion() is None and registry.previous() is None
    registry.promote(1, expected=None, by="night-1")
    registry.promote(2, expected=1, fence=7)
    assert (registry.champion(), registry.previous()) == (2, 1)
    registry.promote(2, expected=1, fence=7)  # again: after a crash, say
    registry.promote(1, expected=2)
    assert (registry.champion(), registry.previous()) == (1, 2)
    told = [(event.action, event.version, event.before, event.by, event.fence) for event in registry.history()]
    assert told == [
        ("promote", 1, None, "night-1", None),
        ("promote", 2, 1, "", 7),
        ("promote", 1, 2, "", None),
    ]


def test_a_challenger_that_was_compared_with_another_one_is_not_promoted(registry: Registry) -> None:
    registry.promote(1, expected=None)
    with pytest.raises(
        WriteConflictError, match=r"version 2 was not promoted. It was compared with none, and the champion is"
    ):
        registry.promote(2, expected=None)
    registry.promote(3, expected=1)
    with pytest.raises(WriteConflictError, match="compared with version 1, and the champion is version 3"):
        registry.promote(2, expected=1)
    assert registry.champion() == 3


def test_a_lease_that_was_lost_promotes_nothing(registry: Registry, checkpoints: list[Path]) -> None:
    registry.promote(1, expected=None, fence=1)
    registry.admit(2)
    for attempt in (
        lambda: registry.promote(2, expected=1, fence=1),
        lambda: registry.register(checkpoints[3], lineage("night-4"), fence=1),
        lambda: registry.deny(2, fence=1),
    ):
        with pytest.raises(LeaseLost, match="number 1, and a later one has been here with 2"):
            attempt()
    assert registry.champion() == 1 and len(registry.versions()) == 3


def test_rolling_back_denies_the_one_that_was(registry: Registry) -> None:
    registry.promote(1, expected=None)
    registry.promote(2, expected=1)
    registry.promote(3, expected=2)
    assert registry.rollback("wrong labels", by="a person") == 2
    assert (registry.champion(), registry.previous()) == (2, 1)
    assert registry.version(3).denied == "wrong labels"
    with pytest.raises(RegistryError, match=r"version 3 is denied \(wrong labels\)"):
        registry.promote(3, expected=2)
    assert registry.rollback() == 1
    with pytest.raises(RegistryError, match="there is no previous"):
        registry.rollback()
    assert registry.champion() == 1
    assert [event.action for event in registry.history()] == ["promote"] * 3 + ["rollback"] * 2


def test_a_denied_version_is_never_gone_back_to(registry: Registry) -> None:
    registry.promote(1, expected=None)
    registry.promote(2, expected=1)
    registry.promote(3, expected=2)
    registry.deny(2, "leaks")
    assert registry.previous() == 1
    with pytest.raises(RegistryError, match="version 3 is the champion; roll back"):
        registry.deny(3)
    registry.deny(2, "again")
    assert registry.version(2).denied == "leaks" and registry.rollback() == 1


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_version_is_neither_promoted_nor_loaded(registry: Registry, damage: str) -> None:
    registry.promote(1, expected=None)
    registry.promote(2, expected=1)
    weights = Path(registry.version(1).location) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content) if damage == "changed" else weights.unlink()
    for attempt in (
        lambda: registry.promote(1, expected=2),
        lambda: registry.rollback(),
        lambda: registered_folder(f"registry:{registry.root}#driving@previous"),
    ):
        with pytest.raises(RegistryError, match=r"model\.safetensors: is missing or was changed"):
            attempt()
    assert registry.champion() == 2


def test_registering_again_mends_what_is_damaged(registry: Registry, checkpoints: list[Path]) -> None:
    (Path(registry.version(1).location) / "model.safetensors").write_bytes(b"x")
    registry.register(checkpoints[0], lineage("night-1"))
    assert registry.verify(1).number == 1
    registry.promote(1, expected=None)
    assert registry.champion() == 1


def test_what_is_no_whole_model_is_not_registered(registry: Registry, checkpoints: list[Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints[3], tmp_path / "copy"))
    (folder / "model.safetensors").write_bytes(b"x")
    for wrong, text in ((folder, "SHA-256 digest"), (tmp_path / "none", "no such folder")):
        with pytest.raises(CheckpointError, match=text):
            registry.register(wrong, lineage("night-4"))
    assert len(registry.versions()) == 3


def test_a_registry_that_a_newer_version_wrote_is_not_touched(registry: Registry, checkpoints: list[Path]) -> None:
    file = Path(registry.place)
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 2}))
    before = file.read_bytes()
    for attempt in (
        lambda: registry.champion(),
        lambda: registry.promote(1, expected=None),
        lambda: registry.register(checkpoints[3], lineage("night-4")),
        lambda: registered_folder(f"registry:{registry.root}#driving"),
    ):
        with pytest.raises(
            RegistryError, match=r"newer version of ray_mm \(format version 2, this one reads 1 to 1\); upgrade"
        ):
            attempt()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        {"versions": {"1": {}}},
        {"versions": []},
        {"versions": {"x": {}}},
        {"champions": [9]},
        {"champions": 3},
        {"versions": {"1": {"files": {"../../../.bashrc": {"sha256": "0", "size": 1}}}}},
        {"versions": {"1": {"digest": "../../.."}}},
        {"versions": {"1": {"files": {"/etc/x": {"sha256": "0", "size": 1}}}}},
    ],
)
def test_a_registry_whose_document_is_damaged_or_leads_elsewhere_is_refused(
    registry: Registry, damage: dict[str, Any], checkpoints: list[Path]
) -> None:
    file = Path(registry.place)
    content = json.loads(file.read_text())
    if isinstance(damage.get("versions"), dict) and damage["versions"].get("1"):
        # All else of the version is as it should be.
        content["versions"]["1"] |= damage["versions"]["1"]
        if "files" in damage["versions"]["1"]:
            content["versions"]["1"]["digest"] = digest_of(content["versions"]["1"]["files"])
    else:
        content |= damage
    file.write_text(json.dumps(content))
    before = file.read_bytes()
    for attempt in (
        lambda: registry.versions(),
        lambda: registry.promote(2, expected=None),
        lambda: registry.register(checkpoints[3], lineage("night-4")),
        lambda: registered_folder(f"registry:{registry.root}#driving@2"),
    ):
        with pytest.raises(RegistryError, match=r"registry\.json: is damaged"):
            attempt()
    assert file.read_bytes() == before


def test_a_registry_in_a_store_is_the_same(
    bucket: str, checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_MM_REGISTRY_CACHE", str(tmp_path / "cache"))
    registry = Registry(f"s3://{bucket}/registry", "driving")
    for number in (1, 2):
        registry.register(checkpoints[number], lineage(f"night-{number}"))
        registry.promote(number, expected=registry.champion())
    name = f"registry:s3://{bucket}/registry#driving@champion"
    folder = registered_folder(name)
    assert folder.parent == tmp_path / "cache"
    for file in checkpoints[2].iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    # A file of the cache that was damaged is fetched again.
    (folder / "model.json").write_text("x")
    assert load_predictor(name).input_fields == ["vector"]
    url = f"{registry.version(1).location}/model.json"
    put_if_match(url, b"x", stat(url))
    with pytest.raises(RegistryError, match=r"model\.json: is missing or was changed"):
        registry.rollback()
    assert registry.champion() == 2 and model_names(registry.root) == ["driving"]


def test_a_model_is_named_by_registry_name_and_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(parse_reference("runs/registry#driving")) == f"registry:{tmp_path}/runs/registry#driving@champion"
    assert str(parse_reference("registry:s3://b/r#driving@4")) == "registry:s3://b/r#driving@4"
    assert is_registered("registry:x#y") and not is_registered("runs/registry#y")


@pytest.mark.parametrize(
    "wrong", ["", "registry:", "x", "x#", "#x", "x#y@best", "x#y@0", "x#y@-1", "x#../y", "x#y/z", "x#.y@1", "x#y@1@2"]
)
def test_what_names_no_model_is_refused(wrong: str) -> None:
    with pytest.raises(RegistryError, match="no model of a registry; expected registry:<root>#<name>@champion"):
        parse_reference(wrong)


@pytest.mark.parametrize(
    ("which", "text"),
    [
        ("#walking@1", "no such model"),
        ("#driving@9", "no version 9; its versions are: 1, 2, 3"),
        ("#driving", "no champion yet"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(registry: Registry, which: str, text: str) -> None:
    with pytest.raises(RegistryError, match=text):
        registered_folder(f"registry:{registry.root}{which}")


def test_moving_aliases_needs_nothing_heavy(registry: Registry) -> None:
    code = f"""
import sys
from ray_mm.retraining.registry import Registry
Registry({registry.root!r}, "driving").promote(1, expected=None)
print(sorted({{"torch", "ray", "numpy", "pydantic", "pyarrow", "mlflow", "obstore"}} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "[]\n", ran.stderr
    assert registry.champion() == 1


def test_an_alias_means_one_version_from_the_start_of_a_job_to_its_end(registry: Registry, tmp_path: Path) -> None:
    registry.promote(1, expected=None)
    name = f"registry:{registry.root}#driving"
    settings = {"kind": "predict", "name": "p", "data": "d", "output": "o"}
    job = PredictJob.model_validate({**settings, "checkpoint": f"{name}@champion"})
    begun = map_locations(job, pinned)
    registry.promote(2, expected=1)
    assert begun.checkpoint == f"{name}@1" == pinned(begun.checkpoint) and pinned(job.checkpoint) == f"{name}@2"
    other = PredictJob.model_validate({**settings, "checkpoint": "runs/train"})
    assert map_locations(other, pinned) is other
    # Its folder is its own until another version is promoted; then the same job asks for another model.
    output = tmp_path / "output"
    output.mkdir()
    (output / "job.json").write_text(begun.model_copy(update={"output": str(output)}).model_dump_json())
    with pytest.raises(OutputFolderError, match=r"checkpoint was '.*#driving@1' and is now '.*#driving@2'"):
        check_job(job.model_copy(update={"output": str(output)}))
    with pytest.raises(DatasetError, match="no such dataset"):
        check_job(begun.model_copy(update={"output": str(output)}))
    # Submitted from elsewhere it is the alias that travels, with the place of the registry in full.
    assert map_locations(job, absolute).checkpoint == f"{name}@champion"


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_job_takes_a_model_by_its_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scene = make_scene(tmp_path / "scene", ["vector"], num_samples=20)
    Registry("registry", "driving").register(scene.checkpoint, lineage("night-1"))
    Registry("registry", "driving").promote(1, expected=None)
    settings = {"kind": "evaluate", "name": "score", "data": str(scene.dataset.root), "output": "run"}
    job = {**settings, "checkpoint": "registry:registry#driving@champion"}
    (line, *_) = check_job(load_job(job))
    assert line.startswith(f"checkpoint: {tmp_path}/registry/driving/versions/")
    result = run_job(job)
    assert result["metrics"]["num_samples"] == 20
    written = json.loads((tmp_path / "run" / "job.json").read_text())
    assert written["checkpoint"] == f"registry:{tmp_path}/registry#driving@1"
