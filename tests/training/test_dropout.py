"""Fields are hidden at random, yet the same ones whatever the workers, and never all of a sample."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.data.fields import POSITION
from ray_mm.training.dropout import hide_fields

FIELDS = ["audio", "image", "text"]


def _batch(present: torch.Tensor, start: int = 0) -> dict[str, torch.Tensor]:
    """A batch from presence, bool [B, fields]."""
    batch = {f"{field}.presence": present[:, place] for place, field in enumerate(FIELDS)}
    return batch | {POSITION: torch.arange(start, start + len(present)), "image": torch.ones(len(present), 2)}


def _presence(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([batch[f"{field}.presence"] for field in FIELDS], dim=1)


def _hide(batch: dict[str, torch.Tensor], rate: float, seed: int, epoch: int) -> dict[str, torch.Tensor]:
    return hide_fields(batch, batch[POSITION].numpy(), FIELDS, rate, seed, epoch)


@given(seed=st.integers(0, 99), epoch=st.integers(0, 9), rate=st.floats(0, 0.99), has=st.integers(0, 2**31))
def test_only_what_is_there_is_hidden_and_never_all_of_a_sample(seed: int, epoch: int, rate: float, has: int) -> None:
    present = torch.rand(40, 3, generator=torch.Generator().manual_seed(has)) < 0.6
    before = present.clone()
    batch = _batch(present)
    kept = _presence(_hide(batch, rate, seed, epoch))
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(dim=1), present.any(dim=1))
    assert torch.equal(present, before), "arrays are shared with others and must not be written to"
    if rate == 0:
        assert torch.equal(kept, present)


def test_what_is_hidden_depends_on_the_place_in_the_plan_and_not_on_the_share() -> None:
    present = torch.ones(60, 3, dtype=torch.bool)
    whole = _presence(_hide(_batch(present), 0.3, 5, 2))
    shares = [_presence(_hide(_batch(present[a:b], a), 0.3, 5, 2)) for a, b in ((0, 7), (7, 45), (45, 60))]
    assert torch.equal(torch.cat(shares), whole)
    for seed, epoch in ((6, 2), (5, 3)):
        assert not torch.equal(_presence(_hide(_batch(present), 0.3, seed, epoch)), whole)


def test_each_field_is_hidden_at_its_rate_and_on_its_own() -> None:
    kept = _presence(_hide(_batch(torch.ones(20_000, 3, dtype=torch.bool)), 0.2, 0, 0)).double()
    # Where all three would go, all stay: 0.8 % of the samples.
    torch.testing.assert_close(kept.mean(0), torch.full((3,), 0.808).double(), atol=0.01, rtol=0)
    both = (kept[:, 0] * kept[:, 1]).mean()
    assert abs(both - (0.64 + 0.008)) < 0.01


def test_everything_else_in_the_batch_stays_as_it_is() -> None:
    batch = _batch(torch.ones(4, 3, dtype=torch.bool))
    hidden = _hide(batch, 0.5, 0, 0)
    assert hidden["image"] is batch["image"] and hidden[POSITION] is batch[POSITION]
    assert _hide(batch, 0.0, 0, 0) is batch


def test_padding_is_taken_as_well() -> None:
    batch = _batch(torch.zeros(3, 3, dtype=torch.bool)) | {POSITION: torch.tensor([-1, -1, -1])}
    assert not _presence(_hide(batch, 0.5, 0, 0)).any()
