"""The four solvers, one step each: Euler, DPM-Solver++ multistep, UniPC and classic Runge-Kutta.

A solver is two functions: `..._columns`, its numbers for every step of every row, made once before a run, and
the step itself. All rows of a step go through the same tensor operations, whatever their orders: a row of
lower order has weights of 0 (see `coefficients` for the symbols).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .coefficients import Quadrature, corrector_weights, predictor_weights, sigma_ratio
from .transfer import sent

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``denoise(x [A, ...], sigma [A], rows LongTensor [A]) -> denoised [A, ...]``, for `rows` of the batch.

`rows` lie on the CPU, where whoever chooses by them need not wait; `sent` brings them to a device.
"""


@dataclass(frozen=True)
class SolverState:
    """Where a run stands between two steps. A step makes a new one, so any may be kept and resumed from."""

    x: Tensor
    """[B, ...] at the noise level that each row has reached."""
    step: int = 0
    """Steps done, of the plan's T."""
    denoised: tuple[Tensor, ...] = ()
    """The latest predictions, newest first, each [B, ...]; what a row has not predicted yet is its x."""
    corrected: Tensor | None = None
    """UniPC: [B, ...] the corrected state that the last step went out from."""
    failed: Tensor | None = None
    """LongTensor [B], off the CPU only: the step after which the row was first not finite, or -1."""


@dataclass(frozen=True)
class Step:
    """One step of a plan, for the A rows that take it. On the device of x, but for what it says of the CPU."""

    rows: Tensor
    """LongTensor [A]."""
    told: Tensor
    """LongTensor [A]: the same on the CPU, as `Denoise` is told them."""
    everyone: bool
    """Whether these are all rows of the batch, in order."""
    sigma: Tensor
    """[A] noise level at the start."""
    sigma_next: Tensor
    """[A] noise level at the end."""
    above_zero: Tensor | None
    """LongTensor, on the CPU: places in `rows` of those with sigma_next > 0; None where that is all of them."""
    columns: tuple[Tensor, ...]
    """The solver's numbers, each [A, 1, ..., 1]."""

    def take(self, places: Tensor, there: Tensor) -> Step:
        """The step for those rows alone that stand at `places` and end above sigma = 0; `there`: on its device."""
        rows, sigma, sigma_next = (t[there] for t in (self.rows, self.sigma, self.sigma_next))
        columns = tuple(c[there] for c in self.columns)
        return Step(rows, self.told[places], False, sigma, sigma_next, None, columns)


@dataclass(frozen=True)
class Sampler:
    """A solver and what it costs."""

    name: str
    calls_per_step: int
    """Model calls of a step. The step to sigma = 0 is an Euler step, and one call, in every solver."""
    max_order: int
    """Highest order it has."""
    multistep: bool
    """Whether it has a choice of orders; one that has not ignores `order` and always has `max_order`."""
    columns: Callable[[Quadrature, int], Tensor]
    """``columns(quadrature, order)``: the numbers of every step, [B, T, C], float64."""
    advance: Callable[[Denoise, SolverState, Step], SolverState]
    """Take one step; the state given and returned holds the rows of the step alone. Predictions go through
    `checked`."""


def checked(denoised: Tensor, x: Tensor) -> Tensor:
    """What the model answered at `x`, in the dtype of the state.

    Raises:
        ValueError: it has another shape.
    """
    if denoised.shape != x.shape:
        raise ValueError(
            f"denoise must return the shape of its x, {tuple(x.shape)}, got {tuple(denoised.shape)}"
        )
    return denoised.to(x.dtype)


def extrapolate(denoised: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
    """``D = m_0 + sum_k v_k (m_k - m_0)`` over as many predictions `denoised` = m_0, m_1, .. as there are."""
    m_0, *others = denoised
    terms = list(zip(v, others, strict=False))
    d = torch.lerp(m_0, others[0], v[0]) if terms else m_0
    for v_k, m_k in terms[1:]:
        d = torch.addcmul(d, v_k, m_k - m_0)
    return d


def euler_columns(quadrature: Quadrature, order: int) -> Tensor:
    """``ratio``."""
    return sigma_ratio(quadrature)[..., None]


def euler(denoise: Denoise, state: SolverState, step: Step) -> SolverState:
    """Take an Euler step, ``x + (sigma_next - sigma) velocity``; DDIM and DPM-Solver++ of order 1 too."""
    (ratio,) = step.columns
    denoised = checked(denoise(state.x, step.sigma, step.told), state.x)
    return SolverState(torch.lerp(denoised, state.x, ratio), state.step + 1, (denoised,))


def dpm_columns(quadrature: Quadrature, order: int) -> Tensor:
    """``ratio, v_1 .. v_{order-1}``."""
    return torch.cat([sigma_ratio(quadrature)[..., None], predictor_weights(quadrature, order)], dim=-1)


def dpm(denoise: Denoise, state: SolverState, step: Step) -> SolverState:
    """Take a DPM-Solver++ multistep step (2211.01095, Algorithm 2, for order 2).

    Order 3 departs from the released code, and so from diffusers, on purpose. There the second derivative
    enters as ``D2 = (D1_0 - D1_1) / (r_0 + r_1)``, which is h^2 m'' / 2, with the weight that h^2 m'' should
    have: half of it is lost, and the method converges with order 2. Here it has the order of its name.
    """
    ratio, *v = step.columns
    denoised = checked(denoise(state.x, step.sigma, step.told), state.x)
    history = (denoised, *state.denoised)[: len(v) + 1]
    return SolverState(torch.lerp(extrapolate(history, v), state.x, ratio), state.step + 1, history)


def unipc_columns(quadrature: Quadrature, order: int) -> Tensor:
    """Predictor: ``ratio, v_1 .. v_{order-1}``; then corrector: ``ratio, v_end, v_1 .. v_{order-1}``.

    A step corrects the one before it, so the corrector's numbers are those of the step before; a row's first
    step has nothing to correct: ratio 1 leaves x as it is.
    """
    ratio = sigma_ratio(quadrature)[..., None]
    corrector = torch.cat([ratio, corrector_weights(quadrature, order)], dim=-1)
    nothing = torch.tensor([1.0] + [0.0] * order, dtype=ratio.dtype).expand_as(corrector[:, :1])
    corrector = torch.cat([nothing, corrector[:, :-1]], dim=1)
    return torch.cat([ratio, predictor_weights(quadrature, order), corrector], dim=-1)


def unipc(denoise: Denoise, state: SolverState, step: Step) -> SolverState:
    """Take a UniPC-p step on data prediction with B(h) = e^h - 1 (2302.04867, Algorithms 7 and 8).

    One prediction serves twice: it corrects the step that led to x, and predicts the next one.
    """
    order = len(step.columns) // 2
    ratio, *v = step.columns[:order]
    ratio_before, *v_before = step.columns[order:]
    denoised = checked(denoise(state.x, step.sigma, step.told), state.x)
    corrected = state.x
    if state.corrected is not None:
        m_0, *older = state.denoised
        d = extrapolate((m_0, denoised, *older), v_before)
        corrected = torch.lerp(d, state.corrected, ratio_before)
    history = (denoised, *state.denoised)[:order]
    x_next = torch.lerp(extrapolate(history, v), corrected, ratio)
    return SolverState(x_next, state.step + 1, history, corrected)


def rk4_columns(quadrature: Quadrature, order: int) -> Tensor:
    """``ratio``, the middle sigma, the step's length in sigma, 1 / sigma at start, middle and end."""
    middle = (quadrature.sigma + quadrature.sigma_next) / 2
    length = quadrature.sigma_next - quadrature.sigma
    inverse = [1 / quadrature.sigma, 1 / middle, 1 / quadrature.sigma_next]
    return torch.stack([sigma_ratio(quadrature), middle, length, *inverse], dim=-1)


def rk4(denoise: Denoise, state: SolverState, step: Step) -> SolverState:
    """Take a step of the classic Runge-Kutta tableau, stages at sigma, twice the middle, and sigma_next.

    The middle is that of sigma, not of u: at the shifted image of half a step of u the order falls to 2. Rows
    that end at sigma = 0, where ``(x - denoised) / sigma`` has no value, take an Euler step.
    """
    denoised = checked(denoise(state.x, step.sigma, step.told), state.x)
    x, k_1, inner = state.x, state.x - denoised, step
    if step.above_zero is not None:
        ended = torch.lerp(denoised, x, step.columns[0])
        if not len(step.above_zero):
            return SolverState(ended, state.step + 1, (denoised,))
        going = sent(step.above_zero, x.device)
        x, k_1, inner = x[going], k_1[going], step.take(step.above_zero, going)
    _, middle, length, per_sigma, per_middle, per_sigma_next = inner.columns
    sigma_middle = middle.reshape(-1)  # [A, 1, ..., 1] -> [A]
    k_1 = k_1.mul_(per_sigma)
    x_2 = torch.addcmul(x, length, k_1, value=1 / 2)
    k_2 = (x_2 - checked(denoise(x_2, sigma_middle, inner.told), x_2)).mul_(per_middle)
    x_3 = torch.addcmul(x, length, k_2, value=1 / 2)
    k_3 = (x_3 - checked(denoise(x_3, sigma_middle, inner.told), x_3)).mul_(per_middle)
    x_4 = torch.addcmul(x, length, k_3)
    k_4 = (x_4 - checked(denoise(x_4, inner.sigma_next, inner.told), x_4)).mul_(per_sigma_next)
    slope = torch.add(k_1 + k_4, k_2 + k_3, alpha=2)
    x_next = torch.addcmul(x, length, slope, value=1 / 6)
    if step.above_zero is not None:
        x_next = ended.index_copy(0, going, x_next)
    return SolverState(x_next, state.step + 1, (denoised,))


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
