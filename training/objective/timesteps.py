"""Which noise levels are trained: the draw of the target's place ``u_t`` on the trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_choice, check_range

Distribution = Literal["uniform", "logit_normal", "shifted"]


@dataclass(frozen=True)
class TimestepConfig:
    """Distribution of u in (0, 1]: the fraction of the trajectory, before the model's own shift."""

    distribution: Distribution = "uniform"
    """uniform; logit_normal (SD3, 2403.03206 eq. 19); shifted: uniform, then ``s u / (1 + (s - 1) u)``."""
    mean: float = 0.0
    """logit_normal: mean of logit(u); above 0 favours noise, below 0 detail."""
    std: float = 1.0
    """logit_normal: standard deviation of logit(u), above 0."""
    shift: float = 3.0
    """shifted: s, above 0; above 1 favours noise."""
    low: float = 0.0
    """Least u that is trained, 0..1."""
    high: float = 1.0
    """Greatest u that is trained, 0..1."""

    def __post_init__(self) -> None:
        check_choice("timesteps", self.distribution, get_args(Distribution))
        check_range("timestep std", self.std, 1e-3, 10)
        check_range("timestep shift", self.shift, 1e-3, 100)
        check_range("timestep low", self.low, 0, 1)
        check_range("timestep high", self.high, 0, 1)
        if self.low >= self.high:
            raise ValueError(f"timestep low must be below timestep high ({self.high}), got {self.low}")


def draw_u(config: TimestepConfig, n: int, generator: torch.Generator) -> Tensor:
    """Draw `n` targets ``u_t`` in (0, 1]: float64 on the CPU, one draw per sample."""
    if config.distribution == "logit_normal":
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        u = torch.sigmoid(config.mean + config.std * z)
    else:
        u = 1 - torch.rand(n, generator=generator, dtype=torch.float64)  # [0, 1) -> (0, 1]
        if config.distribution == "shifted":
            u = config.shift * u / (1 + (config.shift - 1) * u)
    return config.low + (config.high - config.low) * u
