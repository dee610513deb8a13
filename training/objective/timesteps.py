"""Which noise levels are trained: the draw of the target's place ``u_t`` on the trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ...samplers.schedules import Schedule
from ..checks import check_settings, setting

Distribution = Literal["uniform", "logit_normal", "shifted", "sigmoid"]


@dataclass(frozen=True)
class TimestepConfig:
    """Distribution of u in (0, 1]: the fraction of the trajectory, before the model's own shift."""

    distribution: Distribution = setting(
        "uniform",
        "Which noise levels are trained more often. uniform: all alike; logit_normal: the middle; shifted: the noisy "
        "ones. The model's own shift is applied after this. sigmoid: the middle, without the model's shift.",
        choices=get_args(Distribution),
        called="timesteps",
    )
    mean: float = setting(
        0.0,
        "For logit_normal and sigmoid: above 0 trains noisy levels more often (composition), below 0 nearly clean ones "
        "(detail).",
        low=-5,  # at 5, half of all draws lie within 0.007 of pure noise
        high=5,
        step=0.1,
        called="timestep mean",
    )
    std: float = setting(
        1.0,
        "For logit_normal and sigmoid: spread of the noise levels around the most frequent one; 1 is usual.",
        low=1e-3,
        high=10,
        step=0.1,
        round=1e-3,
        called="timestep std",
    )
    shift: float = setting(
        3.0,
        "For shifted: above 1 trains noisy levels more often, below 1 nearly clean ones; 3 is SD3's.",
        low=1e-3,
        high=100,
        step=0.1,
        round=1e-3,
        called="timestep shift",
    )
    low: float = setting(
        0.0,
        "Lowest u trained. u is the place on the way from the clean picture (0) to pure noise (1).",
        low=0,
        high=1,
        step=0.01,
        called="timestep low",
    )
    high: float = setting(
        1.0,
        "Highest u trained. u is the place on the way from the clean picture (0) to pure noise (1).",
        low=0,
        high=1,
        step=0.01,
        called="timestep high",
    )

    sigma_low: float = setting(
        0.0,
        "Lowest noise level trained, as the model counts it. For the high-noise model of Wan 2.2 14B 0.875 (text-to-"
        "video) or 0.9 (image-to-video). Rollouts and validation stay within these levels. 0: no limit.",
        low=0,
        step=0.005,
        round=1e-4,
    )
    sigma_high: float = setting(
        0.0,
        "Highest noise level trained, as the model counts it. For the low-noise model of Wan 2.2 14B 0.875 (text-to-"
        "video) or 0.9 (image-to-video). 0: no limit.",
        low=0,
        step=0.005,
        round=1e-4,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.low >= self.high:
            raise ValueError(f"timestep low must be below timestep high ({self.high}), got {self.low}")
        if self.sigma_high and self.sigma_low >= self.sigma_high:
            raise ValueError(f"sigma_low must be below sigma_high ({self.sigma_high}), got {self.sigma_low}")
        if self.has_sigmas and (self.low, self.high) != (0, 1):
            raise ValueError(
                f"low and high must be 0 and 1 where sigma_low or sigma_high is set, got {self.low} and {self.high}"
            )

    @property
    def has_sigmas(self) -> bool:
        """Whether noise levels are limited in the model's own terms."""
        return bool(self.sigma_low or self.sigma_high)


def u_range(config: TimestepConfig, schedule: Schedule) -> tuple[float, float]:
    """Where on the trajectory a model with limited noise levels works, (0, 1) without limits.

    Raises:
        ValueError: the model has no noise between the limits.
    """
    low, high = float(config.sigma_low), float(config.sigma_high)
    ends = [u_of(schedule, low) if low else 0.0, u_of(schedule, high) if high else 1.0]
    if ends[0] >= ends[1]:
        most = float(schedule.sigma(torch.ones((), dtype=torch.float64)))
        raise ValueError(f"sigma_low must be below the model's highest noise level ({most:g}), got {low}")
    return ends[0], ends[1]


def u_of(schedule: Schedule, sigma: float) -> float:
    """Place of a noise level on the trajectory, at most 1."""
    most = schedule.sigma(torch.ones((), dtype=torch.float64))
    return float(schedule.u(torch.tensor(sigma, dtype=torch.float64).minimum(most)))


def draw_u(config: TimestepConfig, n: int, generator: torch.Generator, schedule: Schedule) -> Tensor:
    """Draw `n` targets ``u_t`` in (0, 1]: float64 on the CPU, one draw per sample.

    logit_normal: logit(u) has mean `mean` and standard deviation `std` (SD3, 2403.03206 eq. 19). shifted: u uniform,
    then ``s u / (1 + (s - 1) u)`` with s = `shift`. sigmoid: as logit_normal, of sigma itself. Where noise levels are
    limited, what is drawn is the same distribution given that it is within the limits.
    """
    if config.distribution == "logit_normal" and not config.has_sigmas:
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        u = torch.sigmoid(config.mean + config.std * z)
        return config.low + (config.high - config.low) * u
    p = 1 - torch.rand(n, generator=generator, dtype=torch.float64)  # [0, 1) -> (0, 1]
    return quantile(config, p, schedule)


def quantile(config: TimestepConfig, p: Tensor, schedule: Schedule) -> Tensor:
    """The u below which a share `p` of all draws lies."""
    low, high = u_range(config, schedule)
    if config.has_sigmas:
        bounds = share_below(config, torch.tensor([low, high], dtype=torch.float64), schedule)
        u = _inverse(config, bounds[0] + (bounds[1] - bounds[0]) * p, schedule)
        return u.clamp(low, high)
    return config.low + (config.high - config.low) * _inverse(config, p, schedule)


def share_below(config: TimestepConfig, u: Tensor, schedule: Schedule) -> Tensor:
    """The share of draws below `u` without limits: the inverse of `_inverse`."""
    if config.distribution == "uniform":
        return u
    if config.distribution == "shifted":
        return u / (config.shift - (config.shift - 1) * u)
    at = schedule.sigma(u) if _of_sigma(config, schedule) else u
    return torch.special.ndtr((torch.logit(at.clamp(0, 1)) - config.mean) / config.std)


def _inverse(config: TimestepConfig, p: Tensor, schedule: Schedule) -> Tensor:
    if config.distribution == "uniform":
        return p
    if config.distribution == "shifted":
        return config.shift * p / (1 + (config.shift - 1) * p)
    at = torch.sigmoid(config.mean + config.std * torch.special.ndtri(p))
    return schedule.u(at) if _of_sigma(config, schedule) else at


def _of_sigma(config: TimestepConfig, schedule: Schedule) -> bool:
    """Whether what is drawn is sigma: of other than flow models u is the timestep, and there is no shift."""
    return config.distribution == "sigmoid" and schedule.process == "flow"


def levels_trained(config: TimestepConfig, schedule: Schedule) -> str:
    """Which noise levels a run trains, in a line for people."""
    shares = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    sigma = schedule.sigma(quantile(config, shares, schedule).clamp(0, 1))
    least, *_, most = (f"{value:.3g}" for value in sigma.tolist())  # limits as their widgets say them
    _, tenth, half, ninth, _ = (f"{value:.2g}" for value in sigma.tolist())
    return f"noise levels {least} to {most}: half of them below {half}, four in five from {tenth} to {ninth}"
