"""What a training writes down while it runs: ``metrics.jsonl`` and TensorBoard. Rank 0 only.

    {"kind": "train", "step", "time", "epoch", "loss", "lr", "samples_per_s", "seconds",
     "data_wait", "data_transfer", "checkpoint_wait", "read_cores", "decode_cores", "queued_batches",
     "machine_cpu", "machine_memory", with texts "tokens_per_s", with pictures or videos "pixels_per_s",
     on a GPU "device_memory_bytes", "device_memory", "flops_per_s", and "mfu" where its peak is known,
     with a decoded cache "cached", in the first line "first_batch_s", and in the last one of an epoch's training
     "epoch_loss", "epoch_samples_per_s", "epoch_data_wait", of several fields "gradient_share/<field>" and, where they are
     modulated, "gradient_factor/<field>", see ``field_balance``, or blended, "blend_weight/<field>" and "blend_weight", see
     ``blending``}
    {"kind": "validation", "step", "time", "epoch", "loss", "accuracy" and "macro_f1" | "micro_f1", "macro_f1" and "map" |
     "mae" and "rmse" | "r2" and "r2/<field>", "num_samples", of several fields "alone/<field>" and "adds/<field>", of
     a blended training "loss_alone/<field>", see ``validation``}

A train line is about the time since the line before, means over the ranks: ``loss`` per sample; ``data_wait`` and
``data_transfer`` the shares of the time spent waiting for batches and bringing them to the device, ``checkpoint_wait`` that in
which the training stood still for a checkpoint; ``read_cores`` and
``decode_cores`` how many processes were busy with that for a rank; ``queued_batches`` how many lay ready; ``cached`` the
share of the samples that were decoded before; what is in use of the machine and the device is told by ``gauges``.
``seconds`` counts from this start of the workers, ``first_batch_s`` until the first batch was there; ``time`` is that of the
line, in seconds since 1970. ``epoch_…`` are of the whole epoch; of one that was interrupted, of what this start did of it.
Epochs count from 1.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ray_mm.storage import write_atomic

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Appends to a run's metrics. What an earlier attempt wrote past the step that is resumed from is taken back.

    Args:
        run: the run's folder.
        step: optimizer steps that are done.
    """

    def __init__(self, run: Path, step: int) -> None:
        # Only rank 0 writes, and TensorBoard is slow to import.
        from torch.utils.tensorboard import SummaryWriter

        path = run / METRICS_FILE
        kept = [line for line in read_metrics(run) if line["step"] <= step]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._stream = path.open("a", buffering=1)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line, and one point per number in TensorBoard."""
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        self._stream.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flushes both."""
        self._stream.close()
        self._board.close()


def read_metrics(run: Path, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """The lines of a run's metrics; one that was cut short by a kill is left out.

    Args:
        run: the run's folder.
        last_bytes: only the lines that lie wholly in so many bytes at the end; None: all.
    """
    path = run / METRICS_FILE
    if not path.exists():
        return []
    with path.open("rb") as stream:
        if last_bytes is not None:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - last_bytes))
            if size > last_bytes:
                stream.readline()
        content = stream.read().decode()
    lines = []
    for text in content.splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
