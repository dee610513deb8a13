"""Sigma schedules: the noise level along a trajectory, ``sigma = schedule.sigma(u)``, u in [0, 1]."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

Process = Literal["flow", "ve"]


class Schedule(Protocol):
    """Noise level along a trajectory; u = 1 is pure noise, u = 0 is data."""

    @property
    def process(self) -> Process: ...

    def sigma(self, u: Tensor) -> Tensor:
        """Noise level at the fractions `u` (any shape)."""
        ...

    def u(self, sigma: Tensor) -> Tensor:
        """Inverse of `sigma`."""
        ...
