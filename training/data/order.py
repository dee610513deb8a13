"""The order in which samples are drawn: whole batches of one bucket, every epoch anew."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .dataset import Batch, Draw, LatentDataset


class BatchOrder:
    """Draws batches, each from one bucket: every sample comes `repeats` times an epoch, in random order.

    What does not fill a batch at the end of an epoch is carried into the next one, so that batches are
    always whole, and a batch may be larger than its bucket. The parts of a mixed dataset have epochs of their own, and
    take turns so that each is as near to its share of the batches as whole batches can be.

    Args:
        dataset: the samples; of each part at least one that comes in an epoch.
        batch_size: B, at least 1.
        generator: CPU stream of the shuffling, drawn from as an epoch begins; its state is its owner's to keep.
    """

    def __init__(self, dataset: LatentDataset, batch_size: int, generator: torch.Generator) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.generator = generator
        self.shares = [part.share for part in dataset.parts] or [1.0]
        self.drawn = [0] * len(self.shares)
        """Batches of each part so far."""
        self._epochs: list[_Epochs] = []
        start = first = 0
        for count in [part.buckets for part in dataset.parts] or [len(dataset.buckets)]:
            repeats = [bucket.repeats for bucket in dataset.buckets[first : first + count]]
            if not sum(int(r.sum()) for r in repeats):
                raise ValueError(
                    f"data must have at least one sample in an epoch, got {sum(map(len, repeats))} that come 0 times "
                    "each"
                )
            self._epochs.append(_Epochs(repeats, start, batch_size))
            first, start = first + count, start + sum(map(len, repeats))
        self._ahead: _Ahead | None = None

    @property
    def epoch(self) -> int:
        """Epochs begun, of the first part."""
        return self._epochs[0].epoch

    def next(self, captions: torch.Generator | None = None) -> Batch:
        """The next batch; `captions` as in `LatentDataset.draw`."""
        draw = self.dataset.draw(self._next_ids(), captions)
        ahead, self._ahead = self._ahead, None
        return ahead.batch() if ahead is not None and ahead.draw.same(draw) else draw.read()

    def look_ahead(self, captions: torch.Generator | None = None) -> None:
        """Begin to read the batch that `next` would give now, if that takes time; no stream is drawn from."""
        if not self.dataset.stored:
            return
        twin = copy.copy(self)
        twin.generator, twin.drawn = _twin(self.generator), [*self.drawn]
        twin._epochs = [copy.copy(epochs) for epochs in self._epochs]
        self._ahead = _Ahead(
            self.dataset.draw(twin._next_ids(), None if captions is None else _twin(captions))
        )

    def _next_ids(self) -> Tensor:
        total = sum(self.drawn) + 1
        behind = [share * total - drawn for share, drawn in zip(self.shares, self.drawn, strict=True)]
        part = max(range(len(behind)), key=lambda i: behind[i])
        self.drawn[part] += 1
        return self._epochs[part].next(self.generator)

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands: tensors and plain values."""
        state: dict[str, Any] = {"version": 1}
        for end, epochs in zip(self._ends(), self._epochs, strict=True):
            own = {"epoch": epochs.epoch, "queue": epochs.queue, "carry": epochs.carry}
            state |= {name + end: value for name, value in own.items()}
        return state if len(self.drawn) == 1 else state | {"drawn": [*self.drawn]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is of another version, batch size or dataset.
        """
        if state["version"] != 1:
            raise ValueError(f"the data order must be of version 1, got {state['version']}")
        if len(state.get("drawn", [0])) != len(self.drawn):
            raise ValueError(f"the dataset must be the saved run's, got one of {len(self.drawn)} parts")
        for end in self._ends():
            queue, carry = state["queue" + end], state["carry" + end]
            if queue.shape[-1] != self.batch_size:
                raise ValueError(
                    f"batch_size must be {queue.shape[-1]} as in the saved run, got {self.batch_size}"
                )
            if bool((torch.cat([queue.flatten(), carry]) >= len(self.dataset)).any()):
                raise ValueError(
                    f"the dataset must be the saved run's, got one of {len(self.dataset)} samples"
                )
        for end, epochs in zip(self._ends(), self._epochs, strict=True):
            epochs.epoch = int(state["epoch" + end])
            epochs.queue, epochs.carry = state["queue" + end], state["carry" + end]
        self.drawn = [int(n) for n in state.get("drawn", [0])]

    def _ends(self) -> list[str]:
        """What the names in a state end with: nothing for the first part."""
        return ["" if i == 0 else f".{i}" for i in range(len(self.drawn))]


class _Epochs:
    """The epochs of one part: samples that follow each other, in some buckets."""

    def __init__(self, repeats: Sequence[Tensor], start: int, batch_size: int) -> None:
        self.repeats = repeats
        self.start = start
        self.batch_size = batch_size
        self.epoch = 0
        # Replaced, never written into: a state may hold on to them.
        self.queue = torch.empty(0, batch_size, dtype=torch.long)  # batches left of this epoch
        self.carry = torch.empty(0, dtype=torch.long)  # samples left over from it

    def next(self, generator: torch.Generator) -> Tensor:
        """The samples [B] of the next batch."""
        while not len(self.queue):
            self._begin(generator)
        ids, self.queue = self.queue[0], self.queue[1:]
        return ids

    def _begin(self, generator: torch.Generator) -> None:
        batches, carry = [], []
        start = self.start
        for repeats in self.repeats:
            ids = torch.arange(start, start + len(repeats)).repeat_interleave(repeats)
            left = self.carry[(self.carry >= start) & (self.carry < start + len(repeats))]
            stream = torch.cat([left, ids[torch.randperm(len(ids), generator=generator)]])
            whole = len(stream) // self.batch_size * self.batch_size
            batches.append(stream[:whole].view(-1, self.batch_size))
            carry.append(stream[whole:])
            start += len(repeats)
        queue = torch.cat(batches)
        self.queue = queue[torch.randperm(len(queue), generator=generator)]
        self.carry = torch.cat(carry)
        self.epoch += 1


class _Ahead:
    """A batch that a thread of its own reads; it ends with that, whether or not the batch is asked for."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self._batch: Batch | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="next batch", daemon=True)
        self._thread.start()

    def batch(self) -> Batch:
        """The batch, as soon as it is there; what went wrong while it was read is raised here."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._batch is None:
            raise RuntimeError("the thread that reads the next batch ended without one")
        return self._batch

    def _read(self) -> None:
        try:
            self._batch = self.draw.read()
        except BaseException as err:  # raised where the batch is asked for
            self._error = err


def _twin(generator: torch.Generator) -> torch.Generator:
    """A stream that will draw what `generator` draws."""
    twin = torch.Generator(generator.device)
    twin.set_state(generator.get_state())
    return twin
