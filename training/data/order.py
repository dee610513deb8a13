"""The order in which samples are drawn: whole batches of one bucket, every epoch anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .dataset import Batch, LatentDataset
from .images import ImageDataset as ImageDataset
from .images import read_image_folder as read_image_folder


class BatchOrder:
    """Draws batches, each from one bucket: every sample comes `repeats` times an epoch, in random order.

    What does not fill a batch at the end of an epoch is carried into the next one, so that batches are
    always whole, and a batch may be larger than its bucket.

    Args:
        dataset: the samples.
        batch_size: B, at least 1.
        generator: CPU stream of the shuffling, drawn from as an epoch begins; its state is its owner's to keep.
    """

    def __init__(self, dataset: LatentDataset, batch_size: int, generator: torch.Generator) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.generator = generator
        self.epoch = 0
        """Epochs begun."""
        # Replaced, never written into: a state may hold on to them.
        self._queue = torch.empty(0, batch_size, dtype=torch.long)  # batches left of this epoch
        self._carry = torch.empty(0, dtype=torch.long)  # samples left over from it

    def next(self, captions: torch.Generator | None = None) -> Batch:
        """The next batch; `captions` as in `LatentDataset.batch`."""
        while not len(self._queue):
            self._begin_epoch()
        ids, self._queue = self._queue[0], self._queue[1:]
        return self.dataset.batch(ids, captions)

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
