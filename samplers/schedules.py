"""Sigma schedules: the noise level along a trajectory, ``sigma = schedule.sigma(u)``, u in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from .transfer import sent

Process = Literal["flow", "ve"]


class Schedule(Protocol):
    """Noise level along a trajectory; u = 1 is pure noise, u = 0 is data."""

    @property
    def process(self) -> Process:
        """How x is mixed at a noise level: ``"flow"`` or ``"ve"``."""
        ...

    def sigma(self, u: Tensor) -> Tensor:
        """Noise level at the fractions `u` (any shape)."""
        ...

    def u(self, sigma: Tensor) -> Tensor:
        """Inverse of `sigma`."""
        ...


@dataclass(frozen=True)
class FlowSchedule:
    """Flow matching with a timestep shift, ``sigma = s u / (1 + (s - 1) u)`` (SD3, 2403.03206, eq. 23).

    Raises:
        ValueError: `shift` is not a positive finite number.
    """

    shift: float = 1.0
    """s > 0; 1 is the uniform schedule ``sigma = u``, above 1 spends more steps at high noise."""

    def __post_init__(self) -> None:
        if not 0 < self.shift < float("inf"):
            raise ValueError(f"shift must be a positive finite number, got {self.shift}")

    @property
    def process(self) -> Process:
        """Always ``"flow"``."""
        return "flow"

    def sigma(self, u: Tensor) -> Tensor:
        """Noise level in [0, 1] at the fractions `u` (any shape)."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def u(self, sigma: Tensor) -> Tensor:
        """Inverse of `sigma`."""
        return sigma / (self.shift - (self.shift - 1) * sigma)


@dataclass(frozen=True, eq=False)
class TableSchedule:
    """The noise levels that an epsilon or v model was trained at, as a function of u.

    With N training timesteps ``u = (n + 1) / N`` is timestep n, so that 1 / N of u is one timestep.
    Between two of them log(sigma) is linear in u, as in k-diffusion's `DiscreteSchedule`; below the first one
    sigma itself is linear, so that u = 0 is sigma = 0, the data.

    Raises:
        ValueError: `sigmas` is not a vector of at least two positive, finite, strictly ascending values.
    """

    sigmas: Tensor
    """[N] noise level of ``x0 + sigma noise`` at the training timesteps 0 .. N-1; kept in float64."""
    _tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        sigmas = self.sigmas.detach().to(torch.float64)
        if sigmas.ndim != 1 or len(sigmas) < 2:
            raise ValueError(f"sigmas must be a vector of at least 2 values, got shape {tuple(sigmas.shape)}")
        if not (sigmas.isfinite().all() and sigmas[0] > 0 and (sigmas.diff() > 0).all()):
            raise ValueError(
                "sigmas must be positive, finite and strictly ascending, "
                f"got {float(sigmas[0]):.6g} .. {float(sigmas[-1]):.6g} over {len(sigmas)} timesteps"
            )
        object.__setattr__(self, "sigmas", sigmas)

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> TableSchedule:
        """The table of a DDPM schedule: ``sigma^2 = (1 - a) / a`` with a = `alphas_cumprod`, [N].

        Raises:
            ValueError: a value is outside (0, 1). Zero terminal SNR has one at 0: its last sigma is infinite.
        """
        a = alphas_cumprod.detach().to(torch.float64)
        if not ((a > 0) & (a < 1)).all():
            raise ValueError(
                f"alphas_cumprod must lie strictly between 0 and 1, got {a.min():.6g} .. {a.max():.6g}; "
                "give a zero-terminal-SNR schedule a small positive last value"
            )
        return cls(((1 - a) / a).sqrt())

    @property
    def process(self) -> Process:
        """Always ``"ve"``."""
        return "ve"

    def sigma(self, u: Tensor) -> Tensor:
        """Noise level of the VE state at the fractions `u` in [0, 1] (any shape)."""
        log_sigmas, first = self._table(u)
        n = u * len(log_sigmas) - 1  # training timestep, fractional; -1 is the data
        low = n.floor().clamp(0, len(log_sigmas) - 2).long()
        log_sigma = torch.lerp(log_sigmas[low], log_sigmas[low + 1], (n - low).clamp(0, 1))
        return torch.where(n < 0, (n + 1) * first, log_sigma.exp())

    def u(self, sigma: Tensor) -> Tensor:
        """Inverse of `sigma`; noise levels above the table are u = 1."""
        log_sigmas, first = self._table(sigma)
        log_sigma = sigma.log()
        low = (torch.searchsorted(log_sigmas, log_sigma, right=True) - 1).clamp(0, len(log_sigmas) - 2)
        n = low + (log_sigma - log_sigmas[low]) / (log_sigmas[low + 1] - log_sigmas[low])
        return torch.where(sigma < first, sigma / first, n + 1).clamp(0, len(log_sigmas)) / len(log_sigmas)

    def _table(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithms [N] and the lowest noise level as `like` is kept; sent to each device once."""
        kind = (like.device, like.dtype)
        if kind in self._tables:
            return self._tables[kind]
        table = sent(self.sigmas.log(), *kind), sent(self.sigmas[0], *kind)
        if like.device.type != "cpu" and type(table[0]) is Tensor:  # and no stand-in of some mode
            self._tables[kind] = table
        return table


def trajectory(
    schedule: Schedule, u_start: float | Tensor, u_end: float | Tensor, steps: int | Tensor
) -> Tensor:
    """The noise levels of a batch of trajectories, uniform in u, one row each.

    Row b takes ``steps[b]`` steps from ``u_start[b]``, in column 0, to ``u_end[b]``, and then repeats its
    last sigma, which `integrate` reads as "nothing to do". A row of 0 steps stays at its start.

    Args:
        schedule: noise level as a function of u.
        u_start: [B] or one fraction in [0, 1].
        u_end: [B] or one fraction, at most `u_start`.
        steps: LongTensor [B] or one number of steps, 0 or more.

    Returns:
        sigmas [B, T + 1], T = max(steps), in the dtype of the fractions (float64 where they are plain
        numbers).

    Raises:
        ValueError: a fraction is outside [0, 1], `u_end` is above `u_start`, `steps` is negative or not
            whole, or the lengths do not fit.
    """
    start, end = (
        u if isinstance(u, Tensor) else torch.tensor(u, dtype=torch.float64) for u in (u_start, u_end)
    )
    start, end, count = (v.reshape(-1).to(start.device) for v in (start, end, torch.as_tensor(steps)))
    lengths = {len(start), len(end), len(count)}
    if len(lengths - {1}) > 1:
        raise ValueError(f"u_start, u_end and steps must have one length, or 1, got {sorted(lengths)}")
    if not ((start <= 1) & (end >= 0) & (end <= start)).all():
        raise ValueError(f"u_start, u_end must satisfy 0 <= u_end <= u_start <= 1, got {u_start}, {u_end}")
    if count.is_floating_point() or (count < 0).any():
        raise ValueError(f"steps must be whole numbers of at least 0, got {steps}")
    dtype = torch.promote_types(start.dtype, end.dtype)
    start, end, count = start[:, None].to(dtype), end[:, None].to(dtype), count[:, None]  # [B, 1]
    step = torch.arange(max(count.flatten().tolist(), default=0) + 1, device=start.device)
    done = step.minimum(count) / count.clamp(min=1).to(dtype)  # [B, T + 1], from 0 to 1
    return schedule.sigma(torch.lerp(start, end, done))
