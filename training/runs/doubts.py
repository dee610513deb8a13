"""Signs that a training does not learn, each said in one line as soon as it can be told."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from ..trainer.config import TrainConfig
from ..trainer.state import History

LOOKED_AT = 20
"""Steps whose mean loss stands for the begin and the end; and after how many steps the weights are looked at."""
RISEN, RUINED = 3.0, 30.0
"""How many times the mean loss at the begin, or the first step's alone, counts as risen severalfold."""
STILL = 1e-8
"""Movement of a weight per step below which the weights do not move."""


def before_the_first_step(config: TrainConfig, done: int, steps: int) -> list[str]:
    """What is doubtful in the settings of a stage of `steps` steps from step `done` on."""
    said = []
    optimizer = config.optimizer
    if optimizer.name == "prodigy" and optimizer.lr < 0.1:
        said.append(
            f"learning_rate should be 1 with prodigy, which finds its own and multiplies it, got {optimizer.lr:g}; it "
            "will hardly learn"
        )
    still = [step for step in range(done, done + steps) if config.lr_at(step) == 0]
    if still:
        said.append(
            f"the learning rate is 0 for {len(still)} of the {steps} steps, from step {still[0]} on: its schedule "
            f"ends at step {config.lr_ends}; give the stage a learning_rate of its own, or plan more steps"
        )
    return said


class Losses:
    """What in the losses of a stage is doubtful; every row of the history is looked at once.

    Args:
        history: of the run, to which rows are added.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._begin = self._seen = len(history)
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=LOOKED_AT)
        self._finite = 0
        self._empty = self._first_empty = 0  # steps that count nothing, and the first of them

    def told(self) -> dict[str, str]:
        """What is doubtful up to the newest row, by kind."""
        self._take_in()
        said = {}
        if self._finite >= 2 * LOOKED_AT:
            first, last = (sum(part) / LOOKED_AT for part in (self._first, self._last))
            if last > RUINED * self._first[0] > 0:  # the begin may be ruined itself
                first = self._first[0]
            if last > RISEN * first > 0:
                said["risen"] = (
                    f"the loss has risen from {first:.3g} to {last:.3g}: the LoRA is getting worse; lower learning_rate"
                )
        if self._empty:
            said["empty"] = (
                f"{self._empty} of {self._seen - self._begin} steps count nothing, the first is step "
                f"{self._first_empty}: their loss is 0 everywhere; look for masks that are all black"
            )
        return said

    def _take_in(self) -> None:
        """Look at the rows that have come since the last time."""
        columns = self._history.columns
        totals, norms = (columns.get(name, ())[self._seen :] for name in ("total", "grad_norm"))
        for step, (total, norm) in enumerate(zip(totals, norms, strict=True), start=self._seen + 1):
            if math.isfinite(total):
                self._finite += 1
                self._last.append(total)
                if len(self._first) < LOOKED_AT:
                    self._first.append(total)
            if total == 0 == norm:
                self._empty += 1
                self._first_empty = self._first_empty or step
        self._seen += len(totals)


def of_the_weights(before: Sequence[Tensor], now: Sequence[Tensor], steps: int) -> str | None:
    """A line if `steps` steps have not moved the weights."""
    with torch.no_grad():
        moved = max((float((a - b).abs().max()) for a, b in zip(before, now, strict=True)), default=0.0)
    if moved > STILL * steps:
        return None
    return (
        f"the weights hardly move: by {moved:.1g} at most in {steps} steps; nothing is learnt, look at learning_rate, "
        "alpha and masks"
    )
