"""Several ranks take the steps of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from ray_mm.training.ledger import audit
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.state import begin_attempt, current_attempt, read_state
from ray_mm.training.worker import run_worker
from tests.factories import make_dataset
from tests.training.inprocess import batches, curve, make_training, newest, train
from tests.training.together import run_ranks

FIELDS = ("vector", "label", "number")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_ranks_take_the_same_steps_as_one(tmp_path: Path) -> None:
    missing = {"series": 0.3, "label": 0.2}
    make_dataset(tmp_path / "train", 43, ("series", *FIELDS), num_shards=2, missing=missing, corrupt={(7, "vector")})
    make_dataset(tmp_path / "validation", 9, ("series", *FIELDS), num_shards=1, seed=1, missing={"label": 0.2})
    pairs = [
        [_without_dropout(tmp_path, f"{fusion}-{world_size}", fusion) for world_size in (1, 2)]
        for fusion in ("concat", "gated", "cross_attention")
    ]
    freeze: dict[str, Any] = {"train.freeze": {"encoders.series": 0.5}, "train.optimizer.parts": {"encoders": 0.5}}
    pairs.append([_without_dropout(tmp_path, f"freeze-{size}", "gated", **freeze) for size in (1, 2)])
    parts: dict[str, Any] = {"train.micro_batches": 3, "train.ema": 0.9}
    pairs.append([_without_dropout(tmp_path, f"micro-{size}", "cross_attention", **parts) for size in (1, 2)])
    rare: list[dict[str, Any]] = [
        {"loss": "focal", "class_weights": {"left": 1, "right": 4, "stop": 9}, "label_smoothing": 0.1},
        {"class_weights": "balanced"},
        {"logit_adjustment": 1.0},
    ]
    for number, task in enumerate(rare):
        settings = {"model.task": {"type": "classify", "label": "label"} | task, "train.micro_batches": 2}
        pairs.append([_without_dropout(tmp_path, f"rare-{number}-{size}", "gated", **settings) for size in (1, 2)])
    for one, two in pairs:
        train(one)
        begin_attempt(two.run, two.data_digest)
    run_ranks(_rank, ([two for _, two in pairs], tmp_path / "rendezvous"), 2)

    for one, two in pairs:
        assert curve(two) == pytest.approx(curve(one), abs=1e-5)
        # AdamW does not care how large a gradient is; its moments do.
        alone, together = (load_file(newest(training) / "optimizer.safetensors") for training in (one, two))
        assert max(float(tensor.abs().max()) for name, tensor in alone.items() if name.endswith("exp_avg")) > 0.02
        for name, tensor in alone.items():
            torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-5)
        assert replace(read_state(newest(two)), best={}, latest={}) == replace(
            read_state(newest(one)), best={}, latest={}
        )
        assert len(list((two.run / "ledger").iterdir())) == 2
        for epoch in audit(two.run / "ledger", two.schedule, {1: 0}):
            assert epoch.exact and epoch.quarantined.sum() == 1


def _without_dropout(folder: Path, run: str, fusion: str, **overrides: Any) -> Training:
    """What is random in a network differs between ranks; which fields are hidden does not."""
    settings: dict[str, Any] = {
        "data.batch_size": 17,  # two ranks get 9 and 8, and 9 and 0 of the last batch of an epoch
        "model.fields": {"series": {"dropout": 0.0}, "vector": {"dropout": 0.0}},
        "model.fusion": {"method": fusion, "dim": 16, "dropout": 0.0},
        "train.modality_dropout": 0.3,
        "train.clip_norm": 0.5 if fusion == "concat" else None,
    }
    return make_training(folder, run, ("series", "vector"), **settings, **overrides)


def _rank(rank: int, trainings: list[Training], rendezvous: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    for training in trainings:
        ranks = Ranks(rank, 2, torch.device("cpu"))
        run_worker(training, ranks, current_attempt(training.run), batches(training, 0, rank, 2))
    dist.destroy_process_group()
