"""Rollout previews on Gaussian data, where drift, posterior spread and floor are known in closed form."""

from contextlib import nullcontext

import pytest
import torch
from everything import rolled_out
from torch import nn

from rollout_trainer.samplers import FlowSchedule, TableSchedule, trajectory
from rollout_trainer.training.forms import expand, from_velocity, to_denoised
from rollout_trainer.training.models.source import Denoiser, LoadedModel
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.objective.rollout import RolloutPlan
from rollout_trainer.training.objective.states import teacher_forced
from rollout_trainer.training.pictures.preview import drift_floor, pictures, rms, rollout_frames

STD, MEAN = 0.5, 0.7
SHAPE = (2, 3, 3)


class Source(Denoiser):
    """The exact model of data N(MEAN, STD^2) in each place; decoding repeats the first channel thrice."""

    name = "gauss"
    device = torch.device("cpu")

    def __init__(self, prediction="flow"):
        self.prediction = prediction
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        flow = prediction == "flow"
        self.schedule = (
            FlowSchedule(2.0) if flow else TableSchedule.from_alphas_cumprod((1 - betas).cumprod(0))
        )
        self.module = nn.Identity()
        self.calls = 0

    def denoiser(self, dtype=None):
        return self

    def opened(self, training=False, checkpointing=False):
        return nullcontext()

    def decode_latents(self, latents):
        return latents[:, :1].repeat(1, 3, 1, 1)

    def std(self, sigma):
        keep = 1 - sigma if self.prediction == "flow" else torch.ones_like(sigma)
        return ((keep * STD) ** 2 + sigma**2).sqrt(), keep

    def predict(self, x, sigma, cond):
        self.calls += 1
        std, keep = (expand(value, x) for value in self.std(sigma))
        denoised = MEAN + keep * STD**2 / std**2 * (x - keep * MEAN)
        return from_velocity(self.prediction, x, sigma, (x - denoised) / expand(sigma, x))


def data(n, shape=SHAPE):
    x0 = MEAN + STD * torch.randn(n, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x0, {"context": torch.zeros(n, 1)}


def config(**options):
    return RolloutConfig(max_step_offset=10, probability=1.0, **options)


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v"])
def test_drift_and_floor_of_a_perfect_model(prediction):
    """The exact flow ends at ``keep_t m + std_t z``; beside the interpolant that is off by a known amount."""
    source = Source(prediction)
    frames = rollout_frames(LoadedModel(source), *data(30, (2, 24, 24)), 0.3, 20, config(sampler="rk4"))
    std, keep = source.std(frames.sigmas)
    s, t = frames.sigmas[0], frames.sigmas
    z_x0, z_noise = keep[0] * STD / std[0], s / std[0]  # shares of data and noise in the source's z
    gap = ((std * z_x0 - keep * STD) ** 2 + (std * z_noise - t) ** 2).sqrt()  # per place
    size = ((keep * MEAN) ** 2 + std**2).sqrt()
    torch.testing.assert_close(rms(frames.drift), gap / size, rtol=0.02, atol=1e-6)
    spread = STD * s / std[0]  # of the posterior of x0 at the source
    torch.testing.assert_close(rms(frames.floor), (1 - t / s) * spread / size, rtol=0.02, atol=1e-6)
    assert (rms(frames.drift) >= rms(frames.floor) * 0.98).all()


def test_one_euler_step_lies_on_the_floor():
    """By construction, were the floor estimated from the same noise: sample by sample, no statistics."""
    source = Source()
    x0, cond = data(8)
    frames = rollout_frames(LoadedModel(source), x0, cond, 0.5, 1, config(sampler="euler"))
    residual = (x0 - frames.denoised[0]).flatten(1).square().sum(1)
    floor = drift_floor(frames.sigmas, residual) / frames.clean.flatten(2).norm(dim=2)
    torch.testing.assert_close(frames.drift, floor)


@pytest.mark.parametrize("prediction", ["flow", "v"])
@pytest.mark.parametrize("sampler", ["euler", "unipc", "rk4"])
def test_frames_end_where_training_rolls_out_to(prediction, sampler):
    source, settings = Source(prediction), config(sampler=sampler)
    x0, cond = data(3)
    frames = rollout_frames(LoadedModel(source), x0, cond, 0.4, 6, settings, seed=2)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=x0.dtype)
    sigma = source.schedule.sigma(torch.full((3,), 0.4, dtype=torch.float64))
    u = torch.full((3,), 0.4, dtype=torch.float64)
    plan = RolloutPlan(torch.arange(3), torch.full((3,), 6), u + 6 / 50, u)
    inputs = teacher_forced(prediction, x0, noise, sigma, cond, None)
    states, _ = rolled_out(plan, settings, source, inputs)
    torch.testing.assert_close(frames.own[-1], states.x_hat)
    torch.testing.assert_close(frames.clean[-1], inputs.x)


@pytest.mark.parametrize("sampler", ["euler", "unipc", "rk4"])
def test_estimates_belong_to_the_states_they_stand_under(sampler):
    source = Source()
    frames = rollout_frames(LoadedModel(source), *data(2), 0.4, 5, config(sampler=sampler))
    for own, denoised, sigma in zip(frames.own, frames.denoised, frames.sigmas, strict=True):
        level = sigma.expand(2)
        torch.testing.assert_close(denoised, to_denoised("flow", own, level, source.predict(own, level, {})))
    assert torch.equal(frames.own[0], frames.clean[0])
    assert (frames.drift[0] == 0).all()
    assert (frames.floor[0] == 0).all()


def test_rollouts_are_cut_at_pure_noise():
    frames = rollout_frames(LoadedModel(Source()), *data(2), 0.9, 10, config(steps_per_trajectory=20))
    assert len(frames.sigmas) == 3
    assert frames.sigmas[0] == 1.0
    expected = trajectory(FlowSchedule(2.0), 1.0, 0.9, 2)[0]
    torch.testing.assert_close(frames.sigmas, expected)


@pytest.mark.parametrize(
    ("u", "steps", "line"),
    [
        (1.0, 1, "u_target must be in 0..0.98"),
        (-0.1, 1, "u_target must be in"),
        (0.5, 0, "steps and floor_draws must be at least 1"),
    ],
)
def test_rollouts_without_room_are_refused(u, steps, line):
    with pytest.raises(ValueError, match=line):
        rollout_frames(LoadedModel(Source()), *data(2), u, steps, config())


def test_the_seed_decides():
    first, again, other = (
        rollout_frames(LoadedModel(Source()), *data(2), 0.5, 2, config(), seed=seed).own for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_summary_is_plain_numbers():
    summary = rollout_frames(LoadedModel(Source()), *data(2), 0.5, 2, config()).summary()
    assert set(summary) == {"sigma", "drift", "floor"}
    assert all(isinstance(value, float) for values in summary.values() for value in values)


def test_pictures_have_the_hosts_form():
    source = Source("v")
    frames = rollout_frames(LoadedModel(source), *data(2), 0.5, 3, config())
    shown = pictures(source, frames.own, frames.sigmas)
    assert shown.shape == (4, 2, 3, 3, 3)
    scale = (1 + frames.sigmas**2).sqrt()[:, None, None, None]
    torch.testing.assert_close(shown[..., 0] * scale, frames.own[:, :, 0])
    torch.testing.assert_close(pictures(source, frames.denoised)[..., 0], frames.denoised[:, :, 0])
