"""A decoded block → what the driver needs to know of it: one narrow row per sample. Runs in a Ray actor, knows no Ray.

    position weight <label> <label>.presence <field>.presence   as in the block
    score.key                string: the sample's key
    score.…                  what the task needs: see the modules of ``tasks``

No name of a field holds a dot, so the names can't clash.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_mm.data.blocks import block_keys, to_arrays, to_table
from ray_mm.data.fields import POSITION, WEIGHT, presence_name
from ray_mm.evaluation.subsets import Subset
from ray_mm.evaluation.tasks import evaluated_task
from ray_mm.evaluation.tasks.base import Rows
from ray_mm.predictor import Predictor, load_predictor

KEY = "score.key"


class Scorer:
    """Loads the model once, then scores block after block.

    Args:
        checkpoint: of ``load_predictor``, absolute: an actor has a working directory of its own.
        subsets: the last one has all fields.
        device: for a checkpoint's network.
        threads: CPU threads of a forward pass. Fixed, because sums of floats depend on how they are divided.
    """

    def __init__(self, checkpoint: str, subsets: tuple[Subset, ...], device: str, threads: int) -> None:
        self._subsets = subsets
        # Loaded with the first block: of an error in a constructor, Ray hands on the text only.
        self._load = functools.cache(lambda: _load(checkpoint, device, threads))

    def __call__(self, block: pa.Table) -> pa.Table:
        """Scores one block."""
        predictor = self._load()
        batch: Rows = to_arrays(block)
        task = evaluated_task(predictor)
        names = [POSITION, WEIGHT, *task.reads, *(presence_name(field) for field in predictor.input_fields)]
        rows: dict[str, npt.NDArray[Any]] = {name: batch[name] for name in names}
        outputs = predictor.outputs(batch, self._subsets)
        rows |= task.scored(outputs, batch)
        # Keys travel as a column: a block carries them apart from its rows, and Ray may join blocks as small as these.
        table = to_table({name: np.ascontiguousarray(array) for name, array in rows.items()}, [])
        return table.append_column(KEY, pa.array(block_keys(block), pa.string()))


def _load(checkpoint: str, device: str, threads: int) -> Predictor:
    torch.set_num_threads(threads)
    return load_predictor(checkpoint, device=device, threads=threads)
