"""What a panel shows of a run while it trains: a curve of so many points at most, and a few numbers.

Every set of facts is complete: a page that is opened in the middle of a run needs the newest one alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..objective.losses import COLUMNS
from ..pictures.film import equally_spaced
from ..trainer.best import Best
from ..trainer.meter import memory_in_use
from ..trainer.state import History
from ..trainer.trainer import StepReport
from .run import Run

DRAWN = tuple(name for name in COLUMNS if name != "total")
"""The losses that a panel draws: the parts of the total, and the validation loss."""
POINTS = 150
"""A curve has this many points to twice as many, or one per step while there are fewer steps."""

FILMS = 100
"""A panel offers so many films of a run at most, those in equal distances."""


class Curve:
    """Means of `DRAWN` over bins of equal width, which doubles as steps arrive; NaN, not measured, counts nowhere."""

    def __init__(self) -> None:
        self.steps = 0
        self.width = 1
        """Steps in a bin."""
        self._sums: dict[str, list[float]] = {name: [] for name in DRAWN}
        self._counts: dict[str, list[float]] = {name: [] for name in DRAWN}

    @classmethod
    def of(cls, history: History, steps: int) -> Curve:
        """The curve of the first `steps` steps of a run."""
        curve = cls()
        columns = {name: history.columns[name] for name in DRAWN if name in history.columns}
        for i in range(steps):
            curve.add({name: column[i] for name, column in columns.items()})
        return curve

    def add(self, row: Mapping[str, float]) -> None:
        """Add the next step's row of the history."""
        if self.steps == 2 * POINTS * self.width:
            self._halve()
        new_bin = self.steps % self.width == 0
        for name in DRAWN:
            sums, counts = self._sums[name], self._counts[name]
            if new_bin:
                sums.append(0.0)
                counts.append(0.0)
            value = row.get(name, math.nan)
            if math.isfinite(value):
                sums[-1] += value
                counts[-1] += 1
        self.steps += 1

    def _halve(self) -> None:
        """Join neighbouring bins."""
        self.width *= 2
        for columns in (self._sums, self._counts):
            for name, own in columns.items():
                columns[name] = [a + b for a, b in zip(own[::2], own[1::2], strict=True)]

    def plain(self) -> dict[str, list[Any]]:
        """The curve as JSON has it: the last step of each bin and the means; null where nothing was measured."""
        ends = range(self.width, self.steps + self.width, self.width)
        found: dict[str, list[Any]] = {"step": [min(end, self.steps) for end in ends]}
        for name in DRAWN:
            pairs = zip(self._sums[name], self._counts[name], strict=True)
            found[name] = [float(f"{total / n:.5g}") if n else None for total, n in pairs]
        return found


class Live:
    """The facts of one stage: what was trained before it, and each of its steps as a watcher sees them.

    Args:
        steps: those that the stage will train.
        told: lines about the whole of it, such as what it needs.
    """

    def __init__(self, run: Run, steps: int, told: Sequence[str] = ()) -> None:
        self._told = list(told)
        self._folder = run.folder
        self._device = run.source.device
        self._last = run.step + steps
        self._curve = Curve.of(run.history, run.step)
        self._newest = StepReport(run.step, math.nan, 0.0)
        self._films = [step for step in run.folder.film_steps() if step <= run.step]
        self._samples = run.folder.sample_steps()
        self._saved = run.step
        self._best: Best | None = None

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self._newest.step

    def add(self, report: StepReport) -> None:
        """Take in one optimiser step."""
        self._curve.add(report.row)
        self._newest = report
        self._best = report.best
        self._saved = report.saved or self._saved
        if report.drawn:
            self._samples = self._folder.sample_steps()
        if report.film is not None and report.film.step not in self._films[-1:]:
            self._films.append(report.film.step)

    def saved(self) -> None:
        """The state of this step is on the disk, as at every end of a stage."""
        self._saved = self.step

    def facts(self) -> dict[str, Any]:
        """Plain JSON values.

        `rollout_share` is the share of the model's time that rollouts took, in the whole run; `memory` is in bytes;
        `film` has the steps of films, `samples` those that the user's prompts were drawn at, `saved` that of the last
        saved state, `saved_file` its name. `best` has step and validation loss of the best moment so far, null where
        the run keeps none. `told` are lines about the whole stage, `doubts` about a training that does not seem to
        learn.
        """
        now = self._newest
        seconds, rate = now.seconds(), now.steps_per_second
        extra = seconds.get("rollout", 0.0) + seconds.get("clean", 0.0)
        total = extra + seconds.get("train", 0.0)
        return {
            "run": self._folder.path.name,
            "step": now.step,
            "last_step": self._last,
            "curve": self._curve.plain(),
            "probability": now.probability,
            "steps_per_second": round(rate, 3),
            "seconds_left": round((self._last - now.step) / rate, 1) if rate else None,
            "rollout_share": round(extra / total, 4) if total else 0.0,
            "memory": memory_in_use(self._device),
            "film": [self._films[i] for i in equally_spaced(len(self._films), FILMS)],
            "samples": self._samples,
            "saved": self._saved,
            "best": None if self._best is None else {"step": self._best.step, "loss": self._best.loss},
            "told": self._told,
            "doubts": list(now.doubts),
            "saved_file": f"{self._folder.path.name}/{self._folder.state_path(self._saved).name}",
        }
