"""Samples → one batch: a flat dict of arrays, presence included (see ``data.fields`` for names and shapes)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ray_mm.config.fields import ImageField, VideoField, has_streams
from ray_mm.data.decode import DecodeError, Draw, decoder_for
from ray_mm.data.decode.decoder import Decoder, StreamsDecoder, streams_decoder, whole_decoder
from ray_mm.data.decode.error import StreamError
from ray_mm.data.fields import POSITION, WEIGHT, Arrays, ArraySpec, field_arrays, presence_name, whole_arrays
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.stream_parts import parts_of_field

Members = Mapping[str, bytes | memoryview]
"""Field, or part of one (see ``data.stream_parts``) → the bytes of its member; a missing or empty one is absent."""


class Collator:
    """Fills batches from members. It holds no state of a batch: several threads may fill different rows at once.

    Args:
        preprocessor: fields, tokenizers.
        whole: fields of which whole pictures or clips are wanted, see ``data.fields.whole_arrays``.
    """

    def __init__(
        self, preprocessor: Preprocessor, whole: Mapping[str, ImageField | VideoField] = MappingProxyType({})
    ) -> None:
        self.fields = sorted(preprocessor.fields)
        self._specs: dict[str, ArraySpec] = {}
        self._decoders: dict[str, Decoder] = {}
        self._of_streams: dict[str, StreamsDecoder] = {}
        self._parts: dict[str, dict[str, str]] = {}
        for name in self.fields:
            spec = preprocessor.fields[name]
            if name in whole:
                self._specs |= whole_arrays(name, whole[name])
                self._decoders[name] = whole_decoder(name, whole[name])
            else:
                self._specs |= field_arrays(name, spec)
                if has_streams(spec):
                    self._of_streams[name] = streams_decoder(name, spec)
                    self._parts[name] = {member: part for part, member in parts_of_field(name, spec).items()}
                else:
                    self._decoders[name] = decoder_for(name, preprocessor)

    def empty(self, size: int) -> Arrays:
        """A batch in which nothing is present and every row is padding."""
        arrays: Arrays = {name: np.zeros((size, *spec.shape), spec.dtype) for name, spec in self._specs.items()}
        arrays[POSITION] = np.full(size, -1, np.int64)
        arrays[WEIGHT] = np.zeros(size, np.float32)
        return arrays

    def fill(
        self, arrays: Arrays, first_row: int, samples: Sequence[Members], draws: Sequence[Draw] | None = None
    ) -> dict[int, dict[str, str]]:
        """Decodes samples into consecutive rows, field by field: a decoder of small members that stays in the processor's
        caches is faster than one that is called between two pictures.

        Args:
            arrays: a batch.
            first_row: where to begin; the rows hold zeros.
            samples: their members.
            draws: make the random choices of each sample; None: nothing is left to chance.

        Returns:
            Row → field, or part of one → reason, for each member that can't be decoded. Such a row is then as if nothing were
            there, and its weight is 0; every other one's is 1.
        """
        bad: dict[int, dict[str, str]] = {}
        for name in self.fields:
            if name in self._of_streams:
                for place, members in enumerate(samples):
                    if found := self._fill_streams(name, members, arrays, first_row + place):
                        bad.setdefault(first_row + place, {}).update(found)
                continue
            decode, presence = self._decoders[name], arrays[presence_name(name)]
            for place, members in enumerate(samples):
                payload = members.get(name)
                if payload is None or len(payload) == 0:
                    continue
                row = first_row + place
                try:
                    presence[row] = decode(payload, arrays, row, None if draws is None else draws[place])
                except DecodeError as error:
                    bad.setdefault(row, {})[name] = str(error)
        arrays[WEIGHT][first_row : first_row + len(samples)] = 1.0
        for row in bad:
            self.clear(arrays, row)
        return bad

    def _fill_streams(self, name: str, members: Members, arrays: Arrays, row: int) -> dict[str, str]:
        """Decodes the members of a series of streams; returns part → reason for those that are at fault."""
        parts = self._parts[name]
        payloads = {member: members[part] for member, part in parts.items() if part in members}
        if not payloads:
            return {}  # absent, or kept from an earlier epoch
        try:
            arrays[presence_name(name)][row] = self._of_streams[name](payloads, arrays, row)
        except StreamError as error:
            return {parts[member]: str(error) for member in error.members}
        return {}

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
        return arrays, self.fill(arrays, 0, rows)
