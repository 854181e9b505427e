"""Fields are hidden at random, yet the same ones whatever the workers, and never all of a sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.data.fields import POSITION
from ray_mm.data.order import stable_hash
from ray_mm.training.dropout import hide_fields, uniform

FIELDS = ["audio", "image", "text"]


def _batch(present: torch.Tensor, start: int = 0) -> dict[str, torch.Tensor]:
    """A batch from presence, bool [B, fields]."""
    batch = {f"{field}.presence": present[:, place] for place, field in enumerate(FIELDS)}
    return batch | {POSITION: torch.arange(start, start + len(present)), "image": torch.ones(len(present), 2)}


def _presence(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([batch[f"{field}.presence"] for field in FIELDS], dim=1)


@given(seed=st.integers(0, 99), epoch=st.integers(0, 9), rate=st.floats(0, 0.99), has=st.integers(0, 2**31))
def test_only_what_is_there_is_hidden_and_never_all_of_a_sample(seed: int, epoch: int, rate: float, has: int) -> None:
    present = torch.rand(40, 3, generator=torch.Generator().manual_seed(has)) < 0.6
    before = present.clone()
    batch = _batch(present)
    kept = _presence(hide_fields(batch, FIELDS, rate, seed, epoch))
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(dim=1), present.any(dim=1))
    assert torch.equal(present, before), "arrays are shared with others and must not be written to"
    if rate == 0:
        assert torch.equal(kept, present)


def test_what_is_hidden_depends_on_the_place_in_the_plan_and_not_on_the_share() -> None:
    present = torch.ones(60, 3, dtype=torch.bool)
    whole = _presence(hide_fields(_batch(present), FIELDS, 0.3, 5, 2))
    shares = [
        _presence(hide_fields(_batch(present[a:b], a), FIELDS, 0.3, 5, 2)) for a, b in ((0, 7), (7, 45), (45, 60))
    ]
    assert torch.equal(torch.cat(shares), whole)
    for seed, epoch in ((6, 2), (5, 3)):
        assert not torch.equal(_presence(hide_fields(_batch(present), FIELDS, 0.3, seed, epoch)), whole)


def test_each_field_is_hidden_at_its_rate_and_on_its_own() -> None:
    kept = _presence(hide_fields(_batch(torch.ones(20_000, 3, dtype=torch.bool)), FIELDS, 0.2, 0, 0)).double()
    # Where all three would go, all stay: 0.8 % of the samples.
    torch.testing.assert_close(kept.mean(0), torch.full((3,), 0.808).double(), atol=0.01, rtol=0)
    both = (kept[:, 0] * kept[:, 1]).mean()
    assert abs(both - (0.64 + 0.008)) < 0.01


def test_everything_else_in_the_batch_stays_as_it_is() -> None:
    batch = _batch(torch.ones(4, 3, dtype=torch.bool))
    hidden = hide_fields(batch, FIELDS, 0.5, 0, 0)
    assert hidden["image"] is batch["image"] and hidden[POSITION] is batch[POSITION]
    assert hide_fields(batch, FIELDS, 0.0, 0, 0) is batch


def test_padding_is_taken_as_well() -> None:
    batch = _batch(torch.zeros(3, 3, dtype=torch.bool)) | {POSITION: torch.tensor([-1, -1, -1])}
    assert not _presence(hide_fields(batch, FIELDS, 0.5, 0, 0)).any()


def test_the_numbers_are_uniform_and_never_change() -> None:
    numbers = uniform(np.arange(100_000), key=stable_hash("seed"))
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] == pytest.approx(10_000, abs=400)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
    # SplitMix64 from state 0 gives 0xE220A8397B1DCDAF first, 0x6E789E6AA1B965F4 next: its published sequence.
    golden = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert uniform(np.array([1, 2, 3]), key=0).tolist() == [(bits >> 11) / 2**53 for bits in golden]
    assert uniform(np.array([-1]), key=1 << 100).tolist() == uniform(np.array([-1]), key=0).tolist()
