"""The order in which samples are drawn: whole batches of one bucket, every epoch anew."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .dataset import Batch, Draw, LatentDataset


class BatchOrder:
    """Draws batches, each from one bucket: every sample comes `repeats` times an epoch, in random order.

    What does not fill a batch at the end of an epoch is carried into the next one, so that batches are
    always whole, and a batch may be larger than its bucket.

    Args:
        dataset: the samples, at least one that comes in an epoch.
        batch_size: B, at least 1.
        generator: CPU stream of the shuffling, drawn from as an epoch begins; its state is its owner's to keep.
    """

    def __init__(self, dataset: LatentDataset, batch_size: int, generator: torch.Generator) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if dataset.samples_per_epoch < 1:
            raise ValueError(
                f"data must have at least one sample in an epoch, got {len(dataset)} that come 0 times each"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.generator = generator
        self.epoch = 0
        """Epochs begun."""
        # Replaced, never written into: a state may hold on to them.
        self._queue = torch.empty(0, batch_size, dtype=torch.long)  # batches left of this epoch
        self._carry = torch.empty(0, dtype=torch.long)  # samples left over from it
        self._ahead: _Ahead | None = None

    def next(self, captions: torch.Generator | None = None) -> Batch:
        """The next batch; `captions` as in `LatentDataset.draw`."""
        draw = self.dataset.draw(self._next_ids(), captions)
        ahead, self._ahead = self._ahead, None
        return ahead.batch() if ahead is not None and ahead.draw.same(draw) else draw.read()

    def look_ahead(self, captions: torch.Generator | None = None) -> None:
        """Begin to read the batch that `next` would return now, if that takes time; no stream is drawn from."""
        if not self.dataset.stored:
            return
        twin = BatchOrder(self.dataset, self.batch_size, _twin(self.generator))
        twin._queue, twin._carry = self._queue, self._carry
        draw = self.dataset.draw(twin._next_ids(), None if captions is None else _twin(captions))
        self._ahead = _Ahead(draw)

    def _next_ids(self) -> Tensor:
        while not len(self._queue):
            self._begin_epoch()
        ids, self._queue = self._queue[0], self._queue[1:]
        return ids

    def _begin_epoch(self) -> None:
        batches, carry = [], []
        start = 0
        for bucket in self.dataset.buckets:
            ids = torch.arange(start, start + len(bucket)).repeat_interleave(bucket.repeats)
            left = self._carry[(self._carry >= start) & (self._carry < start + len(bucket))]
            stream = torch.cat([left, ids[torch.randperm(len(ids), generator=self.generator)]])
            whole = len(stream) // self.batch_size * self.batch_size
            batches.append(stream[:whole].view(-1, self.batch_size))
            carry.append(stream[whole:])
            start += len(bucket)
        queue = torch.cat(batches)
        self._queue = queue[torch.randperm(len(queue), generator=self.generator)]
        self._carry = torch.cat(carry)
        self.epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands: tensors and plain values."""
        return {"version": 1, "epoch": self.epoch, "queue": self._queue, "carry": self._carry}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is of another version, batch size or dataset.
        """
        if state["version"] != 1:
            raise ValueError(f"the data order must be of version 1, got {state['version']}")
        queue, carry = state["queue"], state["carry"]
        if queue.shape[-1] != self.batch_size:
            raise ValueError(
                f"batch_size must be {queue.shape[-1]} as in the saved run, got {self.batch_size}"
            )
        if bool((torch.cat([queue.flatten(), carry]) >= len(self.dataset)).any()):
            raise ValueError(f"the dataset must be the saved run's, got one of {len(self.dataset)} samples")
        self.epoch = int(state["epoch"])
        self._queue, self._carry = queue, carry


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
