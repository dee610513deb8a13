"""Results of runs, a line each in a file that grows whole: a trial that was killed goes on where it was."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import write_atomically

Metrics = dict[str, float]
Job = tuple[str, int]
"""Arm and seed."""
Table = Mapping[str, Mapping[int, Mapping[str, Metrics]]]
"""``table[arm][seed][moment]``."""


@dataclass(frozen=True)
class Result:
    """A run that has ended, in plain values."""

    arm: str
    seed: int
    metrics: dict[str, Metrics]
    """By moment, such as the end of the run."""


def read(path: Path) -> list[Result]:
    """The results in a file, none if it is not there."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def go_on(
    path: Path,
    jobs: Sequence[Job],
    run: Callable[[str, int], Result],
    until: float = math.inf,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Run the jobs of which `path` has no result, in order, and write each result as it ends.

    Args:
        until: `time.monotonic` after which no job begins.
        say: told of each run that ended, in a line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    results = read(path)
    done = {(result.arm, result.seed) for result in results}
    for arm, seed in jobs:
        if (arm, seed) in done:
            continue
        if time.monotonic() > until:
            return
        begin = time.monotonic()
        results.append(run(arm, seed))
        lines = "".join(json.dumps(asdict(result)) + "\n" for result in results)
        write_atomically(path, lines.encode())
        say(f"{arm}, seed {seed}: {time.monotonic() - begin:.0f} s")


def tabulated(results: Sequence[Result], order: Sequence[str]) -> Table:
    """The results by arm, in this order, and seed."""
    table: dict[str, dict[int, dict[str, Metrics]]] = {}
    for result in sorted(results, key=lambda result: order.index(result.arm)):
        table.setdefault(result.arm, {})[result.seed] = result.metrics
    return table
