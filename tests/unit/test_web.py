"""The front end's own arithmetic: node's test runner, and JavaScript against Python."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from rollout_trainer.samplers import SAMPLERS
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.objective.rollout import expected_extra_forwards, step_time_factor

ROOT = Path(__file__).resolve().parents[2]
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")

CHOICES = {
    "max_step_offset": (0, 1, 10),
    "probability": (0.0, 0.5),
    "ramp_steps": (0, 100),
    "prob_end": (0.25, 1.0),
    "sampler": tuple(SAMPLERS),
    "strategy": ("uniform", "biased_early", "biased_late"),
    "target": ("residual", "solver_error", "clean", "corrective"),
    "reuse": (1, 3),
}
SCRIPT = """
import { readFileSync } from "node:fs";
import { expectedExtraForwards, stepTimeFactor } from %s;
const grid = JSON.parse(readFileSync(0, "utf8"));
const cost = (v, on) => [expectedExtraForwards(v, on), stepTimeFactor(expectedExtraForwards(v, on), on)];
process.stdout.write(JSON.stringify(grid.map((v) => [false, true].flatMap((on) => cost(v, on)))));
"""


def node(*arguments: str, **options):
    return subprocess.run(
        [NODE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **options
    )


def test_what_has_no_host_in_it():
    done = node("--test", *map(str, sorted((ROOT / "tests" / "web").glob("*.test.mjs"))))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_cost_line_says_what_python_says():
    grid = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
    grid = [s for s in grid if not (s["reuse"] > 1 and s["target"] == "solver_error")]  # refused
    configs = [RolloutConfig(**s) for s in grid]
    extra = [[expected_extra_forwards(c, on) for on in (False, True)] for c in configs]
    expected = [[off, step_time_factor(off, False), on, step_time_factor(on, True)] for off, on in extra]
    shown = [{name: getattr(c, name) for name in CHOICES} | {"prob_start": c.prob_start} for c in configs]
    url = json.dumps((ROOT / "web" / "rules.js").as_uri())
    done = node("--input-type=module", "-e", SCRIPT % url, input=json.dumps(shown))
    assert done.returncode == 0, done.stderr
    for got, want, settings in zip(json.loads(done.stdout), expected, grid, strict=True):
        assert got == pytest.approx(want, rel=1e-12, abs=1e-12), settings


def test_scripts_say_nothing_and_build_no_html():
    for path in (ROOT / "web").glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("// @ts-check\n"), path.name
        for word in ("console.", "innerHTML", "insertAdjacentHTML", "eval(", "http://", "https://"):
            assert word not in text.replace("http://www.w3.org/2000/svg", ""), (path.name, word)
