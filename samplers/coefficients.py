"""The numbers of the multistep solvers: everything that depends on the noise levels and not on the model.

The processes are ``x = alpha x0 + sigma noise`` (flow: alpha = 1 - sigma, VE: alpha = 1), and the solvers
work in lambda = log(alpha / sigma), half the log-SNR. With h = lambda_next - lambda and the data prediction
m = `denoised`, the exact solution over one step is (DPM-Solver++, 2211.01095, Proposition 4.1)

    x_next = sigma_next / sigma x + alpha_next (1 - e^-h) D,

where D is an average of m over the step. For flow and for VE alpha_next (1 - e^-h) = 1 - sigma_next / sigma:

    x_next = ratio x + (1 - ratio) D,    ratio = sigma_next / sigma.

This is finite at both ends: no logarithm is left at sigma = 1, and sigma_next = 0 gives D. Solvers differ
only in their D,

    D = m_0 + sum_k v_k (m_k - m_0).

Here m_0 is the prediction at the start of the step; the other m_k are older or, in a corrector, the one at
its end. With r_k = (lambda_k - lambda_0) / h, their place in units of the step, the weights v solve

    sum_k v_k r_k^i = b_i,    b_i = i! phi_{i+1}(-h) / phi_1(-h),    i = 1, 2, .. up to the number of k,

which makes D exact for polynomials in lambda. It is UniPC's system (2302.04867, section 3) with its rho_k
being our v_k r_k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedules import Process


@dataclass(frozen=True)
class Quadrature:
    """The noise levels that each row visits, its rests left out: entry j is the row's own step j.

    All are [B, T], float64, on the CPU. After its last step a row rests; what stands there is never used.
    """

    sigma: Tensor
    """Noise level at the start of the step."""
    sigma_next: Tensor
    """Noise level at its end."""
    h: Tensor
    """Its length in lambda: inf from flow's sigma = 1 and to sigma = 0."""

    @classmethod
    def of(cls, sigmas: Tensor, moves: Tensor, process: Process) -> Quadrature:
        """The noise levels in `sigmas` [B, T + 1], float64; `moves` [B, T] tells which steps are no rests."""
        visited = sigmas[:, -1:].expand_as(sigmas).clone()
        visited[:, 0] = sigmas[:, 0]
        row, step = moves.nonzero(as_tuple=True)
        visited[row, moves.cumsum(1)[row, step]] = sigmas[row, step + 1]
        sigma, sigma_next = visited[:, :-1], visited[:, 1:]
        alpha = 1 - sigma if process == "flow" else torch.ones_like(sigma)
        # lambda_next - lambda, without the cancellation that the difference of two logarithms would suffer
        return cls(sigma, sigma_next, torch.log1p((sigma - sigma_next) / (alpha * sigma_next)))

    def order(self, order: int) -> Tensor:
        """Order of each step, [B, T]: ``min(order, j + 1)``; 1 for rests and for the step to sigma = 0."""
        rising = torch.arange(1, self.h.shape[1] + 1).clamp(max=order)
        return torch.where((self.sigma_next > 0) & (self.sigma_next < self.sigma), rising, 1)


def sigma_ratio(quadrature: Quadrature) -> Tensor:
    """``sigma_next / sigma``, [B, T]."""
    return quadrature.sigma_next / quadrature.sigma


def predictor_weights(quadrature: Quadrature, order: int) -> Tensor:
    """Weights v_k of the older predictions k = 1 .. order - 1, [B, T, order - 1]; 0 where the order is lower.

    This is UniP-p of UniPC with B(h) = e^h - 1, and DPM-Solver++ multistep too: the two agree in every order.
    Order 2 takes 1 / 2 in the place of b_1, as in Algorithm 2 of DPM-Solver++ and in UniPC's released code.
    """
    r, known = _older(quadrature, order)
    v = _solve(r, known, _moments(quadrature.h, order - 1))
    second = (quadrature.order(order) == 2)[..., None] & known
    return torch.where(second, 0.5 / r, v)


def corrector_weights(quadrature: Quadrature, order: int) -> Tensor:
    """Weights of UniC-p: of the prediction at the end of the step, then of the older ones, [B, T, order].

    Order 1 takes 1 / 2 in the place of b_1, as in UniPC's released code.
    """
    r, known = _older(quadrature, order)
    end = torch.ones_like(quadrature.h)[..., None]
    v = _solve(torch.cat([end, r], -1), torch.cat([end.bool(), known], -1), _moments(quadrature.h, order))
    half = torch.tensor([0.5] + [0.0] * (order - 1), dtype=v.dtype)
    return torch.where((quadrature.order(order) == 1)[..., None], half, v)


def phi(count: int, z: Tensor) -> Tensor:
    """``phi_k(z) = (phi_{k-1}(z) - 1 / (k-1)!) / z``, phi_0 = exp, for k = 1 .. count, to rounding error.

    `z` [...] -> [..., count]. Near 0 the recursion loses digits (phi_3 keeps ten at a step of 1/1000): there
    the last one is taken from its series and the recursion runs backwards.
    """
    upward = [torch.expm1(z) / z]
    for k in range(1, count):
        upward.append((upward[-1] - 1 / math.factorial(k)) / z)
    last = torch.zeros_like(z)
    for j in reversed(range(20)):
        last = last * z + 1 / math.factorial(count + j)
    downward = [last]
    for k in reversed(range(1, count)):
        downward.insert(0, downward[0] * z + 1 / math.factorial(k))
    return torch.where(z.abs()[..., None] < 1, torch.stack(downward, -1), torch.stack(upward, -1))


def _moments(h: Tensor, count: int) -> Tensor:
    """``b_i = i! phi_{i+1}(-h) / phi_1(-h)`` for i = 1 .. count, [B, T, count]."""
    # A step of infinite length is of order 1, its moments are not used: any finite length will do.
    values = phi(count + 1, -torch.where(h.isfinite(), h, 1.0))
    factorials = torch.tensor([math.factorial(i) for i in range(1, count + 1)], dtype=h.dtype)
    return factorials * values[..., 1:] / values[..., :1]


def _older(quadrature: Quadrature, order: int) -> tuple[Tensor, Tensor]:
    """Places r_k of the predictions k = 1 .. order - 1, and whether a step uses them; [B, T, order - 1].

    A prediction at flow's sigma = 1 lies infinitely far back. In that limit its weight is 0 and the other
    weights are those of the system without it: it is not used.
    """
    k = torch.arange(1, order)
    j = torch.arange(quadrature.h.shape[1])[:, None]
    back = quadrature.h[:, (j - k).clamp(min=0)].cumsum(-1)  # lambda_0 - lambda_k
    known = (k < quadrature.order(order)[..., None]) & back.isfinite()
    return torch.where(known, -back / quadrature.h[..., None], 1.0), known


def _solve(r: Tensor, known: Tensor, b: Tensor) -> Tensor:
    """Solve ``sum_k v_k r_k^i = b_i`` for v, [..., K]. `known` marks the leading k that take part.

    Systems of every size are one batch: the smaller ones are padded with the identity, which makes their
    other v_k 0.
    """
    count = r.shape[-1]
    powers = r[..., None, :] ** torch.arange(1, count + 1)[:, None]  # [..., i, k]
    member = known[..., :, None] & known[..., None, :]
    system = torch.where(member, powers, torch.eye(count, dtype=r.dtype))
    v: Tensor = torch.linalg.solve(system, torch.where(known, b, 0.0))
    return v
