"""Which noise levels are trained: the draw of the target's place ``u_t`` on the trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_settings, setting

Distribution = Literal["uniform", "logit_normal", "shifted"]


@dataclass(frozen=True)
class TimestepConfig:
    """Distribution of u in (0, 1]: the fraction of the trajectory, before the model's own shift."""

    distribution: Distribution = setting(
        "uniform",
        "Which noise levels are trained more often. uniform: all alike; logit_normal: the middle; shifted: the noisy "
        "ones. The model's own shift is applied after this.",
        choices=get_args(Distribution),
        called="timesteps",
    )
    mean: float = setting(
        0.0,
        "For logit_normal: above 0 trains noisy levels more often (composition), below 0 nearly clean ones (detail).",
        low=-5,  # at 5, half of all draws lie within 0.007 of pure noise
        high=5,
        step=0.1,
        called="timestep mean",
    )
    std: float = setting(
        1.0,
        "For logit_normal: spread of the noise levels around the most frequent one; 1 is usual.",
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

    def __post_init__(self) -> None:
        check_settings(self)
        if self.low >= self.high:
            raise ValueError(f"timestep low must be below timestep high ({self.high}), got {self.low}")


def draw_u(config: TimestepConfig, n: int, generator: torch.Generator) -> Tensor:
    """Draw `n` targets ``u_t`` in (0, 1]: float64 on the CPU, one draw per sample.

    logit_normal: logit(u) has mean `mean` and standard deviation `std` (SD3, 2403.03206 eq. 19). shifted: u uniform,
    then ``s u / (1 + (s - 1) u)`` with s = `shift`.
    """
    if config.distribution == "logit_normal":
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        u = torch.sigmoid(config.mean + config.std * z)
    else:
        u = 1 - torch.rand(n, generator=generator, dtype=torch.float64)  # [0, 1) -> (0, 1]
        if config.distribution == "shifted":
            u = config.shift * u / (1 + (config.shift - 1) * u)
    return config.low + (config.high - config.low) * u
