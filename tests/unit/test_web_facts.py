"""`web/facts.js` says what the Python side says, and a new solver needs its entry in `SAMPLERS` alone."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import make_web_facts
import pytest
import torch
from make_en import english

from rollout_trainer import nodes
from rollout_trainer.samplers import SAMPLERS, FlowSchedule, integrate
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.objective.rollout import expected_extra_forwards
from rollout_trainer.training.objective.targets import Field, Route, Solver, solver_difference
from rollout_trainer.training.runs.live import DRAWN

WEB = Path(__file__).resolve().parents[2] / "web"
NODE = shutil.which("node")
ASK = """
import { readFileSync } from "node:fs";
import { SOLVERS, LOSSES } from "./facts.js";
import { expectedExtraForwards, waysToSave, withoutEffect } from "./rules.js";
const rows = JSON.parse(readFileSync(0, "utf8")).map((v) => [
  expectedExtraForwards(v, false), "order" in withoutEffect("RolloutSampler", v), waysToSave(v).includes("saveSolver"),
]);
process.stdout.write(JSON.stringify({ rows, solvers: Object.keys(SOLVERS), losses: LOSSES }));
"""


def test_the_file_is_what_the_tool_writes():
    assert (WEB / "facts.js").read_text(encoding="utf-8") == make_web_facts.facts(), (
        "run: python tools/make_web_facts.py"
    )


@pytest.fixture(params=[(2, False), (3, True)], ids=["two calls", "three calls and orders"])
def solver(request, monkeypatch):
    """A solver that is registered for the time of a test, and nowhere else."""
    calls, multistep = request.param
    new = replace(SAMPLERS["rk4"], name="new", calls_per_step=calls, multistep=multistep)
    monkeypatch.setitem(SAMPLERS, "new", new)
    return new


def test_every_node_with_solvers_offers_a_new_one_and_its_words_ask_for_a_text(solver):
    lists = {
        (schema.node_id, i.id): i.options
        for schema in (node.define_schema() for node in nodes.NODES)
        for i in schema.inputs
        if "unipc" in (getattr(i, "options", None) or ())
    }
    assert len(lists) >= 4
    assert all(options == list(SAMPLERS) for options in lists.values())
    assert all(english()[node]["inputs"][name]["options"]["new"] == "new" for node, name in lists)


def test_settings_take_a_new_solver_and_name_it_in_their_error(solver):
    settings = RolloutConfig(max_step_offset=4, probability=0.5, sampler="new")
    assert RolloutConfig.from_config_json(settings.to_config_json()) == settings
    with pytest.raises(ValueError, match=r"sampler must be one of .*new.*, got 'other'"):
        RolloutConfig(sampler="other")


class Halving:
    """A model that finds x0 to be half of x."""

    prediction = "flow"
    schedule = FlowSchedule(1.0)

    def denoised(self, x, sigma, cond):
        return 0.5 * x

    def velocity(self, x, sigma, cond):
        return 0.5 * x / sigma[:, None]


def test_a_new_solver_integrates_and_gives_the_solver_error(solver):
    sigmas = FlowSchedule(1.0).sigma(torch.linspace(0.8, 0.2, 4).double())
    x = torch.ones(2, 3, dtype=torch.float64)
    assert integrate(lambda x, sigma, rows: 0.5 * x, x, sigmas, "new", order=1).isfinite().all()
    calls = []
    route = Route(x, 0.9 * x, torch.tensor([[0.8, 0.4], [0.6, 0.2]], dtype=torch.float64))
    solver_difference(Field(Halving(), {}, calls.append), route, Solver("new", 1, "flow"))
    assert len(calls) == 4  # rk4's own step, not Heun's two calls


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_front_end_reckons_with_a_new_solver_as_python_does(solver, tmp_path):
    for name in ("rules.js", "graph.js"):
        shutil.copy(WEB / name, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "facts.js").write_text(make_web_facts.facts())
    (tmp_path / "ask.js").write_text(ASK)
    grid = [
        RolloutConfig(max_step_offset=5, probability=0.5, sampler=sampler, target=target)
        for sampler in SAMPLERS
        for target in ("residual", "solver_error")
    ]
    names = (
        "max_step_offset",
        "probability",
        "ramp_steps",
        "prob_start",
        "prob_end",
        "sampler",
        "strategy",
        "target",
        "reuse",
    )
    shown = json.dumps([{name: getattr(c, name) for name in names} for c in grid])
    done = subprocess.run(
        [NODE, "ask.js"], cwd=tmp_path, input=shown, capture_output=True, text=True, timeout=60, check=True
    )
    told = json.loads(done.stdout)
    assert told["solvers"] == list(SAMPLERS)
    assert told["losses"] == list(DRAWN)
    for config, (extra, greyed, dear) in zip(grid, told["rows"], strict=True):
        known = SAMPLERS[config.sampler]
        assert extra == pytest.approx(expected_extra_forwards(config, False), rel=1e-12)
        assert greyed is not known.multistep
        assert dear is (known.calls_per_step > 1)
