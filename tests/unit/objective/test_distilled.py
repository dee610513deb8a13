"""What training asks of a model distilled to few steps, on mixtures of two Gaussians whose fields are known exactly.

The student says the mean velocity of a whole step of 4. It was made from the flow of one mixture, `BEFORE`, and is to
learn another, `TAUGHT`. docs/theory.md, "Few steps", has what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from everything import Given, rolled_out
from torch import Tensor

from rollout_trainer.samplers import FlowSchedule, integrate
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.objective.rollout import RolloutPlan
from rollout_trainer.training.objective.states import RolledRows, put, teacher_forced, training_goal
from rollout_trainer.training.objective.targets import TARGETS
from rollout_trainer.training.pictures.exposure import energy_distance

STEPS, VARIANCE = 4, 0.2**2
Velocity = Callable[[Tensor, Tensor], Tensor]
"""``velocity(x [N, 1], sigma [N])``"""


@dataclass(frozen=True)
class Mixture:
    """Two modes of standard deviation 0.2."""

    means: tuple[float, float]
    share: float
    """Of the first mode."""

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x], [N, 1]."""
        s, means = sigma[:, None], torch.tensor(self.means, dtype=x.dtype)
        total = (1 - s) ** 2 * VARIANCE + s**2
        away = x - (1 - s) * means  # [N, 1] -> [N, 2]
        weights = (torch.tensor([self.share, 1 - self.share]).log() - away**2 / (2 * total)).softmax(1)
        return (weights * (means + (1 - s) * VARIANCE / total * away)).sum(1, keepdim=True)

    def point(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact velocity at a point, which plain training asks for on average."""
        return (x - self.denoised(x, sigma)) / sigma[:, None]

    def whole(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The mean velocity of a step of 4, which a student of this mixture's flow says."""
        sigmas = torch.lerp(
            sigma[:, None], sigma[:, None] - 1 / STEPS, torch.linspace(0, 1, 51, dtype=x.dtype)
        )
        end = integrate(lambda at, s, _: self.denoised(at, s), x, sigmas.clamp(min=0), "unipc", 2)
        return (x - end) * STEPS

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, 1]."""
        first = torch.rand(n, 1, generator=generator, dtype=torch.float64) < self.share
        own = torch.randn(n, 1, generator=generator, dtype=torch.float64)
        return torch.where(first, *self.means) + VARIANCE**0.5 * own


BEFORE, TAUGHT = Mixture((-1.0, 1.0), 0.7), Mixture((-0.2, 1.8), 0.7)


def added(x: Tensor, sigma: Tensor) -> Tensor:
    """The student with what a LoRA learnt on the model before distillation, if the two changes just add up."""
    return BEFORE.whole(x, sigma) + TAUGHT.point(x, sigma) - BEFORE.point(x, sigma)


def drawn(velocity: Velocity, noise: Tensor) -> Tensor:
    """4 Euler steps."""
    x = noise
    for step in range(STEPS):
        x = x - velocity(x, torch.full((len(x),), 1 - step / STEPS, dtype=x.dtype)) / STEPS
    return x


@pytest.fixture(scope="module")
def pictures() -> dict[str, Tensor]:
    """2,000 samples of each way, from the same noise, and of the taught mixture itself."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    ways = {
        "before": BEFORE.whole, "plain": TAUGHT.point, "undistilled": added, "redistilled": TAUGHT.whole
    }  # fmt: skip
    return {name: drawn(way, noise) for name, way in ways.items()} | {"real": TAUGHT.sample(2000, generator)}


def test_the_students_four_steps_are_the_whole_flow(pictures):
    assert energy_distance(pictures["redistilled"], pictures["real"]) == pytest.approx(0, abs=0.003)
    assert pictures["redistilled"].std() == pytest.approx(float(pictures["real"].std()), rel=0.05)


def test_what_plain_training_ends_at_is_flat_in_four_steps(pictures):
    """A third of the variance; in distance a thirtieth of the way from before to taught."""
    whole = pictures["redistilled"].var()
    assert 0.25 < 1 - pictures["plain"].var() / whole < 0.35
    assert abs(1 - pictures["undistilled"].var() / whole) < 0.1

    def kept(way: str) -> float:
        before, own, best = (
            energy_distance(pictures[name], pictures["real"]) for name in ("before", way, "redistilled")
        )
        return float((before - own) / (before - best))

    assert 0.95 < kept("plain") < 0.99
    assert 0.9 < kept("undistilled") < 0.99


@pytest.mark.parametrize("velocity", [TAUGHT.whole, TAUGHT.point])
def test_residual_takes_a_students_distillation_for_an_error(velocity):
    """Of a right student it asks for `v* - w` more; of the field at a point, which is right to it, for nothing more."""
    n = 64
    x_s = torch.randn(n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    s, t = (torch.full((n,), level, dtype=torch.float64) for level in (0.75, 0.5))
    x0 = TAUGHT.denoised(x_s, s)  # the mean of the data, which changes no regression
    noise = (x_s - (1 - s[:, None]) * x0) / s[:, None]
    inputs = teacher_forced("flow", x0, noise, t, {}, None)
    plan = RolloutPlan(torch.arange(n), torch.ones(n, dtype=torch.long), s, t)
    config = RolloutConfig(
        max_step_offset=1, probability=1.0, sampler="euler", steps_per_trajectory=STEPS, target="residual"
    )
    predict = partial(_ignoring_captions, velocity)
    states, _ = rolled_out(plan, config, Given(predict, "flow", FlowSchedule()), inputs)
    rolled = RolledRows(plan.rows, states, None)
    inputs = put(inputs, rolled)
    output = predict(inputs.x, inputs.sigma, {})
    goal = training_goal("flow", inputs, TARGETS["residual"], rolled, output)
    torch.testing.assert_close(goal.output - output, TAUGHT.point(x_s, s) - velocity(x_s, s))
    assert (goal.output - output).abs().max() > 0.05 or velocity == TAUGHT.point


def _ignoring_captions(velocity: Velocity, x: Tensor, sigma: Tensor, cond: object) -> Tensor:
    return velocity(x, sigma)
