"""What a trial says: its table, its differences, and a sentence for each that needs no statistics to read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .results import Table
from .statistics import Comparison, Estimate, differences
from .trial import BEST

OWN_CFG = "distance@own"
"""The distance at each arm's own best guidance scale."""
MEANING = {
    "distance": "distance of drawn pictures to held-out ones",
    "loss": "loss on held-out pictures",
}


@dataclass(frozen=True)
class Difference:
    """How an arm differs from the first one in a metric that is better the lower it is."""

    arm: str
    against: str
    metric: str
    values: tuple[float, ...]
    """One for each seed."""
    estimate: Estimate | None
    """None for one seed: nothing is known of chance then."""

    @property
    def sentence(self) -> str:
        """In plain English."""
        kind, _, cfg = self.metric.partition("@")
        at = {"": "", "own": " at each arm's own best CFG"}.get(cfg, f" at CFG {cfg}")
        what, e = f"{MEANING[kind]}{at}", self.estimate
        if e is None:
            return f"{self.arm} against {self.against}, {what}: {self.values[0]:+.4g} of one seed, which may be chance"
        figures = f"{e.mean:+.4g} [{e.low:+.4g}, {e.high:+.4g}], {len(self.values)} seeds"
        if not e.distinct:
            return f"{self.arm} against {self.against}, {what}: no difference seen ({figures})"
        word = "higher, which is worse" if e.mean > 0 else "lower, which is better"
        return f"{self.arm} against {self.against}, {what}: {word} ({figures})"


def metrics_of(table: Table) -> list[str]:
    """The metrics that arms are compared by, the one that counts most first."""
    some = next(iter(next(iter(table.values())).values()))[BEST]
    distances = [name for name in some if name.startswith("distance@")]
    return [*([OWN_CFG] if len(distances) > 1 else []), *distances, "loss"]


def own_cfg(table: Table, arm: str) -> str:
    """The metric of an arm's distance at its own best guidance scale: that with the least mean over the seeds."""
    runs = [run[BEST] for run in table[arm].values()]
    distances = [name for name in runs[0] if name.startswith("distance@")]
    return min(distances, key=lambda name: statistics.fmean(run[name] for run in runs))


def with_own_cfg(table: Table) -> Table:
    """The table with every arm's distance at its own best guidance scale."""
    if OWN_CFG not in metrics_of(table):
        return table
    return {
        arm: {
            seed: {BEST: {**run[BEST], OWN_CFG: run[BEST][own_cfg(table, arm)]}} for seed, run in runs.items()
        }
        for arm, runs in table.items()
    }


def compared(table: Table) -> list[Difference]:
    """Every arm against the first, in every metric, the metric that counts most first."""
    whole, (first, *others) = with_own_cfg(table), list(table)
    out = []
    for metric in metrics_of(table):
        for arm in others:
            values = differences(whole, Comparison(arm, arm, first, BEST, BEST), metric)
            estimate = Estimate.of(values) if len(values) > 1 else None
            out.append(Difference(arm, first, metric, tuple(values), estimate))
    return out


def as_text(table: Table) -> str:
    """The means of all arms as a Markdown table, then a sentence for each difference."""
    whole, metrics = with_own_cfg(table), metrics_of(table)
    columns = ["step", "trained", "planned", "evaluations", *metrics]
    rows = [
        [f"{arm} ({len(runs)})", *(mean_cell([run[BEST][name] for run in runs.values()]) for name in columns)]
        for arm, runs in whole.items()
    ]
    lines = markdown(["arm (seeds)", *columns], rows)
    if OWN_CFG in metrics:
        lines += ["", "Own best CFG: " + ", ".join(f"{arm} {best_cfg(table, arm):g}" for arm in table)]
    return "\n".join([*lines, "", *(found.sentence + "." for found in compared(table))])


def best_cfg(table: Table, arm: str) -> float:
    """An arm's own best guidance scale; 1 where nothing could be drawn."""
    some = next(iter(table[arm].values()))[BEST]
    if not any(name.startswith("distance@") for name in some):
        return 1.0
    return float(own_cfg(table, arm).partition("@")[2])


def winner(table: Table) -> tuple[str, int]:
    """The arm with the least mean of the metric that counts most, and its seed with the least value."""
    whole, metric = with_own_cfg(table), metrics_of(table)[0]
    arm = min(whole, key=lambda arm: statistics.fmean(run[BEST][metric] for run in whole[arm].values()))
    return arm, min(whole[arm], key=lambda seed: whole[arm][seed][BEST][metric])


def mean_cell(values: Sequence[float]) -> str:
    """Mean and standard error over the seeds."""
    if len(values) < 2:
        return f"{values[0]:.4g}"
    estimate = Estimate.of(values)
    return f"{estimate.mean:.4g}" + (f" ± {estimate.error:.2g}" if estimate.error else "")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


def plotted(found: Sequence[Difference]) -> Mapping[str, tuple[Sequence[float], float, float, float]]:
    """The differences in the metric that counts most, as `plots.difference_plot` draws them."""
    main = [d for d in found if d.metric == found[0].metric]
    return {f"{d.arm} - {d.against}": (d.values, *reach(d)) for d in main}


def reach(found: Difference) -> tuple[float, float, float]:
    """Mean and ends of the interval; of one seed, that value three times."""
    e = found.estimate
    return (found.values[0],) * 3 if e is None else (e.mean, e.low, e.high)
