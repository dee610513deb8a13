"""Signs that a training does not learn, each said in one line as soon as it can be told."""

from __future__ import annotations

import math
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


def of_the_history(history: History, begin: int) -> dict[str, str]:
    """What is doubtful in what was measured from row `begin` on, by kind."""
    said = {}
    totals = history.columns.get("total", [])[begin:]
    losses = [v for v in totals if math.isfinite(v)]
    if len(losses) >= 2 * LOOKED_AT:
        first, last = (sum(part) / LOOKED_AT for part in (losses[:LOOKED_AT], losses[-LOOKED_AT:]))
        if last > RUINED * losses[0] > 0:  # the begin may be ruined itself
            first = losses[0]
        if last > RISEN * first > 0:
            said["risen"] = (
                f"the loss has risen from {first:.3g} to {last:.3g}: the LoRA is getting worse; lower learning_rate"
            )
    empty = [
        step
        for step, (total, norm) in enumerate(
            zip(totals, history.columns.get("grad_norm", [])[begin:], strict=True)
        )
        if total == 0 == norm
    ]
    if empty:
        said["empty"] = (
            f"{len(empty)} of {len(totals)} steps count nothing, the first is step {begin + empty[0] + 1}: their loss "
            "is 0 everywhere; look for masks that are all black"
        )
    return said


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
