"""What a run measured, as the report's numbers and as a few lines of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..data.mixture import seen
from ..objective.losses import TERMS
from ..trainer.state import History
from .run import Run


def plain(column: Sequence[float]) -> list[float | None]:
    """A history column as JSON has it: NaN, nothing measured, is null."""
    return [None if math.isnan(v) else v for v in column]


def mean(column: Sequence[float]) -> float | None:
    """Mean of what was measured; None if nothing was."""
    values = [v for v in column if not math.isnan(v)]
    return sum(values) / len(values) if values else None


def report(run: Run) -> dict[str, Any]:
    """The run's section of ``report.json``."""
    state = run.folder.load(run.step, "history")
    history = History.from_tensors(state.group("history")).columns
    seconds = float(state.values["seconds"])  # spent on the run's steps, over all its stages
    meter = state.values["meter"]
    kinds = ("train", "rollout", "clean")
    return {
        "run": str(run.folder.path),
        "parents": [{"run": parent["run"], "step": parent["step"]} for parent in run.parents],
        "seed": run.config.seed,
        "steps": run.step,
        "seconds": round(seconds, 3),
        "steps_per_second": round(run.step / seconds, 4) if seconds else None,
        "model_calls": {k: int(meter["calls"][k]) for k in kinds},
        "row_evaluations": {k: int(meter["rows"][k]) for k in kinds},
        "seconds_by_kind": {k: round(meter["seconds"][k], 3) for k in kinds},
        "skipped_steps": int(sum(history.get("skipped", []))),
        "loss": {k: plain(history.get(k, [])) for k in TERMS},
        "rollout": {
            "probability": plain(history.get("probability", [])),
            "mean_length": mean(history.get("length", [])),
        },
    }


def describe(run: Run, facts: dict[str, Any]) -> str:
    """A few lines for the node: where the run is, how it went, what rollouts cost; `facts` of `report`."""
    lines = [f"{run.folder.path}", f"step {run.step} of {run.config.steps}"]
    if best := facts.get("best"):
        lines.append(
            f"the best moment: least validation loss, {best['loss']:.4f}, of {best['trained']} steps trained"
            if best["loss"] is not None
            else "no best moment: no validation loss was a finite number"
        )
    lines += [f"went on from step {parent['step']} of {parent['run']}" for parent in facts["parents"][-1:]]
    lines += seen(run.data, run.config.steps * run.config.batch_size * run.config.accumulation)
    losses = [v for v in facts["loss"]["total"] if v is not None]
    if losses:
        n = min(len(losses), 20)
        lines.append(f"loss {sum(losses[-n:]) / n:.4f} (mean of the last {n} steps)")
        lines.append(f"{facts['steps_per_second']} steps/s, {facts['seconds']:.0f} s")
    rows = facts["row_evaluations"]
    if rows["rollout"]:
        extra = (rows["rollout"] + rows["clean"]) / max(rows["train"], 1)
        lines.append(
            f"rollouts: {extra:.2f} extra model calls per sample, mean length {facts['rollout']['mean_length']:.1f}"
        )
    if facts["skipped_steps"]:
        lines.append(f"{facts['skipped_steps']} steps skipped: the loss was not finite")
    return "\n".join(lines)
