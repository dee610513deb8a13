"""The four solvers, one step each: Euler, DPM-Solver++ multistep, UniPC and classic Runge-Kutta.

Each is a pair: `columns`, its numbers for every step of every row, computed once before the run, and `advance`, which
applies one step to the rows that take it. All rows of a step go through the same tensor operations, whatever
their orders and lengths are; a row of lower order has weights of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import coefficients
from .coefficients import Nodes

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``denoise(x: [A, ...], sigma: [A], rows: LongTensor [A]) -> denoised: [A, ...]`` for the rows `rows` of the batch."""


@dataclass(frozen=True)
class State:
    """Where a run stands between two steps. Immutable: a step makes a new one, and any may be kept or resumed."""

    x: Tensor
    """[B, ...] the state at the noise level that the rows have reached."""
    step: int = 0
    """Steps done, of the plan's T."""
    denoised: tuple[Tensor, ...] = ()
    """The newest predictions, the newest first, each [B, ...]. Where a row has not made one it holds the row's x."""
    corrected: Tensor | None = None
    """UniPC: [B, ...] the corrected state from which the last step was taken."""
    failed: Tensor | None = None
    """LongTensor [B], off the CPU: the step in which the row was first not finite, or -1."""


@dataclass(frozen=True)
class Step:
    """One step of a plan for the A rows that take it. Rows, sigmas and numbers are on the device of x."""

    rows: Tensor
    """LongTensor [A]."""
    everyone: bool
    """All rows of the batch take it."""
    sigma: Tensor
    """[A] noise level at the start."""
    sigma_next: Tensor
    """[A] noise level at the end."""
    above_zero: Tensor | None
    """LongTensor: the places in `rows` of those that end above sigma = 0; None where that is all of them."""
    c: tuple[Tensor, ...]
    """The solver's columns, each [A, 1, ..., 1]."""

    def take(self, places: Tensor) -> Step:
        """Return the step for the rows at `places` of `rows`, all of which end above sigma = 0."""
        rows, sigma, sigma_next = (t[places] for t in (self.rows, self.sigma, self.sigma_next))
        return Step(rows, False, sigma, sigma_next, None, tuple(c[places] for c in self.c))


@dataclass(frozen=True)
class Sampler:
    """A solver and what it costs."""

    name: str
    calls_per_step: int
    """Model calls a step; the step to sigma = 0 is an Euler step, one call, in every solver."""
    max_order: int
    """Highest `order` it takes; a solver that is not multistep has this order whatever is asked for."""
    multistep: bool
    columns: Callable[[Nodes, int], Tensor]
    """Numbers of every step, [B, T, C]."""
    advance: Callable[[Denoise, State, Step], State]
    """Take one step; the state holds the active rows alone."""


def extrapolate(denoised: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
    """``D = m_0 + sum_k v_k (m_k - m_0)`` over the predictions `denoised` = m_0, m_1, ... as far as there are any."""
    m_0, *others = denoised
    D = m_0  # noqa: N806
    for k, (v_k, m_k) in enumerate(zip(v, others, strict=False)):
        D = torch.lerp(m_0, m_k, v_k) if k == 0 else torch.addcmul(D, v_k, m_k - m_0)  # noqa: N806
    return D


# Euler: x_next = x + (sigma_next - sigma) velocity, which is ratio x + (1 - ratio) denoised.


def euler_columns(nodes: Nodes, order: int) -> Tensor:
    """``ratio``."""
    return coefficients.ratio(nodes)[..., None]


def euler(denoise: Denoise, state: State, step: Step) -> State:
    """Take an Euler step; equals DDIM and DPM-Solver++ of order 1."""
    (ratio,) = step.c
    denoised = denoise(state.x, step.sigma, step.rows)
    return State(torch.lerp(denoised, state.x, ratio), state.step + 1, (denoised,))


def dpm_columns(nodes: Nodes, order: int) -> Tensor:
    """``ratio, v_1 .. v_{order-1}``."""
    v = coefficients.predictor_weights(nodes, order)
    return torch.cat([coefficients.ratio(nodes)[..., None], v], dim=-1)


def dpm(denoise: Denoise, state: State, step: Step) -> State:
    """Take a DPM-Solver++ multistep step (2211.01095, Algorithm 2 for order 2).

    Order 3 differs from the released code (and from diffusers, which copies it) on purpose. There the second
    derivative enters with half its weight, D2 = (D1_0 - D1_1) / (r_0 + r_1) in the place of h^2 m'', of
    which it is one half; that makes the published order 3 converge with order 2. Here D2 counts twice.
    """
    ratio, *v = step.c
    denoised = denoise(state.x, step.sigma, step.rows)
    history = (denoised, *state.denoised)[: len(v) + 1]
    D = extrapolate(history, v)  # noqa: N806
    return State(torch.lerp(D, state.x, ratio), state.step + 1, history)


def unipc_columns(nodes: Nodes, order: int) -> Tensor:
    """``ratio, v_1 .. v_{order-1}`` of the predictor, then ``ratio, v_1 .. v_order`` of the corrector.

    The corrector's are those of the row's previous step; the first step has none to correct (ratio 1 keeps x).
    """
    ratio = coefficients.ratio(nodes)[..., None]
    corrector = torch.cat([ratio, coefficients.corrector_weights(nodes, order)], dim=-1)
    nothing = torch.zeros_like(corrector[:, :1])
    nothing[..., 0] = 1.0
    corrector = torch.cat([nothing, corrector], dim=1)[:, : nodes.h.shape[1]]
    return torch.cat([ratio, coefficients.predictor_weights(nodes, order), corrector], dim=-1)


def unipc(denoise: Denoise, state: State, step: Step) -> State:
    """Take a UniPC-p step with B(h) = e^h - 1 on data prediction (2302.04867, Algorithms 1 and 2).

    The prediction at x serves twice: it corrects x, going again from the state before it, and predicts the next.
    """
    order = len(step.c) // 2
    ratio, v = step.c[0], step.c[1:order]
    ratio_back, v_back = step.c[order], step.c[order + 1 :]
    denoised = denoise(state.x, step.sigma, step.rows)
    corrected = state.x
    if state.corrected is not None:
        m_0, *older = state.denoised
        D = extrapolate((m_0, denoised, *older), v_back)  # noqa: N806
        corrected = torch.lerp(D, state.corrected, ratio_back)
    history = (denoised, *state.denoised)[:order]
    x_next = torch.lerp(extrapolate(history, v), corrected, ratio)
    return State(x_next, state.step + 1, history, corrected)


def rk4_columns(nodes: Nodes, order: int) -> Tensor:
    """``ratio, sigma_mid``, the step's length in sigma, and 1 / sigma at start, middle and end."""
    middle = (nodes.sigma + nodes.sigma_next) / 2
    length = nodes.sigma_next - nodes.sigma
    sigmas = [1 / nodes.sigma, 1 / middle, 1 / nodes.sigma_next]
    return torch.stack([coefficients.ratio(nodes), middle, length, *sigmas], dim=-1)


def rk4(denoise: Denoise, state: State, step: Step) -> State:
    """Take a classic fourth-order Runge-Kutta step in sigma, the stages at sigma, twice the midpoint, and sigma_next.

    The midpoint is that of sigma, not of u: at the shifted image of half a step of u the order falls to 2. The
    velocity ``(x - denoised) / sigma`` has no value at sigma = 0: rows that end there take an Euler step.
    """
    denoised = denoise(state.x, step.sigma, step.rows)
    if step.above_zero is None:
        return State(_rk4_stages(denoise, state.x, denoised, step), state.step + 1, (denoised,))
    x_next, places = torch.lerp(denoised, state.x, step.c[0]), step.above_zero
    if len(places):
        x, m = state.x.index_select(0, places), denoised.index_select(0, places)
        x_next = x_next.index_copy(0, places, _rk4_stages(denoise, x, m, step.take(places)))
    return State(x_next, state.step + 1, (denoised,))


def _rk4_stages(denoise: Denoise, x: Tensor, denoised: Tensor, step: Step) -> Tensor:
    """Return x_next from the prediction `denoised` at the step's start and three more calls."""
    _, middle, length, per_sigma, per_middle, per_sigma_next = step.c
    sigma_mid = middle.reshape(-1)
    k_1 = (x - denoised) * per_sigma
    x_2 = torch.addcmul(x, k_1, length, value=0.5)
    k_2 = (x_2 - denoise(x_2, sigma_mid, step.rows)) * per_middle
    x_3 = torch.addcmul(x, k_2, length, value=0.5)
    k_3 = (x_3 - denoise(x_3, sigma_mid, step.rows)) * per_middle
    x_4 = torch.addcmul(x, k_3, length)
    k_4 = (x_4 - denoise(x_4, step.sigma_next, step.rows)) * per_sigma_next
    return torch.addcmul(x, k_1 + 2 * k_2 + 2 * k_3 + k_4, length, value=1 / 6)


SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("unipc", 1, 3, True, unipc_columns, unipc),
        Sampler("euler", 1, 1, False, euler_columns, euler),
        Sampler("dpm", 1, 3, True, dpm_columns, dpm),
        Sampler("rk4", 4, 4, False, rk4_columns, rk4),
    )
}
"""The solvers by name."""
