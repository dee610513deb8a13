"""Schedules, trajectories and the numbers beneath the solvers."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from rollout_trainer.samplers import FlowSchedule, Schedule, TableSchedule, trajectory
from rollout_trainer.samplers.coefficients import phi


def stable_diffusion() -> TableSchedule:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return TableSchedule.from_alphas_cumprod((1 - betas).cumprod(0))


SCHEDULES: list[Schedule] = [FlowSchedule(), FlowSchedule(3.0), FlowSchedule(0.5), stable_diffusion()]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sigma_and_u_are_inverse_and_rise(schedule):
    u = torch.linspace(0, 1, 4323, dtype=torch.float64).reshape(3, -1)
    sigma = schedule.sigma(u)
    assert sigma.shape == u.shape
    assert bool((sigma.flatten().diff() > 0).all())
    assert sigma[0, 0] == 0
    torch.testing.assert_close(schedule.u(sigma), u, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_in_float32_out(schedule):
    u = torch.linspace(0, 1, 101)
    assert schedule.sigma(u).dtype == schedule.u(u).dtype == torch.float32
    torch.testing.assert_close(schedule.sigma(u), schedule.sigma(u.double()).float(), rtol=1e-5, atol=1e-7)


def test_the_flow_schedule_is_the_shift():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(FlowSchedule().sigma(u), u)
    assert torch.equal(FlowSchedule(3.0).sigma(u), 3 * u / (1 + 2 * u))
    assert FlowSchedule(3.0).sigma(torch.tensor(1.0)) == 1
    assert [FlowSchedule().process, stable_diffusion().process] == ["flow", "ve"]


def test_every_training_timestep_is_in_the_table():
    schedule = stable_diffusion()
    n = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma((n + 1) / 1000), schedule.sigmas, rtol=1e-13, atol=0)
    torch.testing.assert_close(schedule.u(schedule.sigmas), (n + 1) / 1000, rtol=1e-13, atol=0)
    middle = (schedule.sigmas[10] * schedule.sigmas[11]).sqrt()  # log-linear between two
    torch.testing.assert_close(schedule.sigma(torch.tensor(11.5 / 1000).double()), middle)
    torch.testing.assert_close(schedule.sigma(torch.tensor(0.25 / 1000).double()), schedule.sigmas[0] / 4)


def test_the_table_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    schedule = TableSchedule.from_alphas_cumprod(scheduler.alphas_cumprod)
    scheduler.set_timesteps(1000)
    torch.testing.assert_close(schedule.sigmas.flip(0).float(), scheduler.sigmas[:-1], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FlowSchedule(0.0), "shift must be a positive finite number, got 0.0"),
        (lambda: FlowSchedule(math.nan), "shift must be .*, got nan"),
        (lambda: TableSchedule(torch.ones(1)), r"at least 2 values, got shape \(1,\)"),
        (lambda: TableSchedule(torch.tensor([1.0, 1.0])), "strictly ascending, got 1 .. 1 over 2 timesteps"),
        (lambda: TableSchedule(torch.tensor([0.0, 1.0])), "positive, finite .* got 0 .. 1"),
        (lambda: TableSchedule.from_alphas_cumprod(torch.tensor([0.9, 0.0])), "zero-terminal-SNR"),
    ],
)
def test_schedules_refuse_what_is_none(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# Trajectories


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rows_are_uniform_in_u_and_rest_at_their_end(schedule):
    u_start, u_end = torch.tensor([1.0, 0.9, 0.5, 0.7]).double(), torch.tensor([0.0, 0.3, 0.5, 0.2]).double()
    steps = torch.tensor([5, 3, 2, 0])
    sigmas = trajectory(schedule, u_start, u_end, steps)
    assert sigmas.shape == (4, 6)
    for row, a, b, n in zip(sigmas, u_start, u_end, steps.tolist(), strict=True):
        own = schedule.sigma(a + (b - a) * torch.arange(n + 1) / max(n, 1))
        torch.testing.assert_close(row[: n + 1], own, rtol=1e-13, atol=1e-15)
        assert bool((row[n:] == row[n]).all())
    assert torch.equal(sigmas[:3, 0], schedule.sigma(u_start[:3]))
    assert torch.equal(sigmas[:3, -1], schedule.sigma(u_end[:3]))
    assert torch.equal(sigmas[3], schedule.sigma(u_start[3:]).expand(6))


def test_numbers_are_one_row_in_float64():
    sigmas = trajectory(FlowSchedule(3.0), 1, 0, 4)
    assert sigmas.dtype == torch.float64
    torch.testing.assert_close(sigmas, FlowSchedule(3.0).sigma(torch.linspace(1, 0, 5).double()[None]))
    assert trajectory(FlowSchedule(), torch.tensor([0.8, 0.4]), 0.1, 2).shape == (2, 3)
    assert trajectory(FlowSchedule(), 0.8, 0.1, torch.tensor([2, 3])).shape == (2, 4)


def test_one_step_of_1_in_n_is_one_training_timestep():
    schedule = stable_diffusion()
    sigmas = trajectory(schedule, 701 / 1000, 698 / 1000, 3)
    torch.testing.assert_close(sigmas[0], schedule.sigmas[[700, 699, 698, 697]], rtol=1e-12, atol=0)


def test_no_rows_are_no_trouble():
    empty = torch.zeros(0)
    assert trajectory(FlowSchedule(), empty, empty, empty.long()).shape == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.3, 0.6, 2), "u_end <= u_start"),
        ((1.2, 0.6, 2), "u_end <= u_start <= 1, got 1.2, 0.6"),
        ((0.8, -0.1, 2), "0 <= u_end"),
        ((0.8, math.nan, 2), "got 0.8, nan"),
        ((0.8, 0.2, -1), "steps must be whole numbers of at least 0, got -1"),
        ((0.8, 0.2, 2.5), "steps must be whole .*, got 2.5"),
        ((torch.ones(2), torch.zeros(3), 2), "must have one length, or 1, got"),
    ],
)
def test_bad_trajectories_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        trajectory(FlowSchedule(), *arguments)


# The functions phi_k


def test_phi_to_the_last_digits():
    def exact(k: int, z: float) -> float:
        return float(sum(Fraction(z) ** j / math.factorial(j + k) for j in range(80)))

    z = torch.tensor(
        [-8.0, -1.5, -1.0, -0.99, -0.1, -4e-3, -1e-9, -1e-30, 0.0, 0.5, 3.0], dtype=torch.float64
    )
    values = phi(4, z)
    assert values.shape == (11, 4)
    for row, z_i in zip(values, z.tolist(), strict=True):
        expected = torch.tensor([exact(k, z_i) for k in range(1, 5)], dtype=torch.float64)
        torch.testing.assert_close(row, expected, rtol=2e-14, atol=0)
