"""Random choices: the same for the same place, even over all places."""

from __future__ import annotations

import dataclasses

import numpy as np

from ray_mm.data.decode import Draw


def test_a_place_always_draws_the_same_numbers() -> None:
    assert Draw(1, 2, 3).uniform("camera", 3) == Draw(1, 2, 3).uniform("camera", 3)
    # Pinned: a training that is resumed with a newer ray_mm must go on as it began.
    assert [round(number, 6) for number in Draw(1, 2, 3).uniform("camera", 2)] == [0.587095, 0.598302]


def test_every_part_of_the_place_matters() -> None:
    here = Draw(1, 2, 3)
    others = [dataclasses.replace(here, **{key: 9}).uniform("camera", 2) for key in ("seed", "epoch", "position")]
    numbers = [*here.uniform("camera", 2), *here.uniform("rear", 2), *(number for other in others for number in other)]
    assert len(set(numbers)) == len(numbers)


def test_numbers_are_uniform_and_independent() -> None:
    numbers = np.array([Draw(0, 0, position).uniform("camera", 8) for position in range(4000)])
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 0.02
    assert np.abs(numbers.var(axis=0) - 1 / 12).max() < 0.004
    assert np.abs(np.corrcoef(numbers.T) - np.eye(8)).max() < 0.07
