"""The benchmarks, told to compute on the card, each in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_check import Check

ROOT = Path(__file__).resolve().parents[2]


def loop(check: Check, _option: str) -> None:
    """What the loop, rollouts and their reuse cost on the demo's model."""
    parts, rounds = ("ac", "1") if check.toy else ("abc", "10")
    told(check, "training.py", "--parts", parts, "--rounds", rounds, "--device", check.device)


def beside_the_host(check: Check, _option: str) -> None:
    """Our trainer beside the host's own, in one ComfyUI."""
    from .host import front_end

    os.environ["COMFYUI_FRONT_END"] = str(front_end(check.work))
    steps, batches = ("6", ["1"]) if check.toy else ("240", ["1", "8"])
    told(check, "host.py", "--device", check.device, "--steps", steps, "--rounds", "1", "--batches", *batches)


def study(check: Check, _option: str) -> None:
    """Do rollouts help: as many seeds as the time allows."""
    results = check.results.parent / "study.jsonl"
    results.unlink(missing_ok=True)
    extent = ["--quick"] if check.toy else ["--seeds", "15", "--minutes", "3.5"]
    told(check, "study.py", *extent, "--device", check.device, "--results", str(results))


def told(check: Check, script: str, *arguments: str) -> None:
    """Run a benchmark; its last lines are the result."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    lines: list[str] = []
    for line in run.stdout or ():
        print(line, end="", flush=True)
        lines.append(line.rstrip())
        if line.startswith("|") and not line.startswith("|---"):
            check.tell("line", True, row=line.strip(" |\n"))
    check.tell(
        script, run.wait() == 0, exit=run.returncode, **({} if not run.returncode else {"end": lines[-8:]})
    )
