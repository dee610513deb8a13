"""Who rolls out, how far, at what cost, and where the rows land."""

import pytest
import torch
from everything import Given, rolled_out
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_trainer.samplers import SAMPLERS, FlowSchedule, TableSchedule
from rollout_trainer.training.forms import add_noise, expand
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.objective.rollout import (
    RolloutPlan,
    draw_plan,
    expected_extra_forwards,
    row_evaluations,
)
from rollout_trainer.training.objective.states import teacher_forced
from rollout_trainer.training.objective.timesteps import TimestepConfig, draw_u

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
TABLE = TableSchedule.from_alphas_cumprod((1 - BETAS).cumprod(0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(plan_u, prediction="flow", schedule=None, shape=(2, 3), seed=0):
    """A teacher-forced float64 batch at the targets `plan_u`."""
    schedule = schedule or FlowSchedule(3.0)
    g = seeded(seed)
    x0, noise = (torch.randn(len(plan_u), *shape, generator=g, dtype=torch.float64) for _ in range(2))
    sigma = schedule.sigma(plan_u)
    cond = {"row": torch.arange(len(plan_u), dtype=torch.float64)}
    return teacher_forced(prediction, x0, noise, sigma, cond, None)


class Gaussian:
    """The exact velocity of data N(m, s^2) per element; flow or VE."""

    def __init__(self, prediction, m=0.7, s=0.3):
        self.prediction, self.m, self.s = prediction, m, s
        self.rows = []

    def std(self, sigma):
        alpha = 1 - sigma if self.prediction == "flow" else torch.ones_like(sigma)
        return ((alpha * self.s) ** 2 + sigma**2).sqrt()

    def mean(self, sigma):
        return (1 - sigma) * self.m if self.prediction == "flow" else torch.full_like(sigma, self.m)

    def exact(self, x, sigma, sigma_next):
        """The exact flow from `sigma` to `sigma_next`."""
        s, t = expand(sigma, x), expand(sigma_next, x)
        return self.mean(t) + self.std(t) * (x - self.mean(s)) / self.std(s)

    def __call__(self, x, sigma, cond):
        self.rows.append(len(x))
        assert (cond["row"] >= 0).all()
        g = expand(sigma, x)
        alpha = 1 - g if self.prediction == "flow" else torch.ones_like(g)
        gain = alpha * self.s**2 / self.std(g) ** 2
        denoised = self.m + gain * (x - self.mean(g))
        return (x - denoised) / g


# --- the plan -----------------------------------------------------------------------------------


def test_off_draws_nothing():
    g = seeded()
    before = g.get_state()
    u = torch.rand(8, dtype=torch.float64)
    for config in (
        RolloutConfig(),
        RolloutConfig(max_step_offset=5),
        RolloutConfig(probability=1.0),
        RolloutConfig(max_step_offset=5, ramp_steps=10, prob_start=0.0, start_step=100),
    ):
        assert draw_plan(config, 0, u, g) is None
    assert torch.equal(g.get_state(), before)


@settings(max_examples=60, deadline=None)
@given(
    u=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12),
    offset=st.integers(1, 20),
    per=st.integers(20, 1000),
    seed=st.integers(0, 1000),
)
def test_targets_are_kept_and_sources_stay_below_pure_noise(u, offset, per, seed):
    u = torch.tensor(u, dtype=torch.float64)
    config = RolloutConfig(max_step_offset=offset, probability=1.0, steps_per_trajectory=per)
    plan = draw_plan(config, 0, u, seeded(seed))
    if plan is None:
        return
    assert torch.equal(plan.u_target, u[plan.rows])
    assert (plan.u_source <= 1).all()
    assert (plan.steps >= 1).all()
    assert (plan.steps <= offset).all()
    torch.testing.assert_close((plan.u_source - plan.u_target) * per, plan.steps.double(), atol=1e-6, rtol=0)


def lengths(config, draws=4000, step=0):
    """Empirical distribution of the lengths of all samples, those that are not rolled counted as 0."""
    g = seeded(5)
    counts = torch.zeros(config.max_step_offset + 1)
    u = torch.full((draws,), 0.2, dtype=torch.float64)
    plan = draw_plan(config, step, u, g)
    counts[0] = draws - (0 if plan is None else len(plan.rows))
    if plan is not None:
        counts += torch.bincount(plan.steps, minlength=len(counts))
    return counts / draws


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_probability_is_the_share_of_samples(probability):
    config = RolloutConfig(max_step_offset=4, probability=probability)
    share = 1 - lengths(config)[0]
    assert share == pytest.approx(probability * 4 / 5, abs=0.03)  # a fifth of the draws has length 0


def test_strategies():
    uniform, early, late = (
        lengths(RolloutConfig(max_step_offset=3, probability=1.0, strategy=s))
        for s in ("uniform", "biased_early", "biased_late")
    )
    assert uniform.tolist() == pytest.approx([0.25] * 4, abs=0.03)
    assert early.tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.03)
    assert late.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)


def test_each_sample_draws_its_own_length():
    plan = draw_plan(
        RolloutConfig(max_step_offset=10, probability=1.0), 0, torch.full((64,), 0.3).double(), seeded()
    )
    assert len(set(plan.steps.tolist())) > 5


def test_ramp_is_followed():
    config = RolloutConfig(max_step_offset=4, ramp_steps=100, prob_start=0.0, prob_end=1.0)
    shares = [float(1 - lengths(config, step=s)[0]) for s in (1, 50, 100)]
    assert shares == pytest.approx([0.01 * 0.8, 0.5 * 0.8, 0.8], abs=0.03)


# --- cost ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    sampler=st.sampled_from(sorted(SAMPLERS)),
    target=st.sampled_from(["residual", "solver_error", "clean", "corrective"]),
    order=st.integers(1, 3),
    batch=st.integers(1, 10),
    offset=st.integers(1, 6),
    seed=st.integers(0, 100),
)
def test_row_evaluations_equal_the_formula(sampler, target, order, batch, offset, seed):
    config = RolloutConfig(
        max_step_offset=offset, probability=0.8, sampler=sampler, order=order, target=target
    )
    u = draw_u(TimestepConfig(), batch, seeded(seed), FlowSchedule())
    plan = draw_plan(config, 0, u, seeded(seed))
    if plan is None:
        return
    model = Gaussian("flow")
    rolled_out(plan, config, Given(model), inputs(u))
    calls = 4 if sampler == "rk4" else 1
    expected = int(plan.steps.sum()) * calls
    longest = int(plan.steps.max()) * calls
    if target == "solver_error":
        expected, longest = len(plan.rows) * (4 if sampler == "rk4" else 2), 4 if sampler == "rk4" else 2
    assert sum(model.rows) == expected == row_evaluations(config, plan.steps, reflexflow=False)
    assert len(model.rows) == longest  # all rows together, not one after the other
    assert row_evaluations(config, plan.steps, reflexflow=True) == expected + len(plan.rows)


@pytest.mark.parametrize("strategy", ["uniform", "biased_early", "biased_late"])
@pytest.mark.parametrize("sampler", ["euler", "rk4"])
def test_expected_cost_is_what_is_paid(strategy, sampler):
    config = RolloutConfig(max_step_offset=6, probability=0.5, strategy=strategy, sampler=sampler)
    n = 20000
    plan = draw_plan(config, 0, torch.full((n,), 0.2, dtype=torch.float64), seeded())
    paid = row_evaluations(config, plan.steps, reflexflow=True) / n
    assert expected_extra_forwards(config, reflexflow=True) == pytest.approx(paid, rel=0.03)


# --- where rows land ----------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["flow", "epsilon"])
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_perfect_denoiser_lands_on_the_exact_flow(prediction, sampler):
    """Within the solver's error: it shrinks with finer steps at the solver's order."""
    schedule = FlowSchedule(3.0) if prediction == "flow" else TABLE
    u = torch.tensor([0.2, 0.35, 0.5, 0.6, 0.8], dtype=torch.float64)
    errors = []
    for per in (20, 40, 80):
        config = RolloutConfig(
            max_step_offset=per // 4, probability=1.0, sampler=sampler, steps_per_trajectory=per
        )
        # the same way at every fineness: a fifth of the trajectory for each row
        plan = RolloutPlan(torch.arange(5), torch.full((5,), per // 5), u + 0.2, u)
        model, batch = Gaussian(prediction), inputs(u, prediction, schedule)
        states, _ = rolled_out(plan, config, Given(model, prediction, schedule), batch)
        s, t = schedule.sigma(u + 0.2), schedule.sigma(u)
        exact = model.exact(add_noise(prediction, batch.x0, batch.noise, s), s, t)
        errors.append(float((states.x_hat - exact).abs().max()))
        torch.testing.assert_close(states.sigma, t)
    order = {"euler": 1, "dpm": 2, "unipc": 2, "rk4": 4}[sampler]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < errors[0] / 2 ** (1.6 * order)
    assert errors[2] < {"euler": 0.05, "dpm": 5e-3, "unipc": 5e-3, "rk4": 1e-5}[sampler]


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("prediction", ["flow", "epsilon"])
def test_a_point_mass_is_rolled_to_the_clean_interpolant_itself(prediction, sampler):
    """All data at one point: the exact field is a straight line, every solver follows it."""
    schedule = FlowSchedule(3.0) if prediction == "flow" else TABLE
    u = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    config = RolloutConfig(max_step_offset=5, probability=1.0, sampler=sampler, steps_per_trajectory=20)
    batch = inputs(u, prediction, schedule)
    point = batch.x0[:1].expand_as(batch.x0)
    batch = teacher_forced(prediction, point, batch.noise, batch.sigma, batch.cond, None)

    def model(x, sigma, cond):
        return (x - point[: len(x)]) / expand(sigma, x)

    plan = draw_plan(config, 0, u, seeded(3))
    states, _ = rolled_out(plan, config, Given(model, prediction, schedule), batch)
    torch.testing.assert_close(states.x_hat, batch.x[plan.rows], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(states.velocity_source, (batch.noise - batch.x0 if prediction == "flow"
                               else batch.noise)[plan.rows])  # fmt: skip


def test_rollouts_move_towards_less_noise():
    """SimpleTuner's epsilon rollouts stepped from 500 to 501."""
    for prediction, schedule in (("flow", FlowSchedule(3.0)), ("epsilon", TABLE), ("v", TABLE)):
        u = torch.tensor([0.5], dtype=torch.float64)
        seen = []

        def model(x, sigma, cond, seen=seen):
            seen.append(float(sigma))
            return torch.zeros_like(x)

        config = RolloutConfig(max_step_offset=5, probability=1.0, sampler="euler")
        plan = RolloutPlan(torch.tensor([0]), torch.tensor([5]), torch.tensor([0.6]).double(), u)
        rolled_out(plan, config, Given(model, prediction, schedule), inputs(u, prediction, schedule))
        assert seen == sorted(seen, reverse=True)
        assert seen[0] == pytest.approx(float(schedule.sigma(plan.u_source)))
        assert seen[-1] > float(schedule.sigma(u))


def test_descending_tables_of_real_schedulers_map_to_the_right_sigma():
    """SimpleTuner read sigmas[t] from a descending table: t = 100 got sigma 0.9."""
    diffusers = pytest.importorskip("diffusers")
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.set_timesteps(50)
    u = torch.linspace(1, 1 / 1000, 50, dtype=torch.float64)
    table = FlowSchedule(3.0)
    ours = table.sigma(table.u(flow.timesteps.double() / 1000))
    torch.testing.assert_close(ours, flow.sigmas[:-1].double(), atol=1e-6, rtol=1e-6)
    assert float(table.sigma(torch.tensor(0.1))) < 0.3
    assert (table.sigma(u).diff() < 0).all()

    ddpm = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    ddpm.set_timesteps(20)
    ours = TABLE.sigma((ddpm.timesteps.double() + 1) / 1000)
    torch.testing.assert_close(ours, ddpm.sigmas[:-1].double(), atol=1e-4, rtol=1e-5)


def test_the_chosen_order_is_reached():
    """With skrample 0.6+ every multistep solver fell to order 1 there: orders must differ."""
    u = torch.tensor([0.3], dtype=torch.float64)
    landed = []
    for order in (1, 2, 3):
        config = RolloutConfig(max_step_offset=6, probability=1.0, sampler="dpm", order=order)
        plan = RolloutPlan(torch.tensor([0]), torch.tensor([6]), torch.tensor([0.6]).double(), u)
        states, _ = rolled_out(plan, config, Given(Gaussian("flow")), inputs(u))
        landed.append(states.x_hat)
    exact = Gaussian("flow").exact(
        add_noise(
            "flow", inputs(u).x0, inputs(u).noise, FlowSchedule(3.0).sigma(torch.tensor([0.6]).double())
        ),
        FlowSchedule(3.0).sigma(torch.tensor([0.6]).double()),
        FlowSchedule(3.0).sigma(u),
    )
    errors = [float((x - exact).abs().max()) for x in landed]
    assert errors[0] > 3 * errors[1] > 3 * errors[2]


def test_reuse_gives_every_state_on_the_way():
    u = torch.tensor([0.2, 0.5, 0.4], dtype=torch.float64)
    config = RolloutConfig(max_step_offset=5, probability=1.0, reuse=3, reflexflow=ReflexFlowConfig("off"))
    plan = draw_plan(config, 0, u, seeded(2))
    model, batch = Gaussian("flow"), inputs(u)
    states, trail = rolled_out(plan, config, Given(model), batch)
    assert len(trail) == int(plan.steps.sum())
    along = trail.at(torch.arange(len(trail)))
    for r in range(len(plan.rows)):  # every row's last state on the way is its state at its target
        own = (along.cond["row"] == states.cond["row"][r]).nonzero().squeeze(1)
        assert len(own) == plan.steps[r]
        last = own[along.sigma[own].argmin()]
        assert torch.equal(along.x_hat[last], states.x_hat[r])
        assert torch.equal(along.velocity_source[last], states.velocity_source[r])
        assert along.sigma[own].unique().numel() == len(own)
