"""What a training gets through and takes, beside its loss: tokens, pixels, memory, CPUs, and how much of a GPU it uses."""

from __future__ import annotations

import math
import time

import psutil
import torch

from ray_mm.config.fields import ImageField, TextField, VideoField
from ray_mm.data.fields import POSITION, length_name, presence_name
from ray_mm.data.loader import LoadedBatch
from ray_mm.models.multimodal import MultimodalModel
from ray_mm.training.flops import forward_flops, peak_flops, training_flops
from ray_mm.training.parallel import Ranks, resolve_precision
from ray_mm.training.parts import frozen_parts
from ray_mm.training.plan import Training


class Gauges:
    """Measures between two lines of metrics.

    Args:
        training: what is done.
        ranks: this worker's place.
    """

    def __init__(self, training: Training, ranks: Ranks) -> None:
        self._job = training.job
        self._num_steps = training.schedule.num_steps
        self._ranks = ranks
        self._fields = {name: training.preprocessor.fields[name] for name in sorted(training.job.model.fields)}
        self._has_tokens = any(isinstance(spec, TextField) for spec in self._fields.values())
        self._has_pixels = any(isinstance(spec, (ImageField, VideoField)) for spec in self._fields.values())
        self._forward: dict[str, float] | None = None
        psutil.cpu_percent()  # counts from here on
        self.restart()

    def restart(self) -> None:
        """Forgets what is not read yet."""
        self._since = time.perf_counter()
        self._rows = 0
        self._tokens = self._pixels = 0

    def add(self, batch: LoadedBatch, model: MultimodalModel) -> None:
        """One step: this rank's share of the batch, and the model that is trained."""
        tensors = batch.on_host
        self._rows += len(tensors[POSITION])
        for name, spec in self._fields.items():
            if isinstance(spec, TextField):
                self._tokens += int(tensors[name].count_nonzero())
            elif isinstance(spec, VideoField):
                self._pixels += int(tensors[length_name(name)].sum()) * math.prod(tensors[name].shape[2:4])
            elif isinstance(spec, ImageField):
                self._pixels += int(tensors[presence_name(name)].sum()) * math.prod(tensors[name].shape[1:3])
        if self._forward is None and self._ranks.device.type == "cuda":
            self._forward = forward_flops(model, batch.tensors)

    def read(self, step: int) -> dict[str, float]:
        """The values for a line of metrics; then starts anew. A barrier: it adds up over the ranks.

        Of all ranks: tokens_per_s and pixels_per_s, where the model reads texts, pictures or videos; of what is there, padding
        and absent fields left out. On GPUs: flops_per_s, model FLOPs, and mfu, their share of what the GPUs could compute,
        where that is known.

        Of rank 0: on a GPU device_memory_bytes, the most that it has held so far, and device_memory, its share of the device;
        machine_cpu and machine_memory, the shares of its machine's CPUs and memory that are in use, by whomever.
        """
        tokens, pixels, rows = self._ranks.sum([float(self._tokens), float(self._pixels), float(self._rows)])
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        values: dict[str, float] = {}
        if self._has_tokens:
            values["tokens_per_s"] = round(tokens / elapsed, 1)
        if self._has_pixels:
            values["pixels_per_s"] = round(pixels / elapsed, 1)
        values |= self._of_gpu(step, rows / elapsed)
        values["machine_cpu"] = round(psutil.cpu_percent() / 100, 4)
        values["machine_memory"] = round(psutil.virtual_memory().percent / 100, 4)
        self.restart()
        return values

    def _of_gpu(self, step: int, rows_per_s: float) -> dict[str, float]:
        device = self._ranks.device
        if device.type != "cuda":
            return {}
        held, has = torch.cuda.max_memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
        values: dict[str, float] = {"device_memory_bytes": held, "device_memory": round(held / has, 4)}
        frozen = frozen_parts(self._job.train.freeze, list(self._fields), step, self._num_steps)
        flops_per_s = training_flops(self._forward or {}, frozen) * rows_per_s
        values["flops_per_s"] = flops_per_s
        precision = resolve_precision(self._job.train.precision, device)
        peak = peak_flops(torch.cuda.get_device_name(device), precision)
        if peak is not None:
            values["mfu"] = round(flops_per_s / (peak * self._ranks.world_size), 4)
        return values
