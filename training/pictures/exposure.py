"""Exposure bias, measured unpaired: how the states of a model's own trajectory differ from the forward process.

A model that draws meets states x_hat of its own making; in training it met x_t. Exposure bias is the difference of
the two *distributions* at each noise level, p(x_hat_t) against p(x_t). The distance of a rolled state to its own
clean interpolant is not: it is above zero for a perfect model (docs/theory.md), and averaging lowers it.
Everything here therefore compares two sets of states, and says what two draws of the forward process itself give
(the floor), so that chance is not taken for bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...samplers import SolverFrame, integrate, trajectory
from ..conditioning import Cond, select
from ..data.dataset import LatentDataset
from ..forms import add_noise
from ..models.source import Denoiser, LoadedModel
from .sampling import seeded_noise

BANDS = 8
"""Bands of equal width in radial frequency, from flat areas to the finest detail of a latent."""
CHUNK = 64
"""Rows of one forward pass."""


@dataclass(frozen=True)
class ExposureBias:
    """Own states against the forward process at T + 1 noise levels, from pure noise down."""

    sigmas: Tensor
    """[T + 1]."""
    energy: Tensor
    """[T + 1] energy distance of own and forward states, per square root of dimensions."""
    energy_floor: Tensor
    """[T + 1] the same between two independent draws of the forward process."""
    power: Tensor
    """[T + 1] mean square of own states over that of forward states; 1 is right."""
    spectrum: Tensor
    """[T + 1, BANDS] the same by radial frequency; NaN in bands that a small latent does not have."""
    prediction: Tensor
    """[T] norm of the velocity at own states over that at forward states; 1 is right. Sigma 0 has none."""

    def summary(self) -> dict[str, list[Any]]:
        """The curves as plain numbers, for reports; ``frequency`` has the middles of the bands, 1 is the finest."""
        return {
            "sigma": self.sigmas.tolist(),
            "energy": self.energy.tolist(),
            "energy_floor": self.energy_floor.tolist(),
            "power": self.power.tolist(),
            "prediction": self.prediction.tolist(),
            "frequency": [(band + 0.5) / BANDS for band in range(BANDS)],
            "spectrum": self.spectrum.tolist(),
        }


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """``2 E|a - b| - E|a - a'| - E|b - b'|`` (Szekely and Rizzo 2013) of two samples [N, D] with common captions.

    Row i of both has one caption, so pairs with equal index are left out of all three means: then the mean is 0 for
    two samples of one distribution (a single value may be slightly negative). In units of the square root of D.

    Raises:
        ValueError: the samples have not the same captions: their numbers differ.
    """
    if len(a) != len(b):
        raise ValueError(f"samples must have a row for each caption, got {len(a)} and {len(b)}")

    def mean(x: Tensor, y: Tensor) -> Tensor:
        distances = torch.cdist(x, y)
        return (distances.sum() - distances.diagonal().sum()) / (len(x) * (len(x) - 1))

    return (2 * mean(a, b) - mean(a, a) - mean(b, b)) / math.sqrt(a.shape[1])


def radial_power(x: Tensor) -> Tensor:
    """Mean power of latents ``[N, C, ..., h, w]`` in `BANDS` bands of radial frequency, ``[BANDS]``."""
    power = torch.fft.fft2(x.float(), norm="ortho").abs().square().flatten(0, -3).mean(0)  # [h, w]
    fy, fx = (torch.fft.fftfreq(n, device=x.device) for n in power.shape)
    radius = (fy[:, None] ** 2 + fx[None, :] ** 2).sqrt() / math.sqrt(0.5)  # 0..1
    band = (radius * BANDS).long().clamp(max=BANDS - 1)
    sums = torch.zeros(BANDS, device=x.device).index_add(0, band.flatten(), power.flatten())
    return sums / torch.bincount(band.flatten(), minlength=BANDS)  # NaN where there is no frequency


@torch.inference_mode(False)
@torch.no_grad()
def exposure_bias(
    model: LoadedModel,
    data: LatentDataset,
    samples: int = 64,
    steps: int = 20,
    sampler: str = "euler",
    order: int = 2,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> ExposureBias:
    """Let the model draw the captions of `data` and compare its states with noised pictures of `data`.

    Args:
        model: base and adapter.
        data: what the forward process starts from; the first bucket is used, its samples in turn.
        samples: N own trajectories, and as many forward states. Fewer than 32 say little.
        steps: of the whole trajectory; the solver's own error is part of what is measured.

    Raises:
        ValueError: fewer than two samples or one step.
    """
    if samples < 2 or steps < 1:
        raise ValueError(f"samples must be at least 2 and steps at least 1, got {samples} and {steps}")
    source = model.source
    bucket = data.buckets[0]
    batch = data.batch(torch.arange(samples) % len(bucket)).to(source.device)
    x0, cond = batch.x0, batch.cond
    sigmas = trajectory(source.schedule, 1.0, 0.0, steps)[0]
    noises = [
        seeded_noise(x0.shape[1:], range(seed + i * samples, seed + (i + 1) * samples)) for i in range(3)
    ]
    noise, fresh, other = (n.to(x0) for n in noises)
    with model.denoiser(dtype) as denoiser:
        own = _own_states(denoiser, noise, cond, sigmas, sampler, order)
        rows = [
            _compare(denoiser, x, sigma, x0, fresh, other, cond) for x, sigma in zip(own, sigmas, strict=True)
        ]
    energy, floor, power, spectrum, prediction = zip(*rows, strict=True)
    return ExposureBias(
        sigmas=sigmas,
        energy=torch.stack(energy).cpu(),
        energy_floor=torch.stack(floor).cpu(),
        power=torch.stack(power).cpu(),
        spectrum=torch.stack(spectrum).cpu(),
        prediction=torch.stack(prediction[:-1]).cpu(),
    )


def _own_states(
    denoiser: Denoiser, noise: Tensor, cond: Cond, sigmas: Tensor, sampler: str, order: int
) -> list[Tensor]:
    """The model's states from pure noise to the picture, T + 1 of [N, ...]."""
    start = add_noise(denoiser.prediction, torch.zeros_like(noise), noise, sigmas[:1].to(noise))
    states = [start]

    def denoise(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        return _in_chunks(denoiser.denoised, x, sigma, select(cond, rows))

    def keep(frame: SolverFrame) -> None:
        states.append(frame.x)

    integrate(denoise, start, sigmas, sampler, order, denoiser.schedule.process, keep)
    return states


def _compare(
    denoiser: Denoiser, own: Tensor, level: Tensor, x0: Tensor, noise: Tensor, other: Tensor, cond: Cond
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Energy distance, its floor, power, spectrum and prediction norm at one noise level."""
    sigma = level.to(own).expand(len(own))
    forward, again = (add_noise(denoiser.prediction, x0, n, sigma) for n in (noise, other))
    energy = energy_distance(own.flatten(1), forward.flatten(1))
    floor = energy_distance(again.flatten(1), forward.flatten(1))
    power = own.square().mean() / forward.square().mean()
    spectrum = radial_power(own) / radial_power(forward)
    prediction = power.new_tensor(math.nan)
    if level > 0:
        velocities = [_in_chunks(denoiser.velocity, x, sigma, cond) for x in (own, forward)]
        norms = [v.square().mean().sqrt() for v in velocities]
        prediction = norms[0] / norms[1]
    return energy, floor, power, spectrum, prediction


def _in_chunks(ask: Callable[[Tensor, Tensor, Cond], Tensor], x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    """What a denoiser says of all rows, some at a time: many samples, little memory."""
    rows = torch.arange(len(x), device=x.device).split(CHUNK)
    return torch.cat([ask(x[r], sigma[r], select(cond, r)) for r in rows])
