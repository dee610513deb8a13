"""What a rolled row is trained on: how its input is made, and what is asked of the model there.

Everything is stated for the velocity ``v = dx/dsigma``, which flow, epsilon and v models share
(`denoiser.to_velocity`). ``u`` is the true velocity of the clean interpolant (``noise - x0`` for flow,
``noise`` for VE), ``sg`` stops the gradient. A row starts at ``x_s``, the clean interpolant at its source
sigma s, and is trained at its target sigma t < s.

To try a new idea: write one function, register it in `TARGETS`, add one test.
docs/theory.md has the theory: which targets keep an exact model exact, and which do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers import SAMPLERS, integrate
from ...samplers.schedules import Process
from ..forms import expand

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``velocity(x [A, ...], sigma [A], rows LongTensor [A]) -> dx/dsigma [A, ...]``, without gradient."""


@dataclass(frozen=True)
class Start:
    """The rolled rows of a batch before anything was computed."""

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
    velocity: Velocity, start: Start, solver: Solver, path: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Integrate the model's own field from source to target; all rows together, each its own steps.

    Args:
        path: where the state after every step is appended, [R, ...] each (rows that have ended repeat).

    Returns:
        ``(x_hat, velocity_source)``, both [R, ...].
    """
    calls: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        v = velocity(x, sigma, rows)
        if not calls:  # every row is at its own source here: rows start together and end apart
            calls.append(v)
        return x - expand(sigma, x) * v

    x_hat = integrate(
        denoise,
        start.x_source,
        start.sigmas,
        sampler=solver.sampler,
        order=solver.order,
        process=solver.process,
        callback=None if path is None else lambda frame: path.append(frame.x),
    )
    return x_hat, calls[0]


def solver_difference(
    velocity: Velocity, start: Start, solver: Solver, path: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Displace the clean interpolant by the error of one coarse (Euler) step over the whole offset.

    The finer step from the same source is Heun's, or the solver's own where that looks at the field more than once;
    ``x_hat = x_t + (x_coarse - x_fine)``.
    """
    x = start.x_source
    s, t = start.sigmas[:, 0].to(x), start.sigmas[:, -1].to(x)
    rows = torch.arange(len(x), device=x.device)
    h = expand(t - s, x)
    if SAMPLERS[solver.sampler].calls_per_step > 1:
        ends = Start(x, start.x_target, start.sigmas[:, [0, -1]])
        x_fine, v = own_trajectory(velocity, ends, solver)
        x_coarse = x + h * v
    else:
        v = velocity(x, s, rows)
        x_coarse = x + h * v
        x_fine = x + h * (v + velocity(x_coarse, t, rows)) / 2
    return start.x_target + (x_coarse - x_fine), v


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
    construct: Callable[[Velocity, Start, Solver, list[Tensor] | None], tuple[Tensor, Tensor]] = (
        own_trajectory
    )
    """How the input is made: returns ``(x_hat, velocity_source)``."""
    weight: Callable[[Rolled], Tensor] | None = None
    """Weight of the loss per row, [R]; None is 1."""

    def row_evaluations(self, sampler: str, steps: float) -> float:
        """No-grad model evaluations that make the input of one row rolled over `steps` steps."""
        if self.construct is solver_difference:
            return max(2, SAMPLERS[sampler].calls_per_step)
        return steps * SAMPLERS[sampler].calls_per_step


TARGETS: dict[str, Target] = {
    "residual": Target(residual),
    "solver_error": Target(towards_data, construct=solver_difference, weight=low_noise_weight),
    "clean": Target(clean),
    "corrective": Target(towards_data, weight=low_noise_weight),
}
