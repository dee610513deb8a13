"""Scheduled sampling: who is rolled out and how far, and the rollout itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers import sent, trajectory
from ..conditioning import Cond, select
from ..forms import add_noise
from .config import RolloutConfig
from .states import Inputs, RolledStates, Trail, without_captions
from .targets import TARGETS, Field, Model, Route, Solver, Target


@dataclass(frozen=True)
class RolloutPlan:
    """The rows of a batch that will be rolled out, R of them, each for at least one step, or slowed. On the CPU."""

    rows: Tensor
    """LongTensor [R] indices into the batch."""
    steps: Tensor
    """LongTensor [R] solver steps from source to target."""
    u_source: Tensor
    """[R] float64, where each row starts."""
    u_target: Tensor
    """[R] float64, where it is trained: the timestep sampler's draw, kept as it is."""


def draw_plan(
    config: RolloutConfig, step: int, u: Tensor, generator: torch.Generator, highest: float = 1.0
) -> RolloutPlan | None:
    """Decide who rolls out, and for how many steps; None (and no random number drawn) when nobody can.

    Args:
        step: optimiser step, from 0; places the ramp.
        u: [B] float64 on the CPU, each sample's own target.
        generator: the stream of the rollout, on the CPU.
        highest: u above which no row may start.
    """
    probability = config.probability_at(step)
    if probability == 0:
        return None
    chosen = torch.rand(len(u), generator=generator, dtype=torch.float64) < probability
    if config.slowed:
        return slowed_plan(chosen, u, config.gamma, generator)
    weights = torch.tensor(config.length_weights(), dtype=torch.float64)
    steps = torch.multinomial(weights, len(u), replacement=True, generator=generator)
    n = config.steps_per_trajectory
    room = ((highest - u) * n + 1e-9).floor().long()  # steps above the target; 1e-9 forgives rounding
    steps = torch.where(chosen, steps.minimum(room), 0)
    rows = steps.nonzero().squeeze(1)
    if len(rows) == 0:
        return None
    steps, u_target = steps[rows], u[rows]
    return RolloutPlan(rows, steps, (u_target + steps / n).clamp(max=highest), u_target)


def slowed_plan(chosen: Tensor, u: Tensor, gamma: float, generator: torch.Generator) -> RolloutPlan | None:
    """Place the chosen rows at ``m = u + U gamma (1 - u)``, noisier than they are told; U uniform in [0, 1).

    Slowed interpolation mixture, 2512.19311.

    Args:
        chosen: [B] who.
        u: [B] float64, what each row is told.
    """
    away = torch.rand(len(u), generator=generator, dtype=torch.float64) * gamma * (1 - u)
    rows = (chosen & (away > 0)).nonzero().squeeze(1)
    if len(rows) == 0:
        return None
    u_target = u[rows]
    return RolloutPlan(rows, torch.ones_like(rows), (u_target + away[rows]).clamp(max=1), u_target)


def roll_out(
    plan: RolloutPlan,
    config: RolloutConfig,
    target: Target,
    model: Model,
    inputs: Inputs,
    count: Callable[[int], None],
    empty: Cond | None = None,
) -> tuple[RolledStates, Trail]:
    """The planned rows, brought from their source to their target by the model's own steps.

    Args:
        target: how the training inputs are made, `TARGETS` has it.
        model: without gradient.
        inputs: the whole batch, teacher-forced, at the plan's targets.
        count: told the rows of every model call.
        empty: named tensors [1, ...], the empty caption's; needed where `config.guidance` is above 1.

    Returns:
        The rows at their targets, in the plan's order; and all states worth training on: those or, where
        `config.reuse` > 1, those and the ones that the rows passed on their way.
    """
    rows, schedule = sent(plan.rows, inputs.x.device), model.schedule
    x0, noise, cond = inputs.x0[rows], inputs.noise[rows], select(inputs.cond, plan.rows)
    mask = None if inputs.mask is None else inputs.mask[rows]
    sigmas = trajectory(schedule, plan.u_source, plan.u_target, plan.steps)  # [R, T+1] float64, on the CPU
    source = add_noise(model.prediction, x0, noise, sent(sigmas[:, 0], x0.device, x0.dtype))
    route = Route(source, inputs.x[rows], sigmas)
    solver = Solver(config.sampler, config.order, schedule.process)
    path: list[Tensor] | None = [] if config.reuse > 1 else None
    free = None if config.guidance == 1 else without_captions(cond, empty or {})
    field = Field(model, cond, count, config.guidance, free)
    x_hat, v_source = target.construct(field, route, solver, path)
    states = RolledStates(x_hat, inputs.sigma[rows], v_source, x0, noise, cond, mask)
    return states, along(states, sigmas, plan.steps, path)


def along(ends: RolledStates, sigmas: Tensor, steps: Tensor, path: list[Tensor] | None) -> Trail:
    """The states of every row after each of its steps: row r has ``steps[r]`` of them, the last at its target.

    Args:
        ends: the rows at their targets.
        sigmas: [R, T+1] the rows' noise levels.
        path: T tensors [R, ...], every row's state after each step of the batch; None keeps the ends alone.
    """
    if path is None:
        return Trail(ends, ends.x_hat, ends.sigma, torch.arange(len(ends)))
    step, row = (steps >= torch.arange(1, len(path) + 1)[:, None]).nonzero(
        as_tuple=True
    )  # [T, R] -> [S], [S]
    moved = sent(row, ends.x_hat.device).split(step.bincount(minlength=len(path)).tolist())
    x_hat = torch.cat([x.index_select(0, rows) for x, rows in zip(path, moved, strict=True)])
    return Trail(ends, x_hat, sent(sigmas[row, step + 1], ends.sigma.device, ends.sigma.dtype), row)


def row_evaluations(config: RolloutConfig, steps: Tensor, reflexflow: bool) -> int:
    """No-grad model evaluations that rows rolled over `steps: LongTensor [R]` cost."""
    target = TARGETS[config.target]
    own = sum(int(target.row_evaluations(config.sampler, k)) for k in steps.tolist())
    halves = 1 if config.guidance == 1 else 2
    return halves * own + (len(steps) if reflexflow else 0)


def expected_extra_forwards(
    config: RolloutConfig, reflexflow: bool, probability: float | None = None
) -> float:
    """Expected no-grad model evaluations per sample and step, beside its one training forward.

    Lengths that are cut at pure noise make the true cost a little smaller.

    Args:
        probability: chance of a rollout; None takes the highest of the run.
    """
    if config.slowed:
        return 0.0
    p = config.peak_probability if probability is None else probability
    weights = config.length_weights()
    rolled = 1 - weights[0] / sum(weights)  # a drawn length of 0 costs nothing
    per_rolled = TARGETS[config.target].row_evaluations(
        config.sampler, config.mean_length / rolled if rolled else 0
    )
    halves = 1 if config.guidance == 1 else 2
    return p * rolled * (halves * per_rolled + (1 if reflexflow else 0)) / config.reuse


def step_time_factor(extra: float, checkpointing: bool) -> float:
    """About how many times as long a step takes with `extra` no-grad model evaluations per sample.

    The base is frozen, so a backward pass makes gradients of activations alone and costs about one forward, and one
    more where it computes the activations again. On the demo model with 2.4 and 5.2 extra forwards the estimate is
    2.2 and 3.6, measured 2.3 and 3.6; with checkpointing 1.8 and 2.7, measured 1.8 and 2.7.
    """
    return 1 + extra / (3 if checkpointing else 2)
