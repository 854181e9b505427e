"""Samples → one batch: a flat dict of arrays, presence included (see ``data.fields`` for names and shapes)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ray_mm.data.decode import DecodeError, Draw, decoder_for
from ray_mm.data.decode.decoder import Arrays
from ray_mm.data.fields import POSITION, WEIGHT, field_arrays, presence_name
from ray_mm.data.preprocessor import Preprocessor

Members = Mapping[str, bytes | memoryview]
"""Field → the bytes of its member; a missing or empty one is absent."""


class Collator:
    """Fills batches from members. It holds no state of a batch: several threads may fill different rows at once.

    Args:
        preprocessor: fields, tokenizers.
    """

    def __init__(self, preprocessor: Preprocessor) -> None:
        self.fields = sorted(preprocessor.fields)
        self._specs = {
            array: spec for name in self.fields for array, spec in field_arrays(name, preprocessor.fields[name]).items()
        }
        self._decoders = {name: decoder_for(name, preprocessor) for name in self.fields}

    def empty(self, size: int) -> Arrays:
        """A batch in which nothing is present and every row is padding."""
        arrays: Arrays = {name: np.zeros((size, *spec.shape), spec.dtype) for name, spec in self._specs.items()}
        arrays[POSITION] = np.full(size, -1, np.int64)
        arrays[WEIGHT] = np.zeros(size, np.float32)
        return arrays

    def fill(self, arrays: Arrays, row: int, members: Members, draw: Draw | None = None) -> dict[str, str]:
        """Decodes one sample into a row.

        Args:
            arrays: a batch.
            row: which holds zeros.
            members: of the sample.
            draw: makes its random choices; None: nothing is left to chance.

        Returns:
            Field → reason, for each member that can't be decoded. The row is then as if nothing were there, and its
            weight is 0; otherwise its weight is 1.
        """
        bad: dict[str, str] = {}
        for name in self.fields:
            payload = members.get(name)
            if payload is None or len(payload) == 0:
                continue
            try:
                there = self._decoders[name](payload, arrays, row, draw)
            except DecodeError as error:
                bad[name] = str(error)
            else:
                arrays[presence_name(name)][row] = there
        if bad:
            self.clear(arrays, row)
        else:
            arrays[WEIGHT][row] = 1.0
        return bad

    def clear(self, arrays: Arrays, row: int) -> None:
        """Makes a row absent in every field, with weight 0; it keeps its position."""
        for name in self._specs:
            arrays[name][row] = 0
        arrays[WEIGHT][row] = 0.0

    def collate(self, samples: Iterable[Members]) -> tuple[Arrays, dict[int, dict[str, str]]]:
        """A batch of samples at positions 0, 1, …, and the rows that can't be decoded with their reasons."""
        rows = list(samples)
        arrays = self.empty(len(rows))
        arrays[POSITION][:] = np.arange(len(rows))
        bad = {row: reasons for row, members in enumerate(rows) if (reasons := self.fill(arrays, row, members))}
        return arrays, bad
