"""Integrate a batch from high to low sigma, every row on its own schedule.

What the noise levels decide (which rows move in which step, their orders, all coefficients) is worked out
before the first model call, in float64 on the CPU. A step is then the model call and a few tensor operations,
and none waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from .coefficients import Quadrature
from .schedules import Process
from .solvers import SAMPLERS, Denoise, Sampler, SolverState, Step
from .transfer import sent


@dataclass(frozen=True)
class SolverPlan:
    """A run that is ready to go: the solver and its T steps."""

    sampler: Sampler
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class SolverFrame:
    """What a callback sees after a step in which at least one row moved."""

    step: int
    """Index of the step, from 0."""
    steps: int
    """T, the number of steps."""
    rows: Tensor
    """LongTensor [A]: the rows that moved."""
    sigma: Tensor
    """[A] the noise level at which those rows were, where `denoised` was predicted."""
    denoised: Tensor
    """[B, ...] every row's newest prediction (of a row that has not moved yet: its x)."""
    x: Tensor
    """[B, ...] the state after the step."""


Callback = Callable[[SolverFrame], object]
"""Called with a `SolverFrame`; its result is ignored, an exception (a cancel) goes through to the caller."""


def integrate(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    sampler: str = "unipc",
    order: int = 2,
    process: Process = "flow",
    callback: Callback | None = None,
) -> Tensor:
    """Solve ``dx/dsigma = (x - denoised) / sigma`` along `sigmas`, from high to low noise.

    Rows do not see each other: each comes out as it would alone. Where two neighbours in `sigmas` are equal
    the row rests, and the model is not called for it. Part of a trajectory (image to image, a rollout) is a
    shorter `sigmas`.

    Args:
        denoise: ``denoise(x, sigma, rows) -> denoised``, the estimate of x0 for the A rows that move: `x`
            [A, ...] and `sigma` [A] in the state's dtype, `rows` LongTensor [A], on the CPU, to select
            conditioning with.
        x: [B, ...] at the first noise level. The state is kept in float32, or float64 for a float64 `x`,
            whatever the model computes in.
        sigmas: [T + 1] or [B, T + 1] noise levels, non-increasing. Copied to the CPU, once, before the
            first step.
        sampler: a name in `SAMPLERS`.
        order: 1 to 3 for `dpm` and `unipc`; `euler` is of order 1 and `rk4` of order 4, whatever this says.
            A row's i-th step, from 0, has order ``min(order, i + 1)``, also towards the end, save that the
            step to sigma = 0 has order 1 (for `rk4`: an Euler step, of one call).
        process: ``"flow"`` for ``x = (1 - sigma) x0 + sigma noise``, ``"ve"`` for ``x = x0 + sigma noise``.
        callback: called with a `SolverFrame` after every step in which a row moved.

    Returns:
        x at the last noise level, [B, ...], in the dtype of `x`.

    Raises:
        ValueError: an unknown name, an order that the sampler lacks, shapes that do not fit, or sigmas that
            increase or that the process does not have.
        FloatingPointError: the model returned nan or inf; names step and sigma. On the CPU at once;
            elsewhere ahead of the next callback or, without one, at the end, so that no step has to wait
            for the device.
    """
    plan = prepare(x, sigmas, sampler, order, process)
    state = start(x)
    for now in plan.steps:
        state = step(denoise, state, plan)
        if callback is not None and len(now.rows):
            check_finite(state, plan)
            callback(
                SolverFrame(state.step - 1, len(plan.steps), now.rows, now.sigma, state.denoised[0], state.x)
            )
    check_finite(state, plan)
    return state.x.to(x.dtype)


def prepare(
    x: Tensor, sigmas: Tensor, sampler: str = "unipc", order: int = 2, process: Process = "flow"
) -> SolverPlan:
    """Work out a run for states like `x`; arguments and errors are those of `integrate`.

    With `start` and `step` this is the single-step form of `integrate`::

        plan, state = prepare(x, sigmas, "unipc"), start(x)
        while state.step < len(plan.steps):
            state = step(denoise, state, plan)  # look at state.x, stop, go on later
    """
    solver = _solver(sampler, order, process)
    table = _table(x, sigmas, process)
    moves = table[:, 1:] < table[:, :-1]  # [B, T]
    quadrature = Quadrature.of(table, moves, process)
    columns = torch.cat(
        [torch.stack([quadrature.sigma, quadrature.sigma_next], -1), solver.columns(quadrature, order)], -1
    )
    index, row = moves.T.nonzero(as_tuple=True)  # by step, then by row
    own = moves.cumsum(1)[row, index] - 1  # which step of the row's own it is
    counts = moves.sum(0).tolist()
    packed = sent(columns[row, own].T, x.device, _state_dtype(x))  # [2 + C, N]
    ends = (quadrature.sigma_next[row, own] == 0).split_with_sizes(counts)
    told = row.split_with_sizes(counts)
    rows = sent(row, x.device).split_with_sizes(counts)
    steps = zip(rows, told, packed.split_with_sizes(counts, dim=1), ends, strict=True)
    return SolverPlan(solver, tuple(_step(x, *parts) for parts in steps))


def start(x: Tensor) -> SolverState:
    """The state before the first step."""
    return SolverState(x.to(_state_dtype(x)))


def step(denoise: Denoise, state: SolverState, plan: SolverPlan) -> SolverState:
    """The state after the plan's next step; `state` stays as it is.

    Raises:
        FloatingPointError: on the CPU, a row is not finite after the step. Elsewhere `check_finite` tells.
        IndexError: the plan has no step left.
        ValueError: `denoise` returned another shape than it was given.
    """
    now = plan.steps[state.step]
    if not len(now.rows):
        return replace(state, step=state.step + 1)
    moved = plan.sampler.advance(denoise, state if now.everyone else _gather(state, now), now)
    failed = _failures(moved.x.detach(), state, now)
    after = replace(moved if now.everyone else _scatter(moved, state, now), failed=failed)
    if after.x.device.type == "cpu":
        check_finite(after, plan)
    return after


def check_finite(state: SolverState, plan: SolverPlan) -> None:
    """Raise FloatingPointError if the model has returned nan or inf so far. Waits for an accelerator."""
    if state.failed is None:
        return
    failed = state.failed.cpu()
    if (failed >= 0).any():
        step = int(failed[failed >= 0].min())
        row = int((failed == step).nonzero()[0])
        now = plan.steps[step]
        sigma = float(now.sigma[now.rows == row])
        raise FloatingPointError(
            f"denoised must be finite, got nan or inf at step {step} (sigma {sigma:.6g}, row {row})"
        )


def _solver(sampler: str, order: int, process: Process) -> Sampler:
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if process not in get_args(Process):
        raise ValueError(f"process must be one of {', '.join(get_args(Process))}, got {process!r}")
    solver = SAMPLERS[sampler]
    if order < 1 or (solver.multistep and order > solver.max_order):
        raise ValueError(f"order must be 1 to {solver.max_order} for {sampler}, got {order}")
    return solver


def _table(x: Tensor, sigmas: Tensor, process: Process) -> Tensor:
    """`sigmas` as [B, T + 1], float64, on the CPU, checked."""
    if not x.is_floating_point() or x.ndim == 0:
        raise ValueError(f"x must be a floating-point batch, got {x.dtype} of shape {tuple(x.shape)}")
    if sigmas.ndim not in (1, 2) or 0 in sigmas.shape[-1:] or (sigmas.ndim == 2 and len(sigmas) != len(x)):
        raise ValueError(
            f"sigmas must have shape [T + 1] or [{len(x)}, T + 1] for a batch of {len(x)}, "
            f"got {tuple(sigmas.shape)}"
        )
    table = sigmas.detach().cpu().to(torch.float64).expand(len(x), -1)
    highest = 1.0 if process == "flow" else torch.finfo(torch.float64).max
    outside = ~((table >= 0) & (table <= highest))  # nan is outside
    if outside.any():
        limits = "in [0, 1] for flow" if process == "flow" else "finite and at least 0"
        raise ValueError(f"sigmas must be {limits}, got {float(table[outside][0])}")
    rises = (table.diff(dim=1) > 0).nonzero()
    if len(rises):
        row, i = rises[0].tolist()
        raise ValueError(
            "sigmas must not increase along a row, "
            f"got {float(table[row, i])} then {float(table[row, i + 1])} at step {i} of row {row}"
        )
    return table


def _state_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _step(x: Tensor, rows: Tensor, told: Tensor, values: Tensor, ends: Tensor) -> Step:
    """Assemble a step from the columns `values`, [2 + C, A], of the rows that take it."""
    sigma, sigma_next, *c = values
    shaped = tuple(column.reshape(-1, *[1] * (x.ndim - 1)) for column in c)
    above_zero = (~ends).nonzero()[:, 0] if ends.any() else None
    return Step(rows, told, len(rows) == len(x), sigma, sigma_next, above_zero, shaped)


def _gather(state: SolverState, now: Step) -> SolverState:
    """The state of the rows that move."""

    def take(value: Tensor) -> Tensor:
        return value.index_select(0, now.rows)

    corrected = None if state.corrected is None else take(state.corrected)
    return SolverState(take(state.x), state.step, tuple(map(take, state.denoised)), corrected)


def _scatter(moved: SolverState, state: SolverState, now: Step) -> SolverState:
    """The state of the whole batch after the rows in `now` have `moved`.

    What a resting row has no value for yet becomes its x, a stand-in that only ever meets weights of 0.
    """

    def put(old: Tensor | None, new: Tensor) -> Tensor:
        return (state.x if old is None else old).index_copy(0, now.rows, new)

    old = (*state.denoised, *[None] * (len(moved.denoised) - len(state.denoised)))
    history = tuple(put(old_k, new_k) for old_k, new_k in zip(old, moved.denoised, strict=True))
    corrected = None if moved.corrected is None else put(state.corrected, moved.corrected)
    return SolverState(put(state.x, moved.x), moved.step, history, corrected)


def _failures(x: Tensor, state: SolverState, now: Step) -> Tensor | None:
    """The new `SolverState.failed`, given the rows `x` that have just moved.

    What the model gets wrong shows in the state it leads to, so one look a step is enough. On an accelerator
    the note stays there, and nothing waits. On the CPU the sum, which nan and inf survive, mostly saves the
    close look.
    """
    if x.device.type == "cpu" and x.sum().isfinite():
        return None
    finite = x.isfinite().reshape(len(x), -1).all(1)  # [A]
    failed = now.rows.new_full((len(state.x),), -1) if state.failed is None else state.failed
    earlier = failed.index_select(0, now.rows)
    return failed.index_copy(0, now.rows, torch.where(finite | (earlier >= 0), earlier, state.step))
