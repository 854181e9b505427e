"""Batches on their way to a device that works while they are copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch

from ray_mm.data.device import CudaStream, Held, ToDevice
from ray_mm.data.loader import LoadedBatch, overlapped
from ray_mm.data.plan import Item

ITEM = Item(0, "train", 0, 1, 0, 4, False)


class FakeDevice:
    """Two streams of work, done as late as a device may: only when somebody waits for it. Time is counted by hand."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.made: list[torch.Tensor] = []
        self._work: dict[bool, list[Callable[[], None]]] = {False: [], True: []}
        self.waits = 0

    def pinned(self, like: torch.Tensor) -> torch.Tensor:
        self.made.append(torch.empty_like(like))
        return self.made[-1]

    def copy(self, pinned: torch.Tensor) -> torch.Tensor:
        target = torch.full_like(pinned, 99)
        self._work[True].append(lambda: _write(target, pinned))
        return target

    def hand_over(self, tensors: Mapping[str, torch.Tensor]) -> None:
        copies = len(self._work[True])
        self._work[False].append(lambda: self._finish(True, copies))

    def compute(self, work: Callable[[], None]) -> None:
        self._work[False].append(work)

    def mark(self, copies: bool = False) -> FakeMark:
        return FakeMark(self, copies, len(self._work[copies]), self.now_ms)

    def _finish(self, copies: bool, count: int) -> None:
        work = self._work[copies]
        for place in range(count):
            done, work[place] = work[place], lambda: None
            done()


class FakeMark:
    def __init__(self, device: FakeDevice, copies: bool, count: int, at_ms: float) -> None:
        self._device, self._copies, self._count, self.at_ms = device, copies, count, at_ms

    def synchronize(self) -> None:
        self._device.waits += 1
        self._device._finish(self._copies, self._count)

    def elapsed_time(self, later: FakeMark) -> float:
        return later.at_ms - self.at_ms


def _write(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)


def _host(count: int) -> Iterator[LoadedBatch]:
    for number in range(count):
        tensors = {"image": torch.full((4, 2), number, dtype=torch.uint8), "weight": torch.full((4,), float(number))}
        yield LoadedBatch(ITEM, tensors, [], 0, 4, wait_s=7.0)


def test_every_batch_arrives_whole_through_memory_that_is_made_once() -> None:
    device, seen = FakeDevice(), []
    for batch in overlapped(_host(5), device):
        assert batch.on_host["weight"] is not batch.tensors["weight"]
        # A step, which the device does when it likes.
        device.compute(lambda tensors=batch.tensors: seen.append([float(t.float().mean()) for t in tensors.values()]))
    device.mark().synchronize()
    assert seen == [[number, number] for number in range(5)]
    assert [tensor.shape for tensor in device.made] == [(4, 2), (4,)]


def test_the_host_is_at_most_one_step_ahead() -> None:
    device, done = FakeDevice(), []
    for given, batch in enumerate(overlapped(_host(6), device), start=1):
        assert len(done) >= given - 2
        device.compute(lambda batch=batch: done.append(batch))
    assert device.waits > 0


def test_memory_is_not_written_before_the_device_has_read_it_and_made_anew_in_another_shape() -> None:
    device = FakeDevice()
    to_device = ToDevice(device)
    made = [torch.rand(size) for size in (3, 4, 4, 5)]
    brought = [to_device.bring({"image": tensor})["image"] for tensor in made]
    device.mark(copies=True).synchronize()
    assert all(torch.equal(one, other) for one, other in zip(brought, made, strict=True))
    assert [len(tensor) for tensor in device.made] == [3, 4, 5]


def test_what_held_the_device_up_is_told_with_the_batch_after_it() -> None:
    device = FakeDevice()
    to_device = ToDevice(device)
    assert to_device.ask() is None
    to_device.bring({"image": torch.zeros(2)})
    assert to_device.ask() == Held(0.0, 0.0)
    device.now_ms += 30  # no batch, and nothing left to do
    copied = device.copy

    def slow(pinned: torch.Tensor) -> torch.Tensor:
        device.now_ms += 10
        return copied(pinned)

    device.copy = slow  # type: ignore[method-assign]
    to_device.bring({"image": torch.zeros(2)})
    held = to_device.ask()
    assert held == pytest.approx((0.030, 0.010))
    device.copy = copied  # type: ignore[method-assign]
    to_device.bring({"image": torch.zeros(2)})
    assert to_device.ask() == Held(0.0, 0.0)


def test_the_first_wait_is_the_hosts() -> None:
    waits = [batch.wait_s for batch in overlapped(_host(4), FakeDevice())]
    assert waits == [7.0, 0.0, 0.0, 0.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_copies_overlap_with_steps_and_are_whole() -> None:
    device = torch.device("cuda", 0)
    rng = np.random.default_rng(0)
    made = [torch.from_numpy(rng.integers(0, 255, (64, 224, 224, 3), np.uint8)) for _ in range(6)]
    batches = (LoadedBatch(ITEM, {"image": tensor}, [], 0, 64, wait_s=0.0) for tensor in made)
    sums, held = [], []
    for batch in overlapped(batches, CudaStream(device)):
        held.append((batch.wait_s, batch.transfer_s))
        torch.cuda._sleep(200_000_000)  # a step of 60 ms or more
        sums.append(batch.tensors["image"].long().sum())
    assert [int(found) for found in sums] == [int(tensor.long().sum()) for tensor in made]
    # The copies lie within the steps.
    assert max(transfer_s for _, transfer_s in held[2:]) < 0.005
