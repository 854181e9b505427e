"""Steps whose loss or gradient is not finite: found without holding up the device, their samples written down, a few left out
where the job allows it.

    <run>/bad_steps/rank-0000.jsonl    {"attempt", "step", "epoch", "keys"}   of this rank's share of the batch
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from ray_mm.data.plan import Item
from ray_mm.errors import TrainingDivergedError
from ray_mm.training.parallel import Ranks


class BadSteps:
    """Remembers the steps since it last looked.

    Args:
        run: the run's folder.
        attempt: of this start of the workers.
        ranks: this worker's place.
        allowed: how many may be left out in the whole training.
    """

    def __init__(self, run: Path, attempt: int, ranks: Ranks, allowed: int) -> None:
        self._folder = run / "bad_steps"
        self._attempt = attempt
        self._ranks = ranks
        self._allowed = allowed
        self._steps: list[tuple[Item, list[str], Tensor]] = []

    def add(self, item: Item, keys: list[str], finite: Tensor) -> None:
        """A step that was done.

        Args:
            item: which one.
            keys: of this rank's samples; not the batch itself, whose memory the next ones need.
            finite: whether its loss and gradient were, a bool on the device: it is looked at later.
        """
        self._steps.append((item, keys, finite))

    def look(self, met_before: int) -> int:
        """Finds bad steps among those since the last call, which every rank has to make after the same step.

        Args:
            met_before: bad steps of the training before that.

        Returns:
            How many there are.

        Raises:
            TrainingDivergedError: more than are allowed.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return 0
        # One wait for the device instead of one a step.
        bad = torch.stack([~finite for _, _, finite in steps]).double().tolist()
        found = [(item, keys) for (item, keys, _), count in zip(steps, self._ranks.sum(bad), strict=True) if count]
        for item, keys in found:
            self._write(item, keys)
        if found and met_before + len(found) > self._allowed:
            allowed = f", one such step more than the {self._allowed} that train.skip_bad_steps allows"
            raise diverged(
                f"the loss or its gradient is not finite at step {found[self._allowed - met_before][0].step}"
                f"{allowed if self._allowed else ''} (its samples are named in {self._folder})"
            )
        return len(found)

    def _write(self, item: Item, keys: list[str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        line = {
            "attempt": self._attempt,
            "step": item.step,
            "epoch": item.epoch + 1,
            "keys": [key for key in keys if key],
        }
        with (self._folder / f"rank-{self._ranks.rank:04d}.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def diverged(what: str) -> TrainingDivergedError:
    """The error for a loss or weights that are not finite."""
    return TrainingDivergedError(
        f"{what}; lower train.optimizer.lr or set train.clip_norm, and choose another output, because the same settings "
        "would lead here again. Checkpoints are from before it."
    )
