"""What a run costs: model calls, row-evaluations and seconds, apart for training, rollout and clean forwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Kind = Literal["train", "rollout", "clean", "validation"]
KINDS: tuple[Kind, ...] = ("train", "rollout", "clean", "validation")
STEP: tuple[Kind, ...] = ("train", "rollout", "clean")
"""What ranks share out; a validation is everybody's own."""
PENDING = 1000
"""Timed pieces of work that are kept at most until somebody asks."""


class Stopwatch:
    """Wall time since it was made, without what was spent in `paused` blocks."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside does not count."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start


def memory_in_use(device: torch.device) -> int | None:
    """Bytes: on CUDA the device's peak so far, else what the process has now; None if nobody can say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import psutil  # ComfyUI and diffusers bring it; a terminal does not show it
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)


class Meter:
    """Counts and times model work without waiting for the device.

    On CUDA, time is taken by events on the stream and read when somebody asks (`seconds`).
    """

    def __init__(self, device: torch.device) -> None:
        self.calls: dict[str, int] = dict.fromkeys(KINDS, 0)
        self.rows: dict[str, int] = dict.fromkeys(KINDS, 0)
        self._shared: tuple[dict[str, int], dict[str, int]] = {**self.calls}, {**self.rows}
        self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._events: list[tuple[Kind, torch.cuda.Event, torch.cuda.Event]] = []
        self._cuda = device.type == "cuda"

    def count(self, kind: Kind, rows: int) -> None:
        """One model call with `rows` rows."""
        self.calls[kind] += 1
        self.rows[kind] += rows

    def share(self, total: Callable[[list[int]], list[int]]) -> None:
        """Count what all ranks computed: `total` makes sums over them of what each counted since the last time."""
        counters = (self.calls, self.rows)
        own = [
            now[kind] - then[kind] for now, then in zip(counters, self._shared, strict=True) for kind in STEP
        ]
        totals = iter(total(own))
        for now, then in zip(counters, self._shared, strict=True):
            now.update({kind: then[kind] + next(totals) for kind in STEP})
        self._shared = {**self.calls}, {**self.rows}

    @contextmanager
    def time(self, kind: Kind) -> Iterator[None]:
        """Add the time spent inside to `kind`."""
        if not self._cuda:
            start = time.perf_counter()
            yield
            self._seconds[kind] += time.perf_counter() - start
            return
        start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start_event.record()
        yield
        end_event.record()
        self._events.append((kind, start_event, end_event))
        if len(self._events) > PENDING:  # nobody has asked for long: these are over
            self.seconds()

    def seconds(self) -> dict[str, float]:
        """Seconds by kind so far; waits for the device."""
        for kind, start, end in self._events:
            end.synchronize()
            self._seconds[kind] += start.elapsed_time(end) / 1000
        self._events.clear()
        return dict(self._seconds)

    def state(self) -> dict[str, dict[str, float]]:
        """Plain values for a saved state."""
        return {"calls": dict(self.calls), "rows": dict(self.rows), "seconds": self.seconds()}

    def load(self, state: dict[str, dict[str, float]]) -> None:
        """Go on from `state`."""
        self.calls.update({k: int(v) for k, v in state["calls"].items()})
        self.rows.update({k: int(v) for k, v in state["rows"].items()})
        self._shared = {**self.calls}, {**self.rows}
        self._seconds.update(state["seconds"])
