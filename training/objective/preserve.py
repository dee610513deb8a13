"""Prior preservation on the model's own states: what the LoRA must leave as it is.

Rows roll out from pure noise on captions without the trigger, under the model as trained so far. At the state that they
reach, the model is asked for what the base says there, without the adapter. No picture is needed: the states are those
that the user's prompts will lead to. Where others do this at noised training pictures (DOP in ai-toolkit), captions and
pictures do not belong together.

An adapter without effect is a fixed point, whatever the states are: both answers are one and the loss is 0. So is an
adapter that has no effect on these captions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers import SAMPLERS, sent, trajectory
from ..conditioning import Cond
from ..forms import add_noise
from .config import RolloutConfig
from .targets import Field, Model, Route, Solver, own_trajectory


@dataclass(frozen=True)
class PreservePlan:
    """R rows: their captions, and how far they roll out. On the CPU."""

    rows: Tensor
    """LongTensor [R] indices into the captions."""
    steps: Tensor
    """LongTensor [R] solver steps from pure noise, at least 1."""
    u: Tensor
    """[R] float64, where they are trained."""


def draw_preserved(config: RolloutConfig, captions: int, generator: torch.Generator) -> PreservePlan:
    """Draw captions and places uniformly; a place u takes ``ceil((1 - u) preserve_steps)`` steps to reach.

    Args:
        captions: how many there are.
        generator: the stream of preservation, on the CPU.
    """
    rows = torch.randint(captions, (config.preserve_rows,), generator=generator)
    u = torch.rand(config.preserve_rows, generator=generator, dtype=torch.float64)
    steps = ((1 - u) * config.preserve_steps).ceil().long().clamp(min=1)
    return PreservePlan(rows, steps, u)


def own_states(
    plan: PreservePlan,
    config: RolloutConfig,
    model: Model,
    noise: Tensor,
    cond: Cond,
    count: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """The states that the plan's rows reach from pure noise by the model's own steps.

    Args:
        model: with the adapter on, without gradient.
        noise: [R, ...] standard normal.
        cond: named tensors [R, ...].
        count: told the rows of every model call.

    Returns:
        The states [R, ...], and their noise levels [R].

    Raises:
        FloatingPointError: a state is not finite.
    """
    schedule = model.schedule
    sigmas = trajectory(schedule, torch.ones_like(plan.u), plan.u, plan.steps)  # [R, T + 1]
    first = sent(sigmas[:, 0], noise.device, noise.dtype)
    start = add_noise(model.prediction, torch.zeros_like(noise), noise, first)
    solver = Solver(config.sampler, config.order, schedule.process)
    x, _ = own_trajectory(Field(model, cond, count), Route(start, start, sigmas), solver)
    return x, sent(schedule.sigma(plan.u), noise.device, noise.dtype)


def row_evaluations(config: RolloutConfig, steps: Tensor) -> int:
    """No-grad model evaluations of rows over `steps: LongTensor [R]`: their own steps, and the base's answer."""
    return int(steps.sum()) * SAMPLERS[config.sampler].calls_per_step + len(steps)


def expected_evaluations(config: RolloutConfig, trained: float) -> float:
    """Expected model evaluations of preservation for each batch.

    Args:
        trained: what a training row costs: 2, or 3 with gradient checkpointing.
    """
    if not config.preserves:
        return 0.0
    steps = (config.preserve_steps + 1) / 2
    return config.preserve_rows * (steps * SAMPLERS[config.sampler].calls_per_step + 1 + trained)
