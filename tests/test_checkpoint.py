"""A checkpoint comes back as it was, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_mm.checkpoint import (
    MODEL_FILE,
    PREPROCESSOR_FILE,
    WEIGHTS_FILE,
    load_checkpoint,
    load_description,
    resolve_checkpoint,
    save_checkpoint,
    save_description,
)
from ray_mm.errors import CheckpointError
from ray_mm.models.multimodal import MultimodalModel
from tests.models.batches import FIELDS, model_config, noise, preprocessor_of, seeded_model

CONFIG = model_config(["image", "text", "vector"])


def write_checkpoint(folder: Path, metrics: dict[str, float] | None = None) -> MultimodalModel:
    model = seeded_model(CONFIG)
    save_checkpoint(folder, model.state_dict(), CONFIG, preprocessor_of(CONFIG), metrics or {})
    return model


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("fusion", ["concat", "gated", "cross_attention"])
def test_a_checkpoint_rebuilds_the_model(fusion: str, tmp_path: Path) -> None:
    config = model_config(FIELDS, fusion)
    model, preprocessor = seeded_model(config), preprocessor_of(config)
    save_checkpoint(tmp_path / "checkpoint", model.state_dict(), config, preprocessor, {"accuracy": 0.5})
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    assert checkpoint.config == config and checkpoint.preprocessor == preprocessor
    assert checkpoint.metrics == {"accuracy": 0.5} and checkpoint.path == tmp_path / "checkpoint"
    rebuilt = checkpoint.build()
    assert not rebuilt.training
    with torch.no_grad():
        assert torch.equal(rebuilt(noise(config, 3)), model(noise(config, 3)))


def test_building_leaves_the_random_numbers_of_the_caller_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    checkpoint.build()
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_replaces_an_earlier_one_in_its_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"accuracy": 0.1})
    write_checkpoint(tmp_path, {"accuracy": 0.2})
    assert load_checkpoint(tmp_path).metrics == {"accuracy": 0.2}
    assert sorted(file.name for file in tmp_path.iterdir()) == [MODEL_FILE, WEIGHTS_FILE, PREPROCESSOR_FILE]


@pytest.mark.parametrize("place", [0, 200, -1])
def test_a_flipped_byte_in_the_weights_is_noticed(place: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    content = bytearray((tmp_path / WEIGHTS_FILE).read_bytes())
    content[place] ^= 1
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its SHA-256 digest is .*model\.json says"):
        load_checkpoint(tmp_path)


def test_weights_cut_short_are_noticed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    content = (tmp_path / WEIGHTS_FILE).read_bytes()
    (tmp_path / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="digest"):
        load_checkpoint(tmp_path)


def test_a_changed_preprocessor_is_noticed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    edit(tmp_path / PREPROCESSOR_FILE, statistics={})
    with pytest.raises(CheckpointError, match=r"preprocessor\.json: its SHA-256 digest"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("file", [MODEL_FILE, PREPROCESSOR_FILE])
def test_a_newer_format_is_refused(file: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    edit(tmp_path / file, version=99)
    with pytest.raises(CheckpointError, match=r"version 99, this ray_mm reads versions 1 to \d+; upgrade"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("file", [MODEL_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "best"
    write_checkpoint(folder)
    (tmp_path / "job.json").write_text('{"kind": "train"}')
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match="no checkpoint yet" if file == MODEL_FILE else file):
        load_checkpoint(folder if file != MODEL_FILE else tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": "else"}', "\x00"])
def test_a_file_that_is_not_ours_is_refused(content: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / MODEL_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"model": {}}, {"metrics": None}, {"metrics": {"accuracy": "much"}}, {"model": "gated"}]
)
def test_a_damaged_description_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    edit(tmp_path / MODEL_FILE, **changes)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    other = model_config(["image", "text", "vector"], dim=24)
    edit(tmp_path / MODEL_FILE, model=other.model_dump(mode="json"))
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_checkpoint(tmp_path).build()


def test_a_run_means_its_best_checkpoint_and_else_its_last(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"kind": "train"}')
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        resolve_checkpoint(tmp_path)
    write_checkpoint(tmp_path / "last")
    assert resolve_checkpoint(tmp_path) == tmp_path / "last"
    write_checkpoint(tmp_path / "best")
    assert resolve_checkpoint(str(tmp_path)) == tmp_path / "best"
    assert resolve_checkpoint(tmp_path / "last") == tmp_path / "last"


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="neither a train run nor a checkpoint"):
        resolve_checkpoint(tmp_path)
    (tmp_path / "job.json").write_text('{"kind": "evaluate"}')
    with pytest.raises(CheckpointError, match="neither a train run nor a checkpoint"):
        resolve_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="s3://"):
        resolve_checkpoint("s3://bucket/run")


def test_a_description_without_weights_is_no_checkpoint(tmp_path: Path) -> None:
    save_description(tmp_path, CONFIG, preprocessor_of(CONFIG), {"accuracy": 0.5}, digest=None)
    assert load_description(tmp_path).config == CONFIG
    with pytest.raises(CheckpointError, match="is an artifact"):
        load_checkpoint(tmp_path)


def test_loading_runs_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for name in ("pickle.load", "pickle.loads", "torch.load"):
        monkeypatch.setattr(name, refuse)
    assert load_checkpoint(tmp_path).build().state_dict()
