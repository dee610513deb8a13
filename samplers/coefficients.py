"""The numbers of the multistep solvers: everything that depends on the noise levels and not on the model.

Both processes are ``x = alpha x0 + sigma noise`` and both solvers work in lambda = log(alpha / sigma) (half the
log-SNR). One step from sigma to sigma_next, h = lambda_next - lambda, of an exponential integrator on the
data prediction m = `denoised` (DPM-Solver++, 2211.01095, eq. 9) is

    x_next = sigma_next / sigma x + alpha_next (1 - e^-h) D,

where D is an average of m over the step. Since ``alpha_next (1 - e^-h) = (sigma_next - sigma) / sigma`` up to
its sign, for flow and for VE alike,

    x_next = ratio x + (1 - ratio) D,    ratio = sigma_next / sigma,

which is finite at both ends: sigma = 1 needs no logarithm, and at sigma = 0 x_next is D. The solvers differ only in D:

    D = m_0 + sum_k v_k (m_k - m_0).

Here m_0 is the prediction at the step's start, the other m_k are older (or, in a corrector, the one at its end),
r_k = (lambda_k - lambda_0) / h is their place in units of the step, and the weights v solve

    sum_k v_k r_k^i = b_i,    b_i = i! phi_{i+1}(-h) / phi_1(-h),    i = 1 .. number of k,

that is, D is exact for polynomials in lambda (UniPC, 2302.04867, section 3.1, with rho_k = v_k r_k).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedules import Process


@dataclass(frozen=True)
class Nodes:
    """The noise levels that each row visits, without the steps in which it rests: entry j is the row's own step j.

    All are [B, T], float64, on the CPU. Behind its last step a row repeats its last sigma; what is computed
    there is never used.
    """

    sigma: Tensor
    """At the start of the step."""
    sigma_next: Tensor
    """At its end."""
    lam: Tensor
    """lambda = log(alpha / sigma) at the start; -inf at flow's sigma = 1."""
    h: Tensor
    """Length of the step in lambda; inf from flow's sigma = 1 and to sigma = 0."""

    @classmethod
    def of(cls, sigmas: Tensor, moves: Tensor, process: Process) -> Nodes:
        """Read the nodes off `sigmas`, [B, T + 1], float64, non-increasing; `moves` [B, T] is where they fall."""
        visited = sigmas[:, -1:].expand_as(sigmas).clone()
        visited[:, 0] = sigmas[:, 0]
        row, step = moves.nonzero(as_tuple=True)
        visited[row, moves.cumsum(1)[row, step]] = sigmas[row, step + 1]
        lam = -visited.log() if process == "ve" else torch.log1p(-visited) - visited.log()
        return cls(visited[:, :-1], visited[:, 1:], lam[:, :-1], lam.diff(dim=1))

    def order(self, order: int) -> Tensor:
        """Order of each step, [B, T]: ``min(order, j + 1)``, and 1 for the step to sigma = 0."""
        rising = torch.arange(1, self.h.shape[1] + 1).clamp(max=order)
        return torch.where(self.sigma_next > 0, rising, 1)


def ratio(nodes: Nodes) -> Tensor:
    """``sigma_next / sigma``, [B, T]."""
    return torch.where(nodes.sigma > 0, nodes.sigma_next / nodes.sigma, 1.0)


def predictor_weights(nodes: Nodes, order: int) -> Tensor:
    """Weights v_k of the k = 1 .. order - 1 older predictions, [B, T, order - 1]; 0 where a step has a lower order.

    This is UniP-p of UniPC with B(h) = e^h - 1, and DPM-Solver++ multistep at the same time: they agree in
    every order. Order 2 takes its half (1 / 2 instead of b_1: DPM-Solver++ Algorithm 2, and UniPC's released code).
    """
    r, known = _older(nodes, order)
    v = _solve(r, known, _moments(nodes.h, order - 1))
    simple = (nodes.order(order) == 2)[..., None] & known
    return torch.where(simple, 0.5 / r, v)


def corrector_weights(nodes: Nodes, order: int) -> Tensor:
    """Weights of the new prediction and of the order - 1 older ones, [B, T, order], for UniC-p on the same step.

    Order 1 takes the half, as UniPC's released code does.
    """
    older, known = _older(nodes, order)
    r = torch.cat([torch.ones_like(nodes.h)[..., None], older], dim=-1)
    known = torch.cat([torch.ones_like(nodes.h, dtype=torch.bool)[..., None], known], dim=-1)
    v = _solve(r, known, _moments(nodes.h, order))
    simple = torch.zeros(order, dtype=torch.float64)
    simple[0] = 0.5
    return torch.where((nodes.order(order) == 1)[..., None], simple, v)


def phi(k: int, z: Tensor) -> Tensor:
    """``phi_k(z) = (phi_{k-1}(z) - 1 / (k-1)!) / z`` with phi_0 = exp, k >= 1, to rounding error for every real z.

    The recursion loses digits near 0 (a step of 1/1000 would keep ten of them for phi_3), so there the series is taken.
    """
    series = sum((z**j * (1 / math.factorial(j + k)) for j in range(20)), torch.zeros_like(z))
    value = torch.expm1(z) / z
    for i in range(1, k):
        value = (value - 1 / math.factorial(i)) / z
    return torch.where(z.abs() < 1, series, value)


def _moments(h: Tensor, count: int) -> Tensor:
    """``b_i = i! phi_{i+1}(-h) / phi_1(-h)`` for i = 1 .. count, [B, T, count]."""
    # Steps of infinite length are of order 1 and take no moment: any finite h will do there.
    z = -torch.where(h.isfinite(), h, 1.0)
    first = phi(1, z)
    b = [math.factorial(i) * phi(i + 1, z) / first for i in range(1, count + 1)]
    return torch.stack(b, dim=-1) if b else h.new_empty(*h.shape, 0)


def _older(nodes: Nodes, order: int) -> tuple[Tensor, Tensor]:
    """Places r_k of the k = 1 .. order - 1 older predictions and which of them a step uses, both [B, T, order - 1].

    A prediction at flow's sigma = 1 lies infinitely far back. In that limit its weight is 0 and the others are
    those of the system without it, so it is not used.
    """
    k = torch.arange(1, order)
    j = torch.arange(nodes.h.shape[1])[:, None]
    older = nodes.lam[:, (j - k).clamp(min=0)]  # [B, T, order - 1]
    known = (k < nodes.order(order)[..., None]) & older.isfinite()
    r = (older - nodes.lam[..., None]) / nodes.h[..., None]
    return torch.where(known, r, 1.0), known


def _solve(r: Tensor, known: Tensor, b: Tensor) -> Tensor:
    """Solve ``sum_k v_k r_k^i = b_i`` for v, [..., K], in a batch; `known` marks the leading nodes that take part.

    The rest of the system is padded with the identity, so that systems of different size are one batch.
    """
    count = r.shape[-1]
    power = r[..., None, :] ** torch.arange(1, count + 1)[:, None]  # [..., i, k]
    member = known[..., :, None] & known[..., None, :]
    system = torch.where(member, power, torch.eye(count, dtype=r.dtype))
    return torch.linalg.solve(system, torch.where(known, b, 0.0))
