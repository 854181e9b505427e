"""What a training learns does not depend on how its work is shared: workers, DDP or FSDP2, micro-batches."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from ray_mm.training.ledger import audit
from tests.factories import make_dataset
from tests.training.inprocess import curve, make_training
from tests.training.together import Start, train_together

STEPS = 50
WAYS = [
    *itertools.product((1, 2), ("ddp", "fsdp"), (1, 2, 4)),
    # Four processes on two cores are slow.
    *itertools.product((4,), ("ddp", "fsdp"), (1, 4)),
]
"""Workers, how they share, and the parts that each cuts its share into."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_loss_after_fifty_steps_is_the_same_however_the_work_is_shared(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 375, ("image", "series", "label"), num_shards=2, missing={"series": 0.2})
    settings: dict[str, Any] = {
        "data.batch_size": 15,  # workers get 8 and 7; 4, 4, 4 and 3
        "model.fields": {"image": {"dropout": 0.0}, "series": {"dropout": 0.0}},
        "model.fusion": {"method": "gated", "dim": 16, "dropout": 0.0},
        "train.epochs": 2,
        "train.modality_dropout": 0.3,
        "train.precision": "fp32",
        "train.optimizer.lr": 0.003,
    }
    starts = [
        Start(
            make_training(
                tmp_path,
                f"{parallel}-{workers}-{parts}",
                ("image", "series"),
                **settings,
                **{"train.parallel": parallel, "train.micro_batches": parts},
            ),
            workers,
        )
        for workers, parallel, parts in WAYS
    ]
    train_together(starts, tmp_path / "rendezvous")
    first = curve(starts[0].training)
    assert list(first) == [("train", step) for step in range(1, STEPS + 1)]
    assert first["train", STEPS] < first["train", 1] / 2, "it learned something"
    for start in starts[1:]:
        assert curve(start.training) == pytest.approx(first, abs=1e-4), start.training.run.name
        assert all(epoch.exact for epoch in audit(start.training.run / "ledger", start.training.schedule, {1: 0}))
