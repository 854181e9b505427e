"""A model that is divided over the ranks learns what a whole one does, and goes on from either's checkpoints."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import checkpoint as dcp

from ray_mm.checkpoint import load_checkpoint
from ray_mm.config.load import load_job
from ray_mm.config.train import SETTLED, TrainJob
from ray_mm.errors import OutputFolderError, StorageError, UsageError
from ray_mm.models.multimodal import build_model
from ray_mm.run_folder import check_output
from ray_mm.tensor_files import Part, read_tensors
from ray_mm.training import sharding
from ray_mm.training.ledger import audit
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.profile import profile_folder, read_profiles
from ray_mm.training.resume import force_resume
from ray_mm.training.saving import save_state
from ray_mm.training.sharding import Writers
from ray_mm.training.snapshot import Snapshot
from ray_mm.training.state import (
    attempt_starts,
    begin_attempt,
    initial_state,
    latest_checkpoint,
    read_state,
)
from ray_mm.training.train import plan_training
from tests.factories import SPECS, make_dataset
from tests.training.inprocess import batches, curve, make_training, newest, train
from tests.training.together import Start, train_together

INPUTS = tuple(name for name in SPECS if name not in ("label", "number"))
ALL = 1
"""Every layer is divided by itself, however small."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    make_dataset(folder / "train", 40, num_shards=2, missing={"series": 0.3})
    make_dataset(folder / "validation", 10, num_shards=1, seed=1)
    return folder


def _training(data: Path, run: str, fields: tuple[str, ...] = ("vector",), **overrides: Any) -> Training:
    encoders: dict[str, dict[str, Any]] = {name: {"dropout": 0.0} for name in fields}
    if "text" in encoders:
        encoders["text"]["encoder"] = "transformer"
    settings: dict[str, Any] = {
        "data.batch_size": 9,
        "model.fields": encoders,
        "model.fusion": {"method": "gated", "dim": 16, "dropout": 0.0},
        "train.epochs": 1,
        "train.optimizer.lr": 0.01,
        "train.checkpoints": {"every_steps": 2, "keep_last": 9},
    }
    return make_training(data, run, fields, **(settings | overrides))


SETTINGS: dict[str, tuple[tuple[str, ...], dict[str, Any], float]] = {
    "everything": (
        INPUTS,
        {
            "model.fusion": {"method": "cross_attention", "dim": 16, "dropout": 0.0},
            "train.clip_norm": 0.5,
            "train.ema": 0.9,
            "train.micro_batches": 3,
            "train.freeze": {"encoders.text": 0.4, "encoders.series": 1},
            "train.optimizer": {"lr": 0.01, "layer_decay": 0.8, "parts": {"head": 2}},
        },
        1e-4,
    ),
    "recomputed": (("text", "vector"), {"train.activation_checkpointing": True, "train.skip_bad_steps": 1}, 1e-5),
    "recurrent": (
        ("series", "vector"),
        {"model.fields": {"series": {"encoder": "recurrent", "dropout": 0.0}, "vector": {"dropout": 0.0}}},
        1e-5,
    ),
    "augmented and profiled": (
        ("image", "series"),
        {
            "data.batch_size": 8,
            "train.augment": {
                "fields": {"image": {"color": {"brightness": 0.4}, "erase": 0.5}, "series": {"noise": 0.1}},
                "mixup": 0.4,
                "cutmix": 1.0,
            },
            "train.profile": {"start": 2, "steps": 2},
        },
        1e-4,
    ),
    # Its matrices are made orthogonal in bf16.
    "muon": (("vector",), {"train.optimizer": {"name": "muon", "lr": 0.01}, "model.fusion.method": "concat"}, 1e-2),
    "bf16": (INPUTS, {"train.precision": "bf16"}, 0.05),
    "fp16": (INPUTS, {"train.precision": "fp16"}, 0.02),
}


def test_a_divided_model_learns_what_a_whole_one_does(data: Path, tmp_path: Path) -> None:
    starts = {
        (name, parallel): Start(
            _training(data, f"{name}-{parallel}", fields, **settings, **{"train.parallel": parallel}),
            workers=2,
            min_unit=ALL if name == "everything" else sharding._MIN_UNIT,
        )
        for name, (fields, settings, _) in SETTINGS.items()
        for parallel in ("ddp", "fsdp")
    }
    train_together(list(starts.values()), tmp_path / "rendezvous")
    for name, (_, _, close) in SETTINGS.items():
        ddp, fsdp = (starts[name, parallel].training for parallel in ("ddp", "fsdp"))
        assert curve(fsdp) == pytest.approx(curve(ddp), abs=close), name
        # What is published is whole, and is a model like any other.
        ours, theirs = (load_checkpoint(training.run / "last").build().state_dict() for training in (fsdp, ddp))
        assert ours.keys() == theirs.keys()
        if close <= 1e-4:
            for key, tensor in ours.items():
                torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-3)
        assert (load_checkpoint(fsdp.run / "best").metrics["loss"]) == pytest.approx(
            read_state(newest(fsdp)).best["loss"]
        )
    assert read_state(newest(starts["fp16", "fsdp"].training)).loss_scale["scale"] > 1
    profiled = starts["augmented and profiled", "fsdp"].training
    config = profiled.job.train.profile
    assert config is not None
    for rank, found in enumerate(read_profiles(profile_folder(profiled.run, config))):
        assert (found.rank, found.world_size, found.first_step, found.num_steps) == (rank, 2, 2, 2)
        assert found.parts["all-reduce"] > 0 and min(found.parts.values()) >= 0
    # Moments and averages, too, each rank's in a file of its own.
    for kind in ("optimizer", "average"):
        ours, theirs = (
            read_tensors(newest(starts["everything", parallel].training), kind) for parallel in ("fsdp", "ddp")
        )
        assert ours.keys() == theirs.keys() and ours
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-4)
    names = {path.name for path in newest(starts["everything", "fsdp"].training).iterdir()}
    assert names == {"training.json", "model.json", "preprocessor.json"} | {
        f"{kind}-0000{rank}-of-00002.safetensors" for kind in ("model", "optimizer", "average") for rank in (1, 2)
    }


def test_a_training_goes_on_in_another_way_and_with_other_workers(data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train.ema": 0.9, "train.epochs": 2}
    calm = _training(data, "calm", **settings)
    ways = [("fsdp", 2), ("ddp", 1), ("fsdp", 3), ("ddp", 2), ("fsdp", 2), ("fsdp", 1)]
    changing = {way: _training(data, "changing", **settings, **{"train.parallel": way}) for way in ("ddp", "fsdp")}
    last = calm.schedule.num_items
    stops = [2, 4, 6, 8, 10, None]
    assert last > 10
    starts = [
        Start(changing[way], workers, stop, min_unit=ALL) for (way, workers), stop in zip(ways, stops, strict=True)
    ]
    train_together([Start(calm, 1), *starts], tmp_path / "rendezvous")
    run = changing["ddp"]
    assert curve(run) == pytest.approx(curve(calm), abs=1e-5)
    first_items = attempt_starts(run.run)
    assert [first_items[number] for number in sorted(first_items)] == [0, 2, 4, 4, 8, 10]  # a validation is begun again
    assert all(epoch.exact for epoch in audit(run.run / "ledger", run.schedule, first_items))
    published = [load_checkpoint(training.run / "last").state for training in (run, calm)]
    for name, tensor in published[0].items():
        torch.testing.assert_close(tensor, published[1][name], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def saved(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training of two ranks with several checkpoints in parts."""
    training = _training(data, "saved", ("image", "vector"), **{"train.parallel": "fsdp"})
    train_together([Start(training, 2)], tmp_path_factory.mktemp("ranks") / "rendezvous")
    return training


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_part_of_any_rank_makes_its_checkpoint_be_passed_over(
    saved: Training, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(saved.run / "checkpoints", tmp_path / "checkpoints")
    *_, before, latest = sorted((tmp_path / "checkpoints").iterdir())
    assert latest_checkpoint(tmp_path) == latest
    part = latest / "optimizer-00002-of-00002.safetensors"
    content = part.read_bytes()
    match damage:
        case "cut":
            part.write_bytes(content[:-1])
        case "changed":
            part.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "gone":
            part.unlink()
    assert latest_checkpoint(tmp_path) == before


def test_a_checkpoint_in_parts_is_a_checkpoint_like_any_other(saved: Training) -> None:
    weights = load_checkpoint(newest(saved)).state
    published = load_checkpoint(saved.run / "last").state
    assert weights.keys() == published.keys()
    assert all(torch.equal(tensor, published[name]) for name, tensor in weights.items())
    assert "digest" not in json.loads((newest(saved) / "training.json").read_text())


def test_a_checkpoint_in_parts_goes_on_with_other_settings_by_force(saved: Training, tmp_path: Path) -> None:
    shutil.copytree(saved.run, tmp_path / "run")
    job = saved.job.model_copy(update={"output": str(tmp_path / "run")})
    (tmp_path / "run" / "job.json").write_text(job.model_dump_json())
    changes: dict[str, Any] = {
        "train.epochs": 2,
        "train.optimizer.lr": 1e-3,
        "seed": 5,
        "resources.workers": {"min": 1, "max": 2},
    }
    changed = load_job(job.model_dump(mode="json"), changes)
    assert isinstance(changed, TrainJob)
    training = plan_training(changed)
    with pytest.raises(OutputFolderError, match="resume force"):
        check_output(changed, SETTLED)
    force_resume(training, SETTLED, job.model_dump(mode="json"))
    assert list(newest(training).glob("optimizer-*-of-00002.safetensors"))
    train(training)  # divided for two, it goes on with one
    state = read_state(newest(training))
    assert (state.step, state.epochs) == (training.schedule.num_steps, 2)
    starts = attempt_starts(training.run)
    assert starts[2] == training.schedule.items_per_epoch
    *_, last = audit(training.run / "ledger", training.schedule, starts)
    assert last.exact


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_torch_reads_the_parts_too(saved: Training, tmp_path: Path) -> None:
    for path in newest(saved).glob("model-*.safetensors"):
        shutil.copy(path, tmp_path)
    expected = load_checkpoint(newest(saved)).state
    found = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert not list(newest(saved).glob("*.metadata")), "torch's own index is a pickle"


def test_each_rank_keeps_its_part_alone(saved: Training) -> None:
    for kind, least in (("model", 0.4), ("optimizer", 0.4)):
        sizes = [path.stat().st_size for path in sorted(newest(saved).glob(f"{kind}-*.safetensors"))]
        assert len(sizes) == 2 and min(sizes) > least * sum(sizes)


def test_gradients_are_exchanged_with_the_last_part_of_a_batch_alone(data: Path, tmp_path: Path) -> None:
    training = _training(data, "parts")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model = build_model(training.job.model, training.preprocessor)
        sharding.shard(model, Ranks(0, 1, torch.device("cpu")), "fp32")
        tensors = next(batches(training)).tensors
        for last in (False, False, True):
            with sharding.exchanging(model, last):
                model(tensors).sum().backward()
            assert all((parameter.grad is not None) == last for parameter in model.parameters())
    finally:
        dist.destroy_process_group()


class _Peer(Writers):
    """Another rank, played."""

    def __init__(self, rank: int, says: dict[str, str]) -> None:
        super().__init__(Ranks(rank, 2, torch.device("cpu")), divided=False)
        self.heard: list[dict[str, str]] = []
        self._says = says

    def exchange(self, mine: dict[str, str]) -> list[dict[str, str]]:
        self.heard.append(mine)
        return [mine, self._says] if self.rank == 0 else [self._says, mine]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_takes_no_more_on_one_rank_is_an_error_on_all(
    data: Path, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = _training(data, f"full-{rank}")
    attempt = begin_attempt(training.run, training.data_digest)
    parts = {"model": {"weight": Part(torch.ones(2), (2 * rank,), (4,))}}
    peer = _Peer(rank, {"failed": "rank 1: no space"} if rank == 0 else {"model-00001-of-00002.safetensors": "0" * 64})
    if rank == 1:
        monkeypatch.setattr(Snapshot, "write", _no_space)
    with pytest.raises(
        StorageError, match="no space" if rank == 0 else "the checkpoint can't be written .No space left"
    ):
        save_state(training, attempt, initial_state("0"), Snapshot(parts, rank, 2), peer)
    assert ("failed" in peer.heard[0]) == (rank == 1)
    assert latest_checkpoint(training.run) is None and not list((training.run / "checkpoints").glob(".*"))


def _no_space(snapshot: Snapshot, folder: Path) -> dict[str, str]:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_model_that_is_compiled_as_a_whole_is_not_divided(data: Path) -> None:
    with pytest.raises(UsageError, match="compile: true and parallel: fsdp do not go together"):
        _training(data, "compiled", **{"train.parallel": "fsdp", "train.compile": True})
