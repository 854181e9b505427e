"""Random choices that belong to a sample: the same for any number of workers, and after a resume."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

MAX_NUMBERS = 8
"""How many numbers one field can ask for."""


@dataclass(frozen=True)
class Draw:
    """Where a sample stands in a training; its random choices depend on that and on the field, and on nothing else.

    Attributes:
        seed: of the training.
        epoch: from 0.
        position: of the sample in the epoch's plan.
    """

    seed: int
    epoch: int
    position: int

    def uniform(self, field: str, count: int) -> list[float]:
        """So many numbers in [0, 1), at most ``MAX_NUMBERS``: BLAKE2b (RFC 7693) of the place and the field's name."""
        assert count <= MAX_NUMBERS
        place = f"{self.seed}/{self.epoch}/{self.position}/{field}".encode()
        digest = hashlib.blake2b(place, digest_size=8 * count).digest()
        return [(int.from_bytes(digest[8 * i : 8 * i + 8], "little") >> 11) / (1 << 53) for i in range(count)]
