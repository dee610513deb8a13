"""Who computes what of a batch that several ranks share: rows dealt by their work, and what they made put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..objective.rollout import RolloutPlan
from ..objective.states import RolledStates, Trail, join

Work = Callable[[int], float]
"""The work of a row that is rolled out over so many steps, in model calls; of 0 steps, one that is not rolled."""


@dataclass(frozen=True)
class Share:
    """What one rank computes of a batch of B rows, of which R are trained at states of the model's own."""

    rows: Tensor | None
    """LongTensor [b], ascending: its rows of the batch; None is all of them."""
    plan: RolloutPlan | None
    """Of its own rows, numbered from 0 to b - 1; None if none of them is rolled."""
    planned: Tensor | None
    """LongTensor [r], ascending: its rows of the whole batch's plan; None is all of them."""
    weight: float = 1.0
    """b / B: what its mean over rows counts in the batch's."""
    rolled_weight: float = 1.0
    """r / R, or NaN where R is 0: what its mean over rolled rows counts."""

    def of_batch(self, value: Any) -> Any:
        """Its rows of something that has ``at(rows)``, such as a `Batch`."""
        return value if self.rows is None else value.at(self.rows)

    def of_rows(self, value: Tensor) -> Tensor:
        """Its rows of a tensor [B, ...]."""
        return value if self.rows is None else value[self.rows]

    def of_states(self, states: RolledStates) -> RolledStates | None:
        """Its own of the batch's R states; None if it has none."""
        if self.planned is None:
            return states
        return states.at(self.planned) if len(self.planned) else None


def whole(plan: RolloutPlan | None) -> Share:
    """The share of a rank that is alone."""
    return Share(None, plan, None)


def share_of(rank: int, size: int, n: int, plan: RolloutPlan | None, work: Work) -> Share:
    """What rank number `rank` of `size` computes of a batch of `n` rows."""
    steps = torch.zeros(n, dtype=torch.long)
    if plan is not None:
        steps[plan.rows] = plan.steps
    owner = torch.tensor(deal([work(k) for k in steps.tolist()], size))
    rows = (owner == rank).nonzero()[:, 0]
    if plan is None:
        return Share(rows, None, None, len(rows) / n, math.nan)
    planned = (owner[plan.rows] == rank).nonzero()[:, 0]
    own = None
    if len(planned):
        numbers = torch.searchsorted(rows, plan.rows[planned])
        own = RolloutPlan(numbers, plan.steps[planned], plan.u_source[planned], plan.u_target[planned])
    return Share(rows, own, planned, len(rows) / n, len(planned) / len(plan.rows))


def deal(work: Sequence[float], size: int) -> list[int]:
    """The rank of every row, such that the busiest rank has little more to do than the others.

    The longest row first, each to the rank with the least work that has room (longest processing time first), then
    rows exchanged for shorter ones as long as that helps. No rank gets more than its part of the rows, rounded up,
    because memory is what limits a batch.
    """
    room = math.ceil(len(work) / size)
    hands: list[list[int]] = [[] for _ in range(size)]
    loads = [0.0] * size
    for row in sorted(range(len(work)), key=lambda row: -work[row]):
        rank = min((r for r in range(size) if len(hands[r]) < room), key=lambda r: (loads[r], r))
        hands[rank].append(row)
        loads[rank] += work[row]
    while _exchange(work, hands, loads):
        pass
    owner = [0] * len(work)
    for rank, rows in enumerate(hands):
        for row in rows:
            owner[row] = rank
    return owner


def _exchange(work: Sequence[float], hands: list[list[int]], loads: list[float]) -> bool:
    """Exchange one row of the busiest rank for a shorter one of another; whether that lowered the higher load."""
    busy = max(range(len(hands)), key=loads.__getitem__)
    best, found = loads[busy] - 1e-9, None
    for other in range(len(hands)):
        for i, row in enumerate(hands[busy]):
            for j, shorter in enumerate(hands[other]):
                moved = work[row] - work[shorter]
                higher = max(loads[busy] - moved, loads[other] + moved)
                if moved > 0 and higher < best:
                    best, found = higher, (other, i, j, moved)
    if found is None:
        return False
    other, i, j, moved = found
    hands[busy][i], hands[other][j] = hands[other][j], hands[busy][i]
    loads[busy] -= moved
    loads[other] += moved
    return True


def merged(parts: Sequence[tuple[Tensor, Trail]], steps: Tensor) -> Trail:
    """The trail of a whole batch's plan, of those that the ranks' own rows left: as one process has it.

    Args:
        parts: of each rank with rolled rows its rows of the plan, ascending, and their trail.
        steps: LongTensor [R] of the whole plan.
    """
    planned = torch.cat([own for own, _ in parts])
    ends = join([trail.ends for _, trail in parts]).at(planned.argsort())
    length = int(steps.max())
    _, row = (steps >= torch.arange(1, length + 1)[:, None]).nonzero(
        as_tuple=True
    )  # [S], as `along` has them
    order = torch.cat([torch.isin(row, own).nonzero()[:, 0] for own, _ in parts]).argsort()
    x_hat, sigma = (torch.cat([getattr(trail, name) for _, trail in parts]) for name in ("x_hat", "sigma"))
    order_there = order.to(x_hat.device)
    return Trail(ends, x_hat[order_there], sigma[order_there], row)
