"""What a rolled row is trained on: how its input is made, and what is asked of the model there.

Everything is stated for the velocity ``v = dx/dsigma``, which flow, epsilon and v models share
(`forms.to_velocity`). ``u`` is the true velocity of the clean interpolant (``noise - x0`` for flow,
``noise`` for VE), ``sg`` stops the gradient. A row starts at ``x_s``, the clean interpolant at its source
sigma s, and is trained at its target sigma t < s. `mixflow` alone rolls nothing out: its rows are trained where they
start, and told t.

To try a new idea: write one function, register it in `TARGETS`, add one test.
docs/theory.md has the theory: which targets keep an exact model exact, and which do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...samplers import SAMPLERS, prepare, sent, start, step
from ...samplers.schedules import Process, Schedule
from ..conditioning import Cond, select
from ..forms import Prediction, expand


class Model(Protocol):
    """What a rollout needs of a model: `models.source.Denoiser` has it."""

    prediction: Prediction
    schedule: Schedule

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """``dx/dsigma`` at `x: [A, ...]`, `sigma: [A]`."""
        ...

    def denoised(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The estimate of x0 at `x: [A, ...]`, `sigma: [A]`."""
        ...


class Field:
    """The model over the R rolled rows of a batch, as solvers call it: each row with its own conditioning.

    Every rollout calls it first with all rows at their sources. That velocity is kept: `residual` asks for it.

    Args:
        model: without gradient.
        cond: named tensors [R, ...].
        count: told the rows of every model call.
        guidance: scale of classifier-free guidance (2207.12598) of the steps; 1 is none.
        free: named tensors [R, ...], the conditioning without captions that guidance leads away from.
    """

    def __init__(
        self,
        model: Model,
        cond: Cond,
        count: Callable[[int], None],
        guidance: float = 1.0,
        free: Cond | None = None,
    ) -> None:
        self.model, self.cond, self.count = model, cond, count
        self.guidance, self.free = guidance, free
        self.size = len(next(iter(cond.values()), ()))
        self._first: list[Tensor] = []

    def guided(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """The guided estimate of x0, both halves in one call; what is kept of the first is the captions' half."""
        assert self.free is not None
        cond, free = select(self.cond, rows), select(self.free, rows)
        both = {name: torch.cat([value, free[name]]) for name, value in cond.items()}
        self.count(2 * len(rows))
        v, v_free = self.model.velocity(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        self._first = self._first or [v]
        return x - expand(sigma, x) * torch.lerp(v_free, v, self.guidance)

    @property
    def velocity_source(self) -> Tensor:
        """[R, ...] what the first call gave, every row at its own source."""
        return self._first[0]

    def at(self, rows: Tensor) -> Cond:
        """Conditioning [A, ...] of the rows `rows: LongTensor [A]`, on the CPU, which are about to be computed."""
        self.count(len(rows))
        return self.cond if len(rows) == self.size else select(self.cond, rows)

    def velocity(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """``dx/dsigma`` of the rows `rows: LongTensor [A]` at `x: [A, ...]`, `sigma: [A]`."""
        velocity = self.model.velocity(x, sigma, self.at(rows))
        self._first = self._first or [velocity]
        return velocity

    def denoised(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """The estimate of x0 there; the first call goes by the velocity, so that both come from one model call."""
        if self.guidance != 1:
            return self.guided(x, sigma, rows)
        if self._first:
            return self.model.denoised(x, sigma, self.at(rows))
        self._first.append(self.model.velocity(x, sigma, self.at(rows)))
        return x - expand(sigma, x) * self._first[0]


@dataclass(frozen=True)
class Route:
    """Where the R rolled rows of a batch go, before anything was computed."""

    x_source: Tensor
    """[R, ...] clean interpolant at the source sigma."""
    x_target: Tensor
    """[R, ...] clean interpolant at the target sigma (same x0, same noise)."""
    sigmas: Tensor
    """[R, T+1] float64 on the CPU: each row's own steps from source to target, padded with the target's sigma."""


@dataclass(frozen=True)
class Solver:
    """The solver of the rollout."""

    sampler: str
    order: int
    process: Process


@dataclass(frozen=True)
class Rolled:
    """The rolled rows of a batch at their training input."""

    x_hat: Tensor
    """[R, ...] the training input."""
    sigma: Tensor
    """[R] its noise level t."""
    velocity_source: Tensor
    """[R, ...] the model's own velocity at ``x_s``, the rollout's first forward."""
    x0: Tensor
    """[R, ...] the data."""
    u: Tensor
    """[R, ...] the true velocity of the clean interpolant."""
    process: Process


# --- how the training input is made -------------------------------------------------------------


def own_trajectory(
    field: Field, route: Route, solver: Solver, path: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The model's own field integrated from source to target; all rows together, each its own steps.

    What is not finite raises on the CPU. Elsewhere it stays in ``x_hat``, and nobody waits to look.

    Args:
        path: where the state after every step is appended, [R, ...] each (rows that have ended repeat).

    Returns:
        ``(x_hat, velocity_source)``, both [R, ...].
    """
    x = route.x_source
    plan, state = prepare(x, route.sigmas, solver.sampler, solver.order, solver.process), start(x)
    for _ in plan.steps:
        state = step(field.denoised, state, plan)
        if path is not None:
            path.append(state.x)
    return state.x.to(x.dtype), field.velocity_source


def solver_difference(
    field: Field, route: Route, solver: Solver, path: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The clean interpolant, displaced by the error of one coarse (Euler) step over the whole offset.

    The finer step from the same source is Heun's, or the solver's own where that looks at the field more than once;
    ``x_hat = x_t + (x_coarse - x_fine)``.
    """
    x = route.x_source
    s, t = (sent(route.sigmas[:, i], x.device, x.dtype) for i in (0, -1))
    rows = torch.arange(len(x))
    h = expand(t - s, x)
    if SAMPLERS[solver.sampler].calls_per_step > 1:
        ends = Route(x, route.x_target, route.sigmas[:, [0, -1]])
        x_fine, v = own_trajectory(field, ends, solver)
        x_coarse = x + h * v
    else:
        v = field.velocity(x, s, rows)
        x_coarse = x + h * v
        x_fine = x + h * (v + field.velocity(x_coarse, t, rows)) / 2
    return route.x_target + (x_coarse - x_fine), v


def slowed_interpolant(
    field: Field, route: Route, solver: Solver, path: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The clean interpolant at the source, where the model is told the target's sigma; no model call (2512.19311)."""
    return route.x_source, torch.zeros_like(route.x_source)


# --- what is asked there ------------------------------------------------------------------------


def clean(rolled: Rolled, v_hat: Tensor) -> Tensor:
    """``u``: the interpolant's velocity, as if the drift had not happened. Teaches E[x0 | x_s]: too flat."""
    return rolled.u


def residual(rolled: Rolled, v_hat: Tensor) -> Tensor:
    """``sg v(x_hat, t) + u - sg v(x_s, s)``: the source's own error, asked for at the rolled state.

    The error has mean zero given ``x_s`` exactly when the field is right there, and ``x_hat`` is a function
    of ``x_s``; so the exact field is a fixed point at any length and with any solver.
    """
    return v_hat + rolled.u - rolled.velocity_source


def towards_data(rolled: Rolled, v_hat: Tensor) -> Tensor:
    """``(x_hat - x0) / t``: the straight line from the training input to the data."""
    return (rolled.x_hat - rolled.x0) / expand(rolled.sigma, rolled.x_hat)


def low_noise_weight(rolled: Rolled) -> Tensor:
    """``min(1, (t / 0.3)^2)``, [R]: `towards_data` grows like 1/t. VE noise levels count as ``t = s / (1 + s)``."""
    t = rolled.sigma if rolled.process == "flow" else rolled.sigma / (1 + rolled.sigma)
    return (t / 0.3).square().clamp(max=1)


# --- the registry -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One way to train rolled rows."""

    velocity: Callable[[Rolled, Tensor], Tensor]
    """``velocity(rolled, sg v_hat [R, ...]) -> [R, ...]`` what is asked of the model."""
    construct: Callable[[Field, Route, Solver, list[Tensor] | None], tuple[Tensor, Tensor]] = own_trajectory
    """``construct(field, route, solver, path) -> (x_hat, velocity_source)``: how the input is made."""
    weight: Callable[[Rolled], Tensor] | None = None
    """Weight of the loss per row, [R]; None is 1."""

    @property
    def slowed(self) -> bool:
        """Whether rows stay at their sources, and are not rolled out."""
        return self.construct is slowed_interpolant

    def row_evaluations(self, sampler: str, steps: float) -> float:
        """No-grad model evaluations that make the input of one row rolled over `steps` steps."""
        if self.slowed:
            return 0
        if self.construct is solver_difference:
            return max(2, SAMPLERS[sampler].calls_per_step)
        return steps * SAMPLERS[sampler].calls_per_step


TARGETS: dict[str, Target] = {
    "residual": Target(residual),
    "solver_error": Target(towards_data, construct=solver_difference, weight=low_noise_weight),
    "clean": Target(clean),
    "corrective": Target(towards_data, weight=low_noise_weight),
    "mixflow": Target(clean, construct=slowed_interpolant),
}
