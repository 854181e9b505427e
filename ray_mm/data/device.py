"""Batches on their way to a GPU: each is copied while the GPU still works on the one before.

    views of Ray's memory ─copied→ pinned memory, made once ─side stream→ GPU ─event→ the stream that computes

A step is given to the GPU and not waited for, so the process is free for the next batch meanwhile, and no thread is needed.
The CPU path has nothing of this: there a batch stays a view.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch


class Mark(Protocol):
    """A place in a stream of work, as ``torch.cuda.Event``."""

    def synchronize(self) -> None:
        """Returns when all work before it is done."""

    def elapsed_time(self, later: Any, /) -> float:
        """Milliseconds from here to a later mark, both reached."""


class DeviceStream(Protocol):
    """A device with one stream of work that computes and one that copies."""

    def pinned(self, like: torch.Tensor) -> torch.Tensor:
        """Memory of the host that the device can read by itself, in the shape of a tensor."""

    def copy(self, pinned: torch.Tensor) -> torch.Tensor:
        """Begins to copy a tensor to the device, in the stream that copies."""

    def hand_over(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Lets the stream that computes wait for all copies that were begun; these tensors are its from now on."""

    def mark(self, copies: bool = False) -> Mark:
        """The end of what was given to the stream that computes, or that copies, until now."""


class Held(NamedTuple):
    """Seconds in which the device had nothing to do, because a batch was not there yet."""

    wait_s: float
    transfer_s: float


class ToDevice:
    """Brings batches to a device.

    Args:
        stream: of the device.
    """

    def __init__(self, stream: DeviceStream) -> None:
        self._stream = stream
        self._pinned: dict[str, torch.Tensor] = {}
        self._copied: tuple[Mark, Mark] | None = None
        self._asked: Mark | None = None
        self._ready: Mark | None = None

    def ask(self) -> Held | None:
        """To be called before a batch is waited for.

        Returns when the device is at most one step behind. A host further ahead would wait for batches that the device has
        no use for yet, and count that as waiting for data.

        Returns:
            How long the device was held up by the batch that was brought last; None before the first one. Of that nothing is
            told here, for the device had nothing to do before.
        """
        if self._ready is None or self._copied is None:
            return None
        self._ready.synchronize()
        held = Held(0.0, 0.0)
        if self._asked is not None:
            seconds = self._asked.elapsed_time(self._ready) / 1000
            # Copying comes last, and a device that is idle at all is so until the batch is there.
            transfer_s = min(seconds, self._copied[0].elapsed_time(self._copied[1]) / 1000)
            held = Held(seconds - transfer_s, transfer_s)
        self._asked = self._stream.mark()
        return held

    def bring(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Begins to copy a batch.

        Args:
            tensors: on the CPU; they may be views of memory that is only read.

        Returns:
            The same on the device, for work that is given to the stream that computes.
        """
        if self._copied is not None:
            # Until then the device reads from the pinned memory.
            self._copied[1].synchronize()
        begun = self._stream.mark(copies=True)
        brought = {}
        for name, tensor in tensors.items():
            pinned = self._pinned.get(name)
            if pinned is None or pinned.shape != tensor.shape or pinned.dtype != tensor.dtype:
                pinned = self._pinned[name] = self._stream.pinned(tensor)
            pinned.copy_(tensor)
            brought[name] = self._stream.copy(pinned)
        self._copied = begun, self._stream.mark(copies=True)
        self._stream.hand_over(brought)
        self._ready = self._stream.mark()
        return brought


class CudaStream:
    """The streams of a GPU: the one that is current, and one for copies.

    Args:
        device: of type cuda.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pinned(self, like: torch.Tensor) -> torch.Tensor:
        """See ``DeviceStream``."""
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def copy(self, pinned: torch.Tensor) -> torch.Tensor:
        """See ``DeviceStream``."""
        with torch.cuda.stream(self._copies):
            return pinned.to(self._device, non_blocking=True)

    def hand_over(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See ``DeviceStream``."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copies)
        for tensor in tensors.values():
            # Their memory is of the stream that copies, which would use it again while the other one still reads it.
            tensor.record_stream(computing)

    def mark(self, copies: bool = False) -> Mark:
        """See ``DeviceStream``."""
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._copies if copies else torch.cuda.current_stream(self._device))
        return event
