"""What training sees of a model, and the conversions between the forms of a prediction.

Two processes share one notation (README, glossary):

- flow: ``x = (1 - sigma) x0 + sigma noise``, sigma in [0, 1]; the model predicts ``noise - x0``.
- VE (epsilon and v models): ``x = x0 + sigma noise``, sigma > 0. A v model predicts
  ``(noise - sigma x0) / sqrt(1 + sigma^2)`` (Salimans and Ho, 2202.00512, written for the VE state).

In both, ``velocity = dx/dsigma = (x - denoised) / sigma``: flow ``noise - x0``, VE ``noise``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["flow", "epsilon", "v"]


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """`sigma: [B]` in a view that broadcasts against `x: [B, ...]`."""
    return sigma.reshape(-1, *[1] * (x.ndim - 1))  # [B] -> [B, 1, 1, 1]


def add_noise(prediction: Prediction, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The clean interpolant of `x0` and `noise` at `sigma: [B]`."""
    s = expand(sigma, x0)
    return torch.lerp(x0, noise, s) if prediction == "flow" else x0 + s * noise


def true_velocity(prediction: Prediction, x0: Tensor, noise: Tensor) -> Tensor:
    """``dx/dsigma`` of the clean interpolant: ``noise - x0`` for flow, ``noise`` for VE."""
    return noise - x0 if prediction == "flow" else noise


def to_velocity(prediction: Prediction, x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
    """``dx/dsigma`` that the model's `output` at `x`, `sigma: [B]` means."""
    if prediction != "v":
        return output
    s = expand(sigma, x)
    scale = 1 + s**2
    return s / scale * x + output * scale.rsqrt()


def from_velocity(prediction: Prediction, x: Tensor, sigma: Tensor, velocity: Tensor) -> Tensor:
    """Inverse of `to_velocity`: the model output that means ``dx/dsigma = velocity`` at `x`."""
    if prediction != "v":
        return velocity
    s = expand(sigma, x)
    scale = 1 + s**2
    return (velocity - s / scale * x) * scale.sqrt()


def to_denoised(prediction: Prediction, x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
    """The estimate of x0 that the model's `output` at `x`, `sigma: [B]` means."""
    return x - expand(sigma, x) * to_velocity(prediction, x, sigma, output)
