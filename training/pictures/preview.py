"""What scheduled sampling does, made visible: the model's own states beside the clean interpolants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers import Schedule, SolverFrame, integrate, trajectory
from ..conditioning import Cond, placed
from ..forms import add_noise, expand
from ..models.source import Denoiser, LoadedModel, ModelSource
from ..objective.config import RolloutConfig


@dataclass(frozen=True)
class RolloutFrames:
    """A rollout of B samples over T steps, beside the forward process with the same x0 and noise. On the CPU."""

    sigmas: Tensor
    """[T + 1] noise levels, from source to target."""
    own: Tensor
    """[T + 1, B, ...] the model's own states; the first is the source."""
    clean: Tensor
    """[T + 1, B, ...] the clean interpolants at the same noise levels; the first is the source."""
    denoised: Tensor
    """[T + 1, B, ...] the model's estimate of x0 at its own states."""
    drift: Tensor
    """[T + 1, B] ``||own - clean|| / ||clean||``."""
    floor: Tensor
    """[T + 1, B] the drift that remains for a perfect model, see `drift_floor`."""

    def summary(self) -> dict[str, list[float]]:
        """Noise levels, and drift and floor as the root mean square over samples, for reports."""
        return {
            "sigma": self.sigmas.tolist(),
            "drift": rms(self.drift).tolist(),
            "floor": rms(self.floor).tolist(),
        }


def rms(values: Tensor) -> Tensor:
    """Root mean square over samples: ``[T + 1, B] -> [T + 1]``."""
    return values.square().mean(1).sqrt()


@torch.inference_mode(False)
def rollout_frames(
    model: LoadedModel,
    x0: Tensor,
    cond: Cond,
    u_target: float,
    steps: int,
    config: RolloutConfig,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    floor_draws: int = 4,
) -> RolloutFrames:
    """Open a model and roll samples out on it, see `frames_on`.

    Args:
        model: base and adapter.
        dtype: the model computes under autocast to it; None: in its own.
    """
    device = model.source.device
    x0, cond = x0.to(device), placed(cond, device)
    with model.denoiser(dtype) as denoiser:
        return frames_on(denoiser, x0, cond, u_target, steps, config, seed, floor_draws)


@torch.no_grad()
def frames_on(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond,
    u_target: float,
    steps: int,
    config: RolloutConfig,
    seed: int = 0,
    floor_draws: int = 4,
) -> RolloutFrames:
    """Roll samples out as training does, and keep every state on the way.

    Args:
        denoiser: open, with its adapter on it; `x0` and `cond` are on its device.
        x0: [B, ...] data latents.
        cond: their conditioning, named tensors [B, ...].
        u_target: where the rollout ends, 0..1 of the trajectory.
        steps: rollout steps, at least 1; cut, as in training, where the source would be above u = 1.
        config: solver, its order and the number of steps of a whole trajectory.
        seed: of the noise.
        floor_draws: noise draws for each sample from which the floor is estimated, at least 1.

    Raises:
        ValueError: no room for a step, or arguments out of range.
    """
    if steps < 1 or floor_draws < 1:
        raise ValueError(f"steps and floor_draws must be at least 1, got {steps} and {floor_draws}")
    sigmas = _sigmas(denoiser.schedule, u_target, steps, config)
    generator = torch.Generator().manual_seed(seed)
    noise = _noise(x0, generator)
    own, denoised = _states(denoiser, x0, noise, cond, sigmas, config)
    draws = [_residual(denoiser, x0, _noise(x0, generator), cond, sigmas[0]) for _ in range(floor_draws)]
    clean = torch.stack([add_noise(denoiser.prediction, x0, noise, sigma) for sigma in _levels(sigmas, x0)])
    scale = _norm(clean)
    return RolloutFrames(
        sigmas=sigmas,
        own=own.cpu(),
        clean=clean.cpu(),
        denoised=denoised.cpu(),
        drift=(_norm(own - clean) / scale).cpu(),
        floor=(drift_floor(sigmas.to(x0), torch.stack(draws).mean(0)) / scale).cpu(),
    )


def drift_floor(sigmas: Tensor, mmse: Tensor) -> Tensor:
    """Expected distance of own and clean states of a perfect model: ``(1 - t / s) sqrt(mmse)``, [T + 1, B].

    x_t is ``(t / s) x_s + (1 - t / s) x0``, and an own state is a function of the source x_s alone. So no
    model comes nearer, in the root mean square, than the posterior spread of x0 given x_s allows, after any
    number of steps of any solver. Drift is exposure bias only where it is above that.

    The spread is not known; here it is the mean squared residual ``||x0 - denoised(x_s)||^2`` of the model
    itself over fresh draws of noise. That is too high by the model's own error at s, and too low where the
    model has memorised the very pictures it is shown. One Euler step is on this floor by construction.

    Args:
        sigmas: [T + 1], from the source s.
        mmse: [B] squared norm of the residual at s.
    """
    return (1 - sigmas / sigmas[0])[:, None] * mmse.sqrt()


def pictures(
    source: ModelSource, states: Tensor, sigmas: Tensor | None = None, cheap: bool = False
) -> Tensor:
    """Decode states ``[T + 1, B, C, h, w]`` to pictures ``[T + 1, B, H, W, 3]`` in [0, 1].

    Args:
        source: whose decoder is used.
        states: latents; noisy ones too, which look like noise.
        sigmas: [T + 1] their noise levels, by which VE states are brought to the scale of data; None: x0.
        cheap: by `preview_latents`, which leaves the network where it is.
    """
    if sigmas is not None and source.schedule.process == "ve":
        states = states * expand((1 + sigmas**2).rsqrt().to(states), states)
    decode = source.preview_latents if cheap else source.decode_latents
    pixels = decode(states.flatten(0, 1)).cpu()
    return pixels.permute(0, 2, 3, 1).unflatten(0, states.shape[:2])


def _sigmas(schedule: Schedule, u_target: float, steps: int, config: RolloutConfig) -> Tensor:
    """Noise levels [T + 1] from source to target; T is `steps` or what there is room for."""
    room = int((1 - u_target) * config.steps_per_trajectory + 1e-9)  # 1e-9 forgives rounding
    if not 0 <= u_target <= 1 or room < 1:
        raise ValueError(
            f"u_target must be in 0..{1 - 1 / config.steps_per_trajectory:g}, got {u_target}; "
            "a rollout needs room for a step below pure noise"
        )
    steps = min(steps, room)
    u_source = min(u_target + steps / config.steps_per_trajectory, 1.0)
    return trajectory(schedule, u_source, u_target, steps)[0]


def _states(
    denoiser: Denoiser, x0: Tensor, noise: Tensor, cond: Cond, sigmas: Tensor, config: RolloutConfig
) -> tuple[Tensor, Tensor]:
    """Own states and the estimates of x0 there, both [T + 1, B, ...]."""
    levels = _levels(sigmas, x0)
    own = [add_noise(denoiser.prediction, x0, noise, levels[0])]
    denoised: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:  # all rows share their noise levels
        return denoiser.denoised(x, sigma, cond)

    def keep(frame: SolverFrame) -> None:
        denoised.append(frame.denoised)
        own.append(frame.x)

    integrate(denoise, own[0], sigmas, config.sampler, config.order, denoiser.schedule.process, keep)
    denoised.append(denoise(own[-1], levels[-1], torch.arange(len(x0))))
    return torch.stack(own), torch.stack(denoised)


def _residual(denoiser: Denoiser, x0: Tensor, noise: Tensor, cond: Cond, sigma: Tensor) -> Tensor:
    """Squared norm [B] of what the model misses x0 by at the clean interpolant."""
    level = sigma.to(x0).expand(len(x0))
    x = add_noise(denoiser.prediction, x0, noise, level)
    return (x0 - denoiser.denoised(x, level, cond)).flatten(1).square().sum(1)


def _noise(x0: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)


def _levels(sigmas: Tensor, x0: Tensor) -> Tensor:
    """``[T + 1] -> [T + 1, B]``"""
    return sigmas.to(x0)[:, None].expand(-1, len(x0))


def _norm(states: Tensor) -> Tensor:
    """``[T + 1, B, ...] -> [T + 1, B]``"""
    return states.flatten(2).norm(dim=2)
