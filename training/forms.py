"""What training sees of a model, and the conversions between the forms of a prediction.

Two processes share one notation (README, glossary):

- flow: ``x = (1 - sigma) x0 + sigma noise``, sigma in [0, 1]; the model predicts ``noise - x0``.
- VE (epsilon and v models): ``x = x0 + sigma noise``, sigma > 0. A v model predicts
  ``(noise - sigma x0) / sqrt(1 + sigma^2)`` (Salimans and Ho, 2202.00512, written for the VE state).

In both, ``velocity = dx/dsigma = (x - denoised) / sigma``: flow ``noise - x0``, VE ``noise``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ..samplers.schedules import Schedule

Prediction = Literal["flow", "epsilon", "v"]
Cond = Mapping[str, Tensor]
"""Conditioning of a batch: named tensors, each with the batch as its first axis."""


class Denoiser(Protocol):
    """A model as the trainer and the samplers use it: latents and noise levels in, prediction out."""

    prediction: Prediction
    """What `predict` returns: flow velocity, epsilon or v."""
    schedule: Schedule
    """Noise level along the trajectory, with the model's shift."""
    module: nn.Module
    """The network that gets adapters. Frozen, apart from the adapters."""

    def opened(self, training: bool = False, checkpointing: bool = False) -> AbstractContextManager[None]:
        """The network is ready to compute inside; what that took is undone after, also after an error.

        Args:
            training: gradients can flow through it.
            checkpointing: its activations are recomputed in the backward pass.
        """
        ...

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Return the raw prediction at `x: [B, ...]` (flow or VE state), `sigma: [B]`; same shape as `x`."""
        ...


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """View `sigma: [B]` so that it broadcasts against `x: [B, ...]`."""
    return sigma.reshape(-1, *[1] * (x.ndim - 1))  # [B] -> [B, 1, 1, 1]


def select(cond: Cond, rows: Tensor) -> Cond:
    """Return the conditioning of the batch rows `rows: LongTensor [A]`."""
    return {name: value.index_select(0, rows) for name, value in cond.items()}


def add_noise(prediction: Prediction, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return the clean interpolant of `x0` and `noise` at `sigma: [B]`."""
    s = expand(sigma, x0)
    return torch.lerp(x0, noise, s) if prediction == "flow" else x0 + s * noise


def true_velocity(prediction: Prediction, x0: Tensor, noise: Tensor) -> Tensor:
    """Return dx/dsigma of the clean interpolant: ``noise - x0`` for flow, ``noise`` for VE."""
    return noise - x0 if prediction == "flow" else noise


def to_velocity(prediction: Prediction, x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
    """Convert the model's `output` at `x`, `sigma: [B]` to ``dx/dsigma``."""
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
    """Convert the model's `output` at `x`, `sigma: [B]` to its estimate of x0."""
    return x - expand(sigma, x) * to_velocity(prediction, x, sigma, output)
