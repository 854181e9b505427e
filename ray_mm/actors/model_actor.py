"""A decoded block → rows about its samples, by a model that is loaded once. Runs in a Ray actor, knows no Ray.

    position weight <field>.presence   as in the block, of the model's input fields
    sample.key                         string: the sample's key
    …                                  what the stage wants to know of a sample

No name of a field holds a dot, so the names can't clash.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_mm.data.blocks import block_keys, to_arrays, to_table
from ray_mm.data.fields import POSITION, WEIGHT, presence_name
from ray_mm.errors import CheckpointError
from ray_mm.model_folder import model_digest, model_folder
from ray_mm.predictor import Predictor, load_predictor

KEY = "sample.key"

Rows: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""Name → array, with a row per sample."""


class ModelActor(abc.ABC):
    """Loads a model once, then takes block after block.

    Args:
        checkpoint: of ``load_predictor``, absolute: an actor has a working directory of its own.
        digest: ``model_digest`` of what must lie there; a training that goes on may publish another one.
        device: for a checkpoint's network.
        threads: CPU threads of a forward pass. Fixed, because sums of floats depend on how they are divided.
    """

    def __init__(self, checkpoint: str, digest: str, device: str, threads: int) -> None:
        # Loaded with the first block: of an error in a constructor, Ray hands on the text only.
        self._load = functools.cache(lambda: _load(checkpoint, digest, device, threads))

    def __call__(self, block: pa.Table) -> pa.Table:
        """The rows of one block."""
        predictor = self._load()
        batch: Rows = to_arrays(block)
        rows = {name: batch[name] for name in (POSITION, WEIGHT, *map(presence_name, predictor.input_fields))}
        rows |= self.rows(predictor, batch)
        # Keys travel as a column: a block carries them apart from its rows, and Ray may join blocks as small as these.
        table = to_table({name: np.ascontiguousarray(array) for name, array in rows.items()}, [])
        return table.append_column(KEY, pa.array(block_keys(block), pa.string()))

    @abc.abstractmethod
    def rows(self, predictor: Predictor, batch: Rows) -> dict[str, npt.NDArray[Any]]:
        """What the stage wants to know of a batch, a row per sample.

        Args:
            predictor: the model.
            batch: the arrays of the fields that are read (see ``data.fields``).
        """


def _load(checkpoint: str, digest: str, device: str, threads: int) -> Predictor:
    torch.set_num_threads(threads)
    predictor = load_predictor(checkpoint, device=device, threads=threads)
    if model_digest(model_folder(checkpoint)) != digest:
        raise CheckpointError(
            f"{checkpoint}: another model was put there since the run began, as a training does that goes on; run the job "
            "again, or give it a checkpoint that stays as it is."
        )
    return predictor
