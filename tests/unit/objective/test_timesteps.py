"""The draw of noise levels: distributions against their own formulas, and limits in the model's own terms."""

import math

import pytest
import torch

from rollout_trainer.samplers import FlowSchedule, TableSchedule
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.objective.rollout import draw_plan
from rollout_trainer.training.objective.timesteps import (
    TimestepConfig,
    draw_u,
    levels_trained,
    quantile,
    share_below,
    u_range,
)

FLOW = FlowSchedule(5.0)
TABLE = TableSchedule(torch.linspace(0.03, 14.6, 1000, dtype=torch.float64))


def drawn(config, schedule=FLOW, n=20000, seed=0):
    return draw_u(config, n, torch.Generator().manual_seed(seed), schedule)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal", "shifted", "sigmoid"])
@pytest.mark.parametrize("limits", [{}, {"sigma_low": 0.4, "sigma_high": 0.9}])
def test_draws_follow_the_quantiles(distribution, limits):
    config = TimestepConfig(distribution, mean=0.3, std=0.8, **limits)
    shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    found = torch.quantile(drawn(config), shares)
    assert torch.allclose(found, quantile(config, shares, FLOW), atol=0.01)


def test_sigmoid_is_a_logit_normal_of_sigma_whatever_the_shift():
    config = TimestepConfig("sigmoid", mean=0.5, std=0.7)
    z = torch.logit(FLOW.sigma(drawn(config)))
    assert abs(float(z.mean()) - 0.5) < 0.02
    assert abs(float(z.std()) - 0.7) < 0.02
    other = torch.logit(drawn(config, TABLE))  # no flow model: u is the timestep
    assert abs(float(other.mean()) - 0.5) < 0.02


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal", "shifted", "sigmoid"])
def test_limits_cut_a_distribution_and_do_not_bend_it(distribution):
    """Within the limits the share below a level is the whole distribution's, scaled."""
    whole = TimestepConfig(distribution)
    part = TimestepConfig(distribution, sigma_low=0.875)
    u = drawn(part)
    assert float(FLOW.sigma(u).min()) >= 0.875 - 1e-9
    all_of_it = drawn(whole, n=200000, seed=1)
    inside = all_of_it[FLOW.sigma(all_of_it) >= 0.875]
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    assert torch.allclose(torch.quantile(u, shares), torch.quantile(inside, shares), atol=0.02)


@pytest.mark.parametrize("schedule", [FLOW, TABLE])
def test_two_experts_share_the_trajectory(schedule):
    boundary = 0.875 if schedule is FLOW else 2.0
    high = u_range(TimestepConfig(sigma_low=boundary), schedule)
    low = u_range(TimestepConfig(sigma_high=boundary), schedule)
    assert high[1] == 1
    assert low[0] == 0
    assert high[0] == pytest.approx(low[1])
    assert float(schedule.sigma(torch.tensor(high[0], dtype=torch.float64))) == pytest.approx(boundary)
    assert u_range(TimestepConfig(), schedule) == (0, 1)


def test_the_least_draw_is_finite_and_inside():
    config = TimestepConfig("logit_normal", sigma_high=0.875)
    ends = quantile(config, torch.tensor([0.0, 1.0], dtype=torch.float64), FLOW)
    assert ends.isfinite().all()
    assert float(share_below(config, ends[1:], FLOW)) < 1
    assert math.isclose(float(FLOW.sigma(ends[1])), 0.875, rel_tol=1e-6)


@pytest.mark.parametrize("length", [10, 50])
def test_rollouts_start_within_the_limits(length):
    config = TimestepConfig(sigma_high=0.875)
    highest = u_range(config, FLOW)[1]
    u = drawn(config, n=500)
    rollout = RolloutConfig(max_step_offset=length, probability=1.0)
    plan = draw_plan(rollout, 0, u, torch.Generator().manual_seed(2), highest)
    assert float(plan.u_source.max()) <= highest + 1e-9
    beyond = draw_plan(rollout, 0, u, torch.Generator().manual_seed(2))
    assert float(beyond.u_source.max()) > highest  # as it would be without


def test_without_limits_the_draws_are_what_they_were():
    g = torch.Generator().manual_seed(3)
    u = 1 - torch.rand(8, generator=g, dtype=torch.float64)
    assert torch.equal(drawn(TimestepConfig(low=0.2), n=8, seed=3), 0.2 + (1 - 0.2) * u)
    z = torch.randn(8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(drawn(TimestepConfig("logit_normal"), n=8, seed=3), torch.sigmoid(z))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sigma_low": 0.9, "sigma_high": 0.8}, "sigma_low must be below sigma_high"),
        ({"sigma_low": 0.5, "low": 0.1}, "low and high must be 0 and 1"),
    ],
)
def test_limits_that_contradict_are_one_line(settings, said):
    with pytest.raises(ValueError, match=said):
        TimestepConfig(**settings)


def test_limits_above_the_models_noise_are_one_line():
    with pytest.raises(ValueError, match="must be below the model's highest noise level"):
        u_range(TimestepConfig(sigma_low=1.0), FLOW)


def test_a_line_says_which_levels_are_trained():
    assert levels_trained(TimestepConfig(), FlowSchedule(1.0)) == (
        "noise levels 0 to 1: half of them below 0.5, four in five from 0.1 to 0.9"
    )
    assert levels_trained(TimestepConfig(sigma_low=0.875), FLOW).startswith("noise levels 0.875 to 1:")
