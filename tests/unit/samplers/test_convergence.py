"""Order of convergence on the exact Gaussian flow, and the way from noise to data."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from rollout_trainer.samplers import FlowSchedule, SolverState, integrate, prepare, step

Sigmas = Callable[[Tensor], Tensor]
"""Noise level at fractions in [0, 1] of the interior range; other fractions lie beyond its ends."""

GRIDS: dict[str, dict[str, Sigmas]] = {
    "flow": {
        "uniform": lambda f: FlowSchedule(1.0).sigma(0.25 + 0.5 * f),
        "shift 3": lambda f: FlowSchedule(3.0).sigma(0.1 + 0.6 * f),
    },
    "ve": {
        "geometric": lambda f: 0.2 * 20.0**f,
        "rho 7": lambda f: (0.2 ** (1 / 7) + (4.0 ** (1 / 7) - 0.2 ** (1 / 7)) * f) ** 7,
    },
}


def seeded_error(problem: Any, grid: Sigmas, sampler: str, order: int, steps: int) -> float:
    """Error after `steps` steps whose history was exact: a multistep start-up would cap the order."""
    before = order  # steps that are taken as done
    f = torch.arange(steps + before, -1, -1, dtype=torch.float64) / steps
    sigmas = grid(f)
    past = [problem.denoise(problem.exact(s), s) for s in sigmas[:before].flip(0)]
    state = SolverState(problem.exact(sigmas[before]), before, tuple(past), problem.exact(sigmas[before - 1]))
    plan = prepare(state.x, sigmas, sampler, order, problem.process)
    while state.step < len(plan.steps):
        state = step(problem.denoise, state, plan)
    return float((state.x - problem.exact(sigmas[-1])).square().mean().sqrt())


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in pairwise(errors)]


@pytest.mark.parametrize("grid", ["first", "second"])
@pytest.mark.parametrize(
    ("sampler", "order", "least"),
    [
        ("euler", 1, 0.9),
        ("dpm", 1, 0.9),
        ("dpm", 2, 1.8),
        ("dpm", 3, 2.5),
        ("unipc", 1, 1.75),
        ("unipc", 2, 2.5),
        ("unipc", 3, 3.5),
        ("rk4", 4, 3.75),
    ],
)
def test_order_of_convergence(gaussian, process, grid, sampler, order, least):
    sigmas = list(GRIDS[process].values())[grid == "second"]
    last = slopes([seeded_error(gaussian, sigmas, sampler, order, n) for n in (64, 128, 256)])
    assert min(last) > least
    if sampler == "rk4":
        assert max(last) < 4.25


@pytest.mark.parametrize("grid", ["first", "second"])
@pytest.mark.parametrize(
    ("sampler", "order"), [("euler", 1), ("dpm", 2), ("dpm", 3), ("unipc", 2), ("unipc", 3), ("rk4", 4)]
)
def test_the_whole_way_from_noise_to_data(gaussian, process, grid, sampler, order):
    # For flow the first and the last step are infinitely long in lambda; their order 1 bounds the rate.
    for n in (40, 80, 160, 320):
        u = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        if process == "flow":
            sigmas = FlowSchedule(1.0 if grid == "first" else 3.0).sigma(u)
        else:
            sigmas = 80 * u ** (4 if grid == "first" else 7)
        x = integrate(gaussian.denoise, gaussian.exact(sigmas[0]), sigmas, sampler, order, process)
        error = float((x - gaussian.exact(sigmas[-1])).abs().max())
        assert error < 20 / n ** (1 if sampler == "euler" else 1.5)


def test_the_classic_tableau_as_a_textbook_writes_it(gaussian, process):
    sigmas = torch.tensor([0.9, 0.7, 0.4, 0.1], dtype=torch.float64)

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - gaussian.denoise(x, sigma)) / sigma

    x = start = gaussian.exact(sigmas[0])
    for t, t_next in pairwise(sigmas):
        h = t_next - t
        k1 = slope(x, t)
        k2 = slope(x + h / 2 * k1, t + h / 2)
        k3 = slope(x + h / 2 * k2, t + h / 2)
        k4 = slope(x + h * k3, t_next)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    ours = integrate(gaussian.denoise, start, sigmas, "rk4", process=process)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-14)
