"""How a LoRA's pictures change while it is trained: taught against unseen, style against bleeding. Part of the study.

    python benchmarks/fronts.py [--results FILE] [--minutes 20]
    python benchmarks/fronts.py --save docs     write fronts.json, front.png and the table of docs/study.md

The faces, with the settings, seeds and metrics of benchmarks/study.py, nothing stopped: `plain` and `residual` (its
steps those of equal compute), seed 0, at ten moments of their planned steps; `plain` of four seeds at its early
moments, for the question whether weak training explains `preserve` (the plan is in benchmarks/study.py). Written
before its runs.

At each moment: `taught`, energy distance of pictures drawn for the taught captions to the taught pictures, in the
features of the style classifier, CFG 1; `style` and `shapes` of held-out captions, `blob` and `bleed` as there.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import torch
from study import (
    MARK,
    MARKED,
    PRESERVE,
    ROOT,
    USED,
    Pictures,
    Plan,
    Views,
    bled,
    drawn,
    key,
    looked_at,
    pictures_of,
    rounded,
)

from rollout_trainer.training.files import write_atomically
from rollout_trainer.training.models.source import LoadedModel
from rollout_trainer.training.pictures.exposure import energy_distance
from rollout_trainer.training.runs.run import start, train
from rollout_trainer.training.trial.results import Metrics, Result, Table, go_on, read, tabulated
from rollout_trainer.training.trial.trial import Trial, run_name
from rollout_trainer.training.trial.verdict import markdown

EARLY = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
MOMENTS = (*EARLY, 0.4, 0.5, 0.7, 1.0)
"""Shares of the planned steps."""
JOBS = [*(("plain", seed) for seed in (1, 2, 3, 0)), ("residual", 0)]


def moments(seed: int) -> Sequence[float]:
    """Where a run is measured: the first seed along its whole way."""
    return MOMENTS if seed == 0 else EARLY


@cache
def taught(own: str) -> Views:
    """The taught pictures, through the autoencoder."""
    pictures = pictures_of(own, 24, "cpu")
    with torch.no_grad():
        return Views.of(pictures.source.decode_latents(pictures.taught.buckets[0].latents))


def measured(own: Pictures, trial: Trial, model: LoadedModel, seed: int) -> Metrics:
    """Every metric of a state."""
    out: Metrics = {}
    for cfg in (1.0, USED):
        pixels = drawn(own, trial, model, own.unseen.buckets[0].cond, cfg, seed)
        out |= {f"{name}@{cfg:g}": value for name, value in looked_at(own, pixels).items()}
    memory = Views.of(drawn(own, trial, model, own.taught.buckets[0].cond, 1.0, seed))
    out["taught@1"] = float(energy_distance(memory.style, taught(own.name).style))
    return out | bled(own, trial, model, seed)


def front(own: Pictures, arm: str, seed: int, folder: Path) -> dict[str, Metrics]:
    """Train an arm and measure it on its way; by step."""
    trial = own.trial(Plan(), [arm])
    planned = trial.config(arm, seed)
    steps = [round(share * planned.steps) for share in moments(seed)]
    config = replace(planned, patience=0, validate_every=0)
    run = start(folder, run_name(arm, seed), own.source, own.taught, config)
    out = {}
    for share, step in zip(moments(seed), steps, strict=True):
        run = train(run, step - run.step)
        out[str(step)] = {"share": share} | measured(own, trial, run.model, seed)
    return out


def carry_out(path: Path, minutes: float) -> None:
    """Run what is missing."""
    own, folder = pictures_of("faces", 24, "cpu"), path.parent / "fronts-runs"

    def run(arm: str, seed: int) -> Result:
        result = Result(arm, seed, front(own, arm, seed, folder))
        for place in folder.glob(f"{run_name(arm, seed)}-*"):
            shutil.rmtree(place)
        return result

    go_on(path, JOBS, run, time.monotonic() + 60 * minutes, say=partial(print, flush=True))


# --- output -------------------------------------------------------------------------------------

SHOWN = {
    "taught@1": "style, taught captions",
    "style@1": "style, CFG 1",
    "shapes@1": "shapes, CFG 1",
    "style@2": "style, CFG 2",
    "blob@2": "style probability, CFG 2",
    "bleed": "bleeding",
}
FRONT_MARK = MARK.replace("study.py", "fronts.py")


def table_of(results: Sequence[Result]) -> Table:
    """The results by arm."""
    return tabulated(results, ["plain", "residual"])


def crossing(run: Mapping[str, Metrics], metric: str, value: float) -> float:
    """The share of the way at which a rising metric first reaches a value, on straight lines; nan: never."""
    points = [(0.0, 0.0), *((own["share"], own[metric]) for own in run.values())]
    for (s, a), (t, b) in pairwise(points):
        if a < value <= b:
            return s + (t - s) * (value - a) / (b - a)
    return math.nan


def read_off(run: Mapping[str, Metrics], metric: str, share: float) -> float:
    """A metric at a share of the way, on straight lines; before the first moment that moment's."""
    points = [(own["share"], own[metric]) for own in run.values()]
    for (s, a), (t, b) in pairwise(points):
        if s <= share <= t:
            return a + (b - a) * (share - s) / (t - s)
    return points[0][1] if share < points[0][0] else math.nan


def weaker(table: Table, study: Sequence[Result]) -> list[str]:
    """Plain where its style probability is the mean of preserve's, beside preserve: one row each, means over seeds."""
    strong = [result.metrics["best"] for result in study if result.arm == key("faces", PRESERVE)]
    goal = statistics.fmean(run["blob@2"] for run in strong)
    shares = {seed: crossing(run, "blob@2", goal) for seed, run in table["plain"].items()}
    metrics = ("style@1", "shapes@1", "style@2", "blob@2", "bleed")
    early = [
        f"{statistics.fmean(read_off(table['plain'][seed], m, share) for seed, share in shares.items()):.4g}"
        for m in metrics
    ]
    kept = [f"{statistics.fmean(run[m] for run in strong):.4g}" for m in metrics]
    step = 300 * statistics.fmean(shares.values())
    rows = [
        [f"plain, stopped at step {step:.0f} ({len(shares)})", *early],
        [f"preserve, at its best moment ({len(strong)})", *kept],
    ]
    return markdown(["equal style probability, faces (seeds)", *(SHOWN[m] for m in metrics)], rows)


def page(table: Table, study: Sequence[Result]) -> str:
    """The tables for docs/study.md."""
    rows = [
        [f"{arm}, step {step} ({own['share']:.0%})", *(f"{own[m]:.4g}" for m in SHOWN)]
        for arm, runs in table.items()
        for step, own in runs[0].items()
    ]
    lines = markdown(["**front on the faces**, seed 0", *SHOWN.values()], rows)
    return "\n".join([*weaker(table, study), "", *lines, ""])


def plot(table: Table, path: Path) -> None:
    """Taught against unseen distance, and style probability against bleeding, along training; a dot for each moment."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (arm, runs), colour in zip(table.items(), ("#0969da", "#bc4c00"), strict=False):
        for seed, run in runs.items():
            whole = {"label": arm, "marker": "o", "lw": 1.8} if seed == 0 else {"marker": ".", "lw": 0.7}
            right.plot(
                [m["blob@2"] for m in run.values()], [m["bleed"] for m in run.values()], color=colour, **whole
            )
            if seed == 0:
                left.plot(
                    [m["taught@1"] for m in run.values()],
                    [m["style@1"] for m in run.values()],
                    color=colour,
                    **whole,
                )
                for step, m in run.items():
                    left.annotate(step, (m["taught@1"], m["style@1"]), fontsize=7, color=colour)
    left.set(
        title="style distance, CFG 1: nearer is lower left",
        xlabel="taught captions",
        ylabel="held-out captions",
    )
    left.set(xscale="log", yscale="log")
    right.set(title="what style costs, CFG 2", xlabel="style probability", ylabel="bleeding")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=80)


def save(results: Sequence[Result], folder: Path) -> None:
    """Write the stored results, the picture, and the tables of the page."""
    stored = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    page_file, own = folder / "study.md", rounded(results)
    before, _, rest = page_file.read_text(encoding="utf-8").partition(FRONT_MARK)
    written = page(table_of(own), [Result(**result) for result in stored])
    text = f"{before}{FRONT_MARK}\n{written}{MARKED}{rest.partition(MARKED)[2]}"
    write_atomically(page_file, text.encode())
    lines = ",\n ".join(json.dumps(asdict(result)) for result in own)
    write_atomically(folder / "fronts.json", f"[{lines}]\n".encode())
    plot(table_of(own), folder / "front.png")


def main() -> None:
    """Run, or save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    place = ROOT / "out" / "study" / "fronts.jsonl"
    parser.add_argument("--results", type=Path, default=place, help="one line per run")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run begins after so long")
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="write fronts.json, front.png and the tables there"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.save:
        save(read(options.results), options.save)
    else:
        carry_out(options.results, options.minutes)


if __name__ == "__main__":
    main()
