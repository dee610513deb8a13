"""What each target teaches, on a mixture of two Gaussians whose field is known exactly.

What is held on to here: a target whose only data part is the paired x0 teaches E[x0 | x_s], which is too flat at
the rolled state x_hat; `residual` is unbiased at any length and with any solver. All of it goes through the
trainer's own functions: `draw_plan`, `roll_out`, `TARGETS`, `put`, `training_goal`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from everything import Given, rolled_out
from torch import Tensor

from rollout_trainer.samplers import SAMPLERS, FlowSchedule, Schedule, TableSchedule, integrate
from rollout_trainer.training.conditioning import Cond
from rollout_trainer.training.forms import (
    Prediction,
    add_noise,
    expand,
    from_velocity,
    to_denoised,
)
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.objective.rollout import RolloutPlan, draw_plan, roll_out, row_evaluations
from rollout_trainer.training.objective.states import Inputs, RolledRows, put, teacher_forced, training_goal
from rollout_trainer.training.objective.targets import TARGETS
from rollout_trainer.training.pictures.exposure import energy_distance

Predict = Callable[[Tensor, Tensor, Cond], Tensor]
"""``predict(x, sigma, cond) -> model output``"""
ROLLING = [name for name, target in TARGETS.items() if not target.slowed]
PREDICTIONS: tuple[Prediction, ...] = ("flow", "epsilon", "v")
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
TABLE = TableSchedule.from_alphas_cumprod((1 - BETAS).cumprod(0))


def schedule_of(prediction: Prediction) -> Schedule:
    return FlowSchedule(3.0) if prediction == "flow" else TABLE


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Mixture:
    """Data ``0.7 N(-1, 0.2^2) + 0.3 N(1, 0.2^2)``, one number a sample, as a perfect model knows it. x: [N, 1]."""

    prediction: Prediction = "flow"
    variance = 0.2**2
    means = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n data and as many noises, [n, 1] each."""
        mode = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        own, noise = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
        return self.means[mode, None] + self.variance**0.5 * own, noise

    def posterior(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and means [N, 2] of the two modes of x0 given x, and their variance [N, 1]."""
        sigma = expand(sigma, x)
        alpha = 1 - sigma if self.prediction == "flow" else torch.ones_like(sigma)
        total = alpha**2 * self.variance + sigma**2
        away = x - alpha * self.means  # [N, 1] -> [N, 2]
        weights = (self.weights.log() - away**2 / (2 * total)).softmax(1)
        return weights, self.means + alpha * self.variance / total * away, self.variance * sigma**2 / total

    def density(self, x: Tensor, sigma: float) -> Tensor:
        """Density of the interpolant at `sigma`, [N]."""
        alpha = 1 - sigma if self.prediction == "flow" else 1.0
        normal = torch.distributions.Normal(alpha * self.means, (alpha**2 * self.variance + sigma**2) ** 0.5)
        return normal.log_prob(x).exp() @ self.weights

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x], [N, 1]."""
        weights, means, _ = self.posterior(x, sigma)
        return (weights * means).sum(1, keepdim=True)

    def velocity(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact field, [N, 1]."""
        return (x - self.denoised(x, sigma)) / expand(sigma, x)

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The exact field in the model's own form."""
        return from_velocity(self.prediction, x, sigma, self.velocity(x, sigma))

    def noise_of(self, x: Tensor, sigma: Tensor, x0: Tensor) -> Tensor:
        """The noise that makes x of x0."""
        s = expand(sigma, x)
        return (x - ((1 - s) * x0 if self.prediction == "flow" else x0)) / s

    def averaged(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """``E[x0 | x]`` and ``E[noise | x]`` at each row's own interpolant x, which they make again.

        A rollout depends on x0 and noise through its source x_s alone, and `clean`, `corrective` and `residual` are
        linear in them: to put these means in their place changes no regression, and takes its noise away.
        """
        x = add_noise(self.prediction, x0, noise, sigma)
        mean = self.denoised(x, sigma)
        return mean, self.noise_of(x, sigma, mean)


@dataclass(frozen=True)
class Asked:
    """What a batch is trained on."""

    inputs: Inputs
    output: Tensor
    """[B, ...] what is asked of the model, in its own form."""
    weight: Tensor
    """[B] of the loss."""


def asked(
    prediction: Prediction,
    config: RolloutConfig,
    predict: Predict,
    plan: RolloutPlan | None,
    inputs: Inputs,
    schedule: Schedule,
) -> Asked:
    """A training step from the plan to the loss."""
    model, target = Given(predict, prediction, schedule), TARGETS[config.target]
    rolled = None
    if plan is not None:
        states, _ = rolled_out(plan, config, model, inputs)
        rolled = RolledRows(plan.rows, states, None)
        inputs = put(inputs, rolled)
    output = predict(inputs.x, inputs.sigma, inputs.cond)
    goal = training_goal(prediction, inputs, target, rolled, output)
    weight = torch.ones_like(inputs.sigma) if goal.weight is None else goal.weight
    return Asked(inputs, goal.output, weight)


# --- the output that is asked for ---------------------------------------------------------------


def point_mass(prediction: Prediction) -> Predict:
    """A perfect model of data that it knows: row i's is ``cond["x0"][i]``. Own trajectories are straight then."""

    def predict(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return output_for(prediction, x, sigma, cond["x0"])

    return predict


def output_for(prediction: Prediction, x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """The output that means `denoised` at x, from the definition of each form (README, glossary)."""
    s = expand(sigma, x)
    if prediction == "flow":
        return (x - (1 - s) * denoised) / s - denoised
    epsilon = (x - denoised) / s
    alpha, sigma_vp = (1 + s**2).rsqrt(), s * (1 + s**2).rsqrt()
    return epsilon if prediction == "epsilon" else alpha * epsilon - sigma_vp * denoised


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("target", ROLLING)
def test_of_a_model_that_knows_the_data_every_target_asks_what_it_says(target, prediction, sampler):
    """No drift, no error: x_hat is the clean interpolant and each target the model's own, right output."""
    g = seeded(1)
    x0, noise = torch.randn(2, 24, 3, 4, 4, generator=g, dtype=torch.float64)
    config = RolloutConfig(
        max_step_offset=8, probability=0.8, target=target, sampler=sampler, steps_per_trajectory=25
    )
    u = torch.rand(24, generator=g, dtype=torch.float64) * 0.9 + 0.05
    schedule, predict = schedule_of(prediction), point_mass(prediction)
    plan = draw_plan(config, 0, u, g)
    inputs = teacher_forced(prediction, x0, noise, schedule.sigma(u), {"x0": x0}, None)
    got = asked(prediction, config, predict, plan, inputs, schedule)

    assert 5 < len(plan.rows) < 24
    torch.testing.assert_close(got.inputs.x, inputs.x, rtol=1e-11, atol=1e-11)
    expected = output_for(prediction, inputs.x, inputs.sigma, x0)
    torch.testing.assert_close(got.output, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        got.output, predict(inputs.x, inputs.sigma, {"x0": x0}), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("target", ROLLING)
def test_at_a_drifted_state_each_target_asks_its_own(target, prediction):
    """The exact field of a mixture drifts off the interpolant; the targets then part, each as it is defined."""
    g, data, schedule = seeded(2), Mixture(prediction), schedule_of(prediction)
    x0, noise = data.sample(64, g)
    config = RolloutConfig(
        max_step_offset=5, probability=1.0, target=target, sampler="euler", steps_per_trajectory=20
    )
    u = torch.rand(64, generator=g, dtype=torch.float64) * 0.7 + 0.05
    plan = draw_plan(config, 0, u, g)
    inputs = teacher_forced(prediction, x0, noise, schedule.sigma(u), {}, None)
    got = asked(prediction, config, data.predict, plan, inputs, schedule)

    rows, t = plan.rows, schedule.sigma(plan.u_target)
    s = schedule.sigma(plan.u_source)
    x_hat, x0, noise = got.inputs.x[rows], x0[rows], noise[rows]
    x_s = add_noise(prediction, x0, noise, s)
    if target == "solver_error":
        euler = x_s + expand(t - s, x_s) * data.velocity(x_s, s)
        mean = (data.velocity(x_s, s) + data.velocity(euler, t)) / 2
        torch.testing.assert_close(x_hat, inputs.x[rows] + euler - (x_s + expand(t - s, x_s) * mean))
    u_true = noise - x0 if prediction == "flow" else noise
    denoised = {
        "clean": x_hat - expand(t, x_hat) * u_true,
        "residual": x_hat - expand(t, x_hat) * (data.velocity(x_hat, t) + u_true - data.velocity(x_s, s)),
        "corrective": x0,
        "solver_error": x0,
    }[target]
    assert (x_hat - inputs.x[rows]).abs().max() > 0.01
    expected = output_for(prediction, x_hat, t, denoised)
    torch.testing.assert_close(got.output[rows], expected, rtol=1e-9, atol=1e-9)
    t01 = t if prediction == "flow" else t / (1 + t)
    weighted = target in ("corrective", "solver_error")
    torch.testing.assert_close(
        got.weight[rows], (t01 / 0.3).square().clamp(max=1) if weighted else torch.ones_like(t)
    )
    rest = torch.ones(64, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(got.inputs.x[rest], inputs.x[rest])
    assert (got.weight[rest] == 1).all()


# --- which targets keep an exact model exact ----------------------------------------------------


def with_its_posterior(
    data: Mixture, plan: RolloutPlan, schedule: Schedule, inputs: Inputs
) -> tuple[RolloutPlan, Inputs, Tensor]:
    """Put all data that could have made a source in its place: 2 modes x 3 Gauss-Hermite nodes a row, R rows -> 6 R.

    Returns:
        The plan and the batch with 6 rows for each planned one, and the nodes' weights [R, 6].
    """
    nodes = torch.tensor([-(3**0.5), 0.0, 3**0.5], dtype=torch.float64)
    s = schedule.sigma(plan.u_source)
    x_s = add_noise(data.prediction, inputs.x0[plan.rows], inputs.noise[plan.rows], s)
    weights, means, variance = data.posterior(x_s, s)
    x0 = (means[:, :, None] + variance[:, :, None].sqrt() * nodes).flatten()[:, None]  # [R, 2, 3] -> [6 R, 1]
    weights = (weights[:, :, None] * torch.tensor([1, 4, 1]) / 6).flatten(1)
    s, x_s = s.repeat_interleave(6), x_s.repeat_interleave(6, 0)
    own = [t.repeat_interleave(6) for t in (plan.steps, plan.u_source, plan.u_target)]
    sigma = schedule.sigma(own[2])
    batch = teacher_forced(data.prediction, x0, data.noise_of(x_s, s, x0), sigma, {}, None)
    return RolloutPlan(torch.arange(len(x0)), *own), batch, weights


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_residual_asks_a_perfect_model_for_its_own_output(prediction, sampler):
    """In closed form: averaged over all data that could have made the source, the target is the exact field at x_hat.

    Whatever the solver, the length and the prediction; `clean` on the same states is far from it.
    """
    g, data, schedule = seeded(3), Mixture(prediction), schedule_of(prediction)
    u = torch.rand(200, generator=g, dtype=torch.float64) * 0.8 + 0.02
    config = RolloutConfig(max_step_offset=5, probability=1.0, sampler=sampler, steps_per_trajectory=20)
    plan = draw_plan(config, 0, u, g)
    inputs = teacher_forced(prediction, *data.sample(200, g), schedule.sigma(u), {}, None)
    plan, batch, weights = with_its_posterior(data, plan, schedule, inputs)

    def bias(target: str) -> Tensor:
        got = asked(prediction, replace(config, target=target), data.predict, plan, batch, schedule)
        x_hat, mean = (t.view(-1, 6) for t in (got.inputs.x, got.output))
        # The rollout sees the source alone.
        torch.testing.assert_close(x_hat, x_hat[:, :1].expand_as(x_hat), rtol=1e-9, atol=1e-9)
        x_hat, sigma = x_hat[:, :1], got.inputs.sigma.view(-1, 6)[:, 0]
        return (weights * mean).sum(1, keepdim=True) - data.predict(x_hat, sigma, {})

    assert bias("residual").abs().max() < 1e-9
    assert bias("clean").square().mean().sqrt() > 0.1


def test_the_regression_of_residual_on_rolled_states_is_the_exact_field():
    """With real samples: in 40 bins of x_hat the mean target is the exact field within its sampling error."""
    data, n, bins = Mixture(), 200_000, 40
    u = torch.full((n,), 0.4, dtype=torch.float64)
    config = RolloutConfig(max_step_offset=5, probability=1.0, sampler="euler", steps_per_trajectory=20)

    def chi_square_per_bin(target: str) -> float:
        g = seeded(4)
        plan = draw_plan(config, 0, u, g)
        inputs = teacher_forced("flow", *data.sample(n, g), u, {}, None)
        own = replace(config, target=target)
        got = asked("flow", own, data.predict, plan, inputs, FlowSchedule())
        x_hat = got.inputs.x[plan.rows]
        error = got.output[plan.rows] - data.velocity(x_hat, u[plan.rows])
        error = error[x_hat[:, 0].argsort(), 0]
        binned = error[: len(error) // bins * bins].view(bins, -1)
        return float((binned.mean(1) / (binned.std(1) / binned.shape[1] ** 0.5)).square().mean())

    assert chi_square_per_bin("residual") < 1.8  # 1 expected, standard deviation 0.22
    assert chi_square_per_bin("clean") > 50


@pytest.mark.parametrize(
    ("prediction", "s", "t"), [("flow", 0.8, 0.5), ("flow", 0.6, 0.3), ("epsilon", 2.0, 0.5)]
)
def test_paired_data_teach_too_little_variance_by_the_difference_of_mmse(prediction, s, t):
    """``Var D(x_t) - Var(taught at x_hat) = mmse(s) - mmse(t)``, mmse(q) = E Var(x0 | x_q): no learner can help it.

    `corrective` asks for x0 itself, so what it teaches at x_hat is E[x0 | x_s]. All expectations are sums over a fine
    grid of x_s; the rollout is the exact flow (100 Runge-Kutta steps), so x_hat has the density of x_t.
    """
    data, schedule, n = Mixture(prediction), schedule_of(prediction), 8001
    x_s = torch.linspace(-12, 12, n, dtype=torch.float64)[:, None]
    sigma_s, sigma_t = (torch.full((n,), sigma, dtype=torch.float64) for sigma in (s, t))

    def mean(value: Tensor, sigma: float) -> Tensor:
        return (value[:, 0] * data.density(x_s, sigma)).sum() * 24 / (n - 1)

    def variance(denoised: Tensor) -> Tensor:
        return mean(denoised**2, s) - mean(denoised, s) ** 2

    def mmse(sigma: Tensor) -> Tensor:
        weights, means, own = data.posterior(x_s, sigma)
        spread = (weights * (means - data.denoised(x_s, sigma)) ** 2).sum(1, keepdim=True)
        return mean(spread + own, float(sigma[0]))

    plan = RolloutPlan(torch.arange(n), torch.full((n,), 100), schedule.u(sigma_s), schedule.u(sigma_t))
    x0 = data.denoised(x_s, sigma_s)
    inputs = teacher_forced(prediction, x0, data.noise_of(x_s, sigma_s, x0), sigma_t, {}, None)
    config = RolloutConfig(max_step_offset=1, probability=1.0, sampler="rk4", target="corrective")
    got = asked(prediction, config, data.predict, plan, inputs, schedule)

    taught = variance(to_denoised(prediction, got.inputs.x, got.inputs.sigma, got.output))
    needed = variance(data.denoised(got.inputs.x, got.inputs.sigma))
    assert needed - taught > 0.1
    torch.testing.assert_close(needed - taught, mmse(sigma_s) - mmse(sigma_t), rtol=1e-6, atol=0)


# --- a learner that trains on its own rollouts --------------------------------------------------

STEPS = 20
"""Solver steps of a trajectory; the learner knows these noise levels alone."""
GRID = torch.arange(-4.5, 4.515, 0.03, dtype=torch.float64)


@dataclass(frozen=True)
class Table:
    """A flow model without inductive bias: a velocity for each noise level i / 20 and point of a grid."""

    values: Tensor
    """[20, len(GRID)]"""

    @classmethod
    def exact(cls) -> Table:
        levels = torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS
        x = GRID.repeat(STEPS)[:, None]
        return cls(Mixture().velocity(x, levels.repeat_interleave(len(GRID))).view(STEPS, -1))

    def place(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the grid point below, LongTensor [N], and the distance to it in units of the grid, [N]."""
        q = ((x[:, 0] - GRID[0]) / (GRID[1] - GRID[0])).clamp(0, len(GRID) - 1.001)
        low = q.long()
        return ((sigma * STEPS).round().long() - 1) * len(GRID) + low, q - low

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        i, part = self.place(x, sigma)
        values = self.values.flatten()
        return torch.lerp(values[i], values[i + 1], part)[:, None]

    def fitted(self, batch: Asked, rate: float) -> Table:
        """Move every value by `rate` of the mean error around it."""
        i, part = self.place(batch.inputs.x, batch.inputs.sigma)
        error = (batch.output - self(batch.inputs.x, batch.inputs.sigma, {}))[:, 0]

        def collect(weight: Tensor) -> Tensor:
            n = self.values.numel()
            return torch.bincount(i, (1 - part) * weight, n) + torch.bincount(i + 1, part * weight, n)

        change = collect(error * batch.weight) / collect(batch.weight).clamp(min=1e-9)
        return Table(self.values + rate * change.view_as(self.values))

    def sampled(self, noise: Tensor) -> Tensor:
        """20 Euler steps from `noise`: what inference makes of the table."""
        sigmas = torch.arange(STEPS, -1, -1, dtype=torch.float64) / STEPS
        return integrate(lambda x, s, _: x - s[:, None] * self(x, s, {}), noise, sigmas, "euler")


def learned(
    table: Table, config: RolloutConfig, updates: int, rows: int, average: bool, seed: int = 5
) -> Table:
    """Train `table` on batches of `rows` samples a noise level.

    Args:
        average: put each source's posterior means in the place of its data (`Mixture.averaged`).
    """
    g, data = seeded(seed), Mixture()
    u = (torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS).repeat(rows)
    for n in range(updates):
        x0, noise = data.sample(len(u), g)
        plan = draw_plan(config, 0, u, g)
        if average:
            source = u if plan is None else u.index_copy(0, plan.rows, plan.u_source)
            x0, noise = data.averaged(x0, noise, source)
        inputs = teacher_forced("flow", x0, noise, u, {}, None)
        batch = asked("flow", config, table, plan, inputs, FlowSchedule())
        table = table.fitted(batch, 0.7 if average else max(0.9 / (1 + 0.3 * n), 0.05))
    return table


def rolled_config(**changes: object) -> RolloutConfig:
    values = {"max_step_offset": 5, "probability": 1.0, "sampler": "euler", "steps_per_trajectory": STEPS}
    return RolloutConfig(**{**values, **changes})


def test_residual_keeps_the_variance_and_clean_loses_a_third_of_it():
    """A learner that always trains on its own states, 0..5 steps of 20, run to its own fixed point.

    That is why `clean` is not the default: x_s does not determine x0, so it teaches the mean of too many data.
    `residual` keeps the exact field, and repairs the one that `clean` leaves.
    """
    exact, noise = Table.exact(), Mixture().sample(20_000, seeded(6))[1]
    variance = exact.sampled(noise).var()
    flat = learned(exact, rolled_config(target="clean"), 30, 1000, average=True)
    assert 0.25 < 1 - flat.sampled(noise).var() / variance < 0.40
    kept = learned(exact, rolled_config(), 30, 1000, average=True)
    assert kept.sampled(noise).var() / variance == pytest.approx(1, abs=0.001)
    repaired = learned(flat, rolled_config(), 60, 1000, average=True)
    assert repaired.sampled(noise).var() / variance == pytest.approx(1, abs=0.01)


def test_short_and_rare_clean_rollouts_do_less_harm():
    """SimpleTuner's use: p = 0.25. Between the harm of p = 1 and none."""
    exact, noise = Table.exact(), Mixture().sample(20_000, seeded(6))[1]
    rare = learned(exact, rolled_config(target="clean", probability=0.25), 30, 1000, average=True)
    assert 0.03 < 1 - rare.sampled(noise).var() / exact.sampled(noise).var() < 0.15


def test_solver_error_moves_an_euler_sampler_towards_the_exact_one():
    """20 Euler steps come nearer to the exact flow of the same noise: than after plain training on the same data, and
    than with the exact field itself, whose Euler steps lose variance.
    """
    data = Mixture()
    noise = data.sample(10_000, seeded(7))[1]
    sigmas = torch.linspace(1, 0, 101, dtype=torch.float64)
    exact = integrate(lambda x, s, _: data.denoised(x, s), noise, sigmas, "rk4")

    def distances(table: Table) -> tuple[float, float]:
        x = table.sampled(noise)
        return float((x - exact).abs().mean()), float((x.var() - exact.var()).abs())

    def trained(config: RolloutConfig) -> tuple[float, float]:
        return distances(learned(Table.exact(), config, 15, 3000, average=False, seed=7))

    ours = trained(rolled_config(target="solver_error", sampler="rk4", probability=0.5))
    for flow, variance in (trained(RolloutConfig()), distances(Table.exact())):
        assert ours[0] < 0.85 * flow
        assert ours[1] < 0.75 * variance


# --- slowed interpolation (MixFlow) -------------------------------------------------------------


def mixflow(**changes: object) -> RolloutConfig:
    return RolloutConfig(**{"target": "mixflow", "probability": 1.0, **changes})


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_mixflow_trains_on_a_noisier_interpolant_than_it_is_told(prediction):
    """At ``m = u + U gamma (1 - u)``, told u, asked for the true velocity; without a rollout, so without a model."""
    g, schedule, n = seeded(8), schedule_of(prediction), 4000
    x0, noise = torch.randn(2, n, 3, generator=g, dtype=torch.float64)
    u = torch.rand(n, generator=g, dtype=torch.float64) * 0.9 + 0.05
    inputs = teacher_forced(prediction, x0, noise, schedule.sigma(u), {}, None)
    config = mixflow(probability=0.6, gamma=0.3)
    plan = draw_plan(config, 0, u, g)
    calls = []

    def predict(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        calls.append(len(x))
        return torch.zeros_like(x)

    got = asked(prediction, config, predict, plan, inputs, schedule)
    assert calls == [n]  # the training forward alone
    rows, m, t = plan.rows, plan.u_source, schedule.sigma(plan.u_target)
    part = (m - u[rows]) / (1 - u[rows]) / 0.3
    assert 0 < part.min() < 0.01 < 0.99 < part.max() < 1
    assert part.mean() == pytest.approx(0.5, abs=0.02)
    assert len(rows) / n == pytest.approx(0.6, abs=0.03)
    assert torch.equal(got.inputs.sigma, inputs.sigma)
    x = add_noise(prediction, x0[rows], noise[rows], schedule.sigma(m))
    torch.testing.assert_close(got.inputs.x[rows], x)
    velocity = noise[rows] - x0[rows] if prediction == "flow" else noise[rows]
    expected = output_for(prediction, x, t, x - expand(t, x) * velocity)
    torch.testing.assert_close(got.output[rows], expected, rtol=1e-9, atol=1e-9)
    rest = torch.ones(n, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(got.inputs.x[rest], inputs.x[rest])


def taught_by_mixflow(t: float, more: int, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """States x [200, 1] of the mixture at `t`, the exact velocity there, and the one that mixflow (0.2) teaches.

    All (m, x0) that could have made x are put in its place, weighed by their posterior: it is a mean of exact fields at
    noisier levels, ``sum_m p(m | x) v*(x, m)``. With x the model sees `more` coordinates that are 0 in all data, as
    flat areas of a picture are: their size there, t, says how noisy x is.
    """
    data, schedule, n = Mixture(), FlowSchedule(), 200
    told = torch.full((n,), t, dtype=torch.float64)
    x = add_noise("flow", *data.sample(n, seeded(8)), told)
    m = t + 0.2 * (1 - t) * (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
    levels, states = m.repeat(n), x.repeat_interleave(nodes, 0)
    ones = torch.ones(len(states), dtype=torch.long)
    plan = RolloutPlan(torch.arange(len(states)), ones, levels, told.repeat_interleave(nodes))
    inputs = teacher_forced(
        "flow", torch.zeros_like(states), states / levels[:, None], plan.u_target, {}, None
    )
    plan, batch, weights = with_its_posterior(data, plan, schedule, inputs)
    got = asked("flow", mixflow(), data.predict, plan, batch, schedule)
    fields = (weights * got.output.view(-1, 6)).sum(1, keepdim=True)
    torch.testing.assert_close(fields, data.velocity(states, levels), rtol=1e-9, atol=1e-9)
    seen = torch.stack([data.density(x, float(level)) for level in m], 1).log()
    seen = seen - more * (
        m.log() + t**2 / (2 * m**2)
    )  # of `more` normals of variance m^2 with mean square t^2
    taught = (seen.softmax(1) * fields.view(n, nodes)).sum(1, keepdim=True)
    return x, data.velocity(x, told), taught


def test_mixflow_is_right_where_a_state_shows_how_noisy_it_is():
    """Its error falls as the level becomes visible, by half for four times the evidence: to nothing."""

    def error(more: int) -> float:
        _, exact, taught = taught_by_mixflow(0.5, more, 300)
        return float((taught - exact).square().mean().sqrt())

    blind, some, clear = (error(more) for more in (0, 2000, 8000))
    assert blind > 0.15
    assert clear == pytest.approx(some / 2, rel=0.03)
    assert clear < 0.1 * blind


def test_mixflow_flattens_where_a_state_does_not_show_it():
    """One number does not show its noise: the estimates of x0 lose a fifth of their variance, and so do samples."""

    def kept(more: int) -> float:
        x, exact, taught = taught_by_mixflow(0.5, more, 300)
        return float((x - 0.5 * taught).var() / (x - 0.5 * exact).var())

    assert 0.75 < kept(0) < 0.85
    assert kept(8000) > 0.98
    table, noise = Table.exact(), Mixture().sample(20_000, seeded(6))[1]
    variance = table.sampled(noise).var()
    lost = {
        gamma: 1
        - float(learned(table, mixflow(gamma=gamma), 20, 1000, average=True).sampled(noise).var() / variance)
        for gamma in (0.1, 0.2)
    }
    assert 0.05 < lost[0.1] < 0.14 < lost[0.2] < 0.25


def test_mixflow_minds_states_that_are_noisier_than_told_less():
    """Noise that is added between the steps throws an exact field off; this one hardly moves, and ends nearer."""
    real, noise = Mixture().sample(4000, seeded(11))
    slowed = learned(Table.exact(), mixflow(gamma=0.1), 20, 1000, average=True)

    def distance(table: Table, added: float) -> float:
        x, g = noise, seeded(9)
        for i in range(STEPS, 0, -1):
            x = x - table(x, torch.full((len(x),), i / STEPS, dtype=torch.float64), {}) / STEPS
            if i > 1:
                x = x + added / STEPS * torch.randn(x.shape, generator=g, dtype=torch.float64)
        return float(energy_distance(x, real))

    clean, noisy = ([distance(table, added) for table in (Table.exact(), slowed)] for added in (0.0, 3.0))
    assert clean[0] < clean[1]
    assert noisy[1] < 0.9 * noisy[0]
    assert noisy[1] - clean[1] < 0.7 * (noisy[0] - clean[0])


# --- guided rollouts ----------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_residual_is_right_at_guided_states_too(sampler):
    """A guided state is a function of its source as well, and the error asked for is that of the captions' field.

    Without captions the model knows another field; both halves of a step lie in one call.
    """
    g, data, schedule, n = seeded(3), Mixture(), FlowSchedule(), 100
    u = torch.rand(n, generator=g, dtype=torch.float64) * 0.8 + 0.02
    config = RolloutConfig(
        max_step_offset=5, probability=1.0, sampler=sampler, steps_per_trajectory=20, guidance=3.0
    )
    plan = draw_plan(config, 0, u, g)
    inputs = teacher_forced("flow", *data.sample(n, g), schedule.sigma(u), {}, None)
    plan, batch, weights = with_its_posterior(data, plan, schedule, inputs)
    batch = replace(batch, cond={"context": torch.ones(len(batch.sigma), 1, dtype=torch.float64)})

    def predict(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return data.velocity(x, sigma) * (0.5 + 0.5 * cond["context"])

    model, counted = Given(predict, "flow", schedule), []

    def rolled(guidance: float) -> RolledRows:
        own = replace(config, guidance=guidance)
        empty = {"context": torch.zeros(1, 1)}
        states, _ = roll_out(plan, own, TARGETS["residual"], model, batch, counted.append, empty)
        return RolledRows(plan.rows, states, None)

    guided = rolled(3.0)
    assert sum(counted) == row_evaluations(config, plan.steps, False)
    counted.clear()
    plain = rolled(1.0)
    assert 2 * sum(counted) == row_evaluations(config, plan.steps, False)
    assert (guided.states.x_hat - plain.states.x_hat).abs().max() > 0.01
    put_in = put(batch, guided)
    output = predict(put_in.x, put_in.sigma, put_in.cond)
    goal = training_goal("flow", put_in, TARGETS["residual"], guided, output)
    mean = (weights * goal.output.view(-1, 6)).sum(1)
    torch.testing.assert_close(mean, output.view(-1, 6)[:, 0], rtol=1e-9, atol=1e-9)


def test_guided_euler_steps_by_hand():
    """One step of h from s: ``x - h (v_free + 3 (v - v_free))``."""
    x0, noise = torch.randn(2, 4, 2, generator=seeded(1), dtype=torch.float64)
    schedule = FlowSchedule()
    u = torch.full((4,), 0.5, dtype=torch.float64)
    plan = RolloutPlan(torch.arange(4), torch.ones(4, dtype=torch.long), u + 0.1, u)
    cond = {"context": torch.tensor([[1.0], [2.0], [3.0], [0.0]], dtype=torch.float64)}
    inputs = teacher_forced("flow", x0, noise, u, cond, None)
    model = Given(lambda x, sigma, cond: x * cond["context"], "flow", schedule)
    config = RolloutConfig(
        max_step_offset=1, probability=1.0, sampler="euler", steps_per_trajectory=10, guidance=3.0
    )
    states, _ = roll_out(
        plan,
        config,
        TARGETS["residual"],
        model,
        inputs,
        lambda rows: None,
        {"context": torch.full((1, 1), 0.5)},
    )
    x = torch.lerp(x0, noise, 0.6)
    scale = 0.5 + 3 * (cond["context"] - 0.5)
    torch.testing.assert_close(states.x_hat, x - 0.1 * scale * x)
    torch.testing.assert_close(states.velocity_source, x * cond["context"])
