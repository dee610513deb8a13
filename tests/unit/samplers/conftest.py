"""The problem with a known answer that these tests solve."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """Data N(m, s^2), each pixel on its own: denoiser and flow are in closed form. Everything in float64."""

    process: str
    m: Tensor
    s: Tensor
    z: Tensor
    """[B, pixels] the whitened state, constant along the exact flow."""

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1 - sigma if self.process == "flow" else torch.ones_like(sigma)

    def std(self, sigma: Tensor) -> Tensor:
        return (self.alpha(sigma) ** 2 * self.s**2 + sigma**2).sqrt()

    def denoise(self, x: Tensor, sigma: Tensor, rows: Tensor | None = None) -> Tensor:
        """E[x0 given x], `sigma` [B] or []."""
        sigma = sigma[..., None]
        alpha = self.alpha(sigma)
        return self.m + alpha * self.s**2 / self.std(sigma) ** 2 * (x - alpha * self.m)

    def exact(self, sigma: Tensor) -> Tensor:
        """The flow's state at `sigma` [B] or []."""
        sigma = sigma[..., None]
        return self.alpha(sigma) * self.m + self.std(sigma) * self.z


@pytest.fixture(params=["flow", "ve"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gaussian(process: str) -> Gaussian:
    m, s, z = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Gaussian(process, m[:1], 0.3 + 0.4 * s[:1].abs(), z)
