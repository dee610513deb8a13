"""The benchmark's figures are what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "samplers.py"
    spec = importlib.util.spec_from_file_location("samplers_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("sampler", "order", "scheduler"),
    [
        ("euler", 1, "FlowMatchEulerDiscreteScheduler"),
        ("dpm", 2, "DPMSolverMultistepScheduler"),
        ("unipc", 2, "UniPCMultistepScheduler"),
        ("unipc", 3, "UniPCMultistepScheduler"),
    ],
)
def test_errors_beside_diffusers_are_of_the_same_run(benchmark, sampler, order, scheduler):
    pytest.importorskip("diffusers")
    ours = benchmark.our_error(sampler, order, 12, (0.85, 0.05))
    assert ours == pytest.approx(benchmark.their_error(scheduler, order, 12, (0.85, 0.05)), rel=1e-4)


def test_a_budget_of_calls_is_kept(benchmark):
    assert benchmark.our_error("rk4", 4, 8, (0.85, 0.05)) == benchmark.our_error("rk4", 4, 11, (0.85, 0.05))
    assert benchmark.our_error("rk4", 4, 9, (1.0, 0.0)) < benchmark.our_error("rk4", 4, 8, (1.0, 0.0))


def test_the_model_of_part_b_has_a_million_parameters(benchmark):
    model = benchmark.DiT()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1e6, rel=0.1)
    assert model(torch.zeros(2, 16, 16, 16), torch.ones(2)).shape == (2, 16, 16, 16)
