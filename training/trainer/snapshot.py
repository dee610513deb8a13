"""A state copied while the next step is computed, so that the loop does not wait for it.

What a state is made of changes in place, but only where the optimiser steps: until then a thread of its own copies it.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .state import RunState


class Snapshot:
    """A copy in main memory of a state whose tensors the trainer goes on with.

    One thread calls `take`; the trainer calls `hold` before it changes a tensor of the state.

    Args:
        state: what is copied.
        device: where the trainer computes.
    """

    def __init__(self, state: RunState, device: torch.device) -> None:
        self.step = state.step
        self._live: RunState | None = state
        self._copied = threading.Event()  # on CUDA: the copies are in their stream
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._device = device
            self._begun, self._over = torch.cuda.Event(), torch.cuda.Event()
            self._begun.record()

    @torch.inference_mode(False)
    @torch.no_grad()
    def take(self) -> RunState:
        """The copy; what it was made of is let go.

        Raises:
            RuntimeError, MemoryError: there is not so much memory.
        """
        state, self._live = self._live, None
        assert state is not None, "a snapshot is taken once"
        try:
            if self._cuda:
                tensors = self._fetched(state)
            else:
                tensors = {name: _copy(tensor) for name, tensor in state.tensors.items()}
        finally:
            self._copied.set()
        if self._cuda:
            self._over.synchronize()
        return replace(state, tensors=tensors)

    def hold(self) -> None:
        """Wait until the state may change: on CUDA the device waits, the host does not."""
        self._copied.wait()
        if self._cuda:
            torch.cuda.current_stream(self._device).wait_event(self._over)

    def _fetched(self, state: RunState) -> dict[str, Tensor]:
        """Copies in pinned memory, on their way beside what the device computes."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_event(self._begun)
        with torch.cuda.stream(stream):
            try:
                return {name: _pinned(tensor) for name, tensor in state.tensors.items()}
            finally:
                self._over.record(stream)


def _pinned(tensor: Tensor) -> Tensor:
    kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return kept.copy_(tensor.detach(), non_blocking=True)


def _copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU, made by this thread alone: torch would wake as many threads as the training has."""
    tensor = tensor.detach()
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return tensor.to("cpu", copy=True).contiguous()
    kept = torch.empty_like(tensor)
    np.copyto(_bytes(kept), _bytes(tensor))
    return kept


def _bytes(tensor: Tensor) -> np.ndarray:
    found: np.ndarray = tensor.reshape(-1).view(torch.uint8).numpy()
    return found
