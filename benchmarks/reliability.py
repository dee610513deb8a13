"""What a user may rely on, as counts: ``python benchmarks/reliability.py [--minutes 10]``.

The time is shared between the tests below; each repeats its fault until its share is over and prints how often, and
what went wrong. `--minutes 120` is the longer mode. Nothing here needs a GPU or a ComfyUI. Exit code 1: something
was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "unit"))

from killed_training import register_package  # noqa: E402

if "rollout_trainer" not in sys.modules:
    register_package()

import torch  # noqa: E402
from conftest import ToySource, toy_config, toy_data  # noqa: E402
from everything import EVERYTHING  # noqa: E402
from mutation import mutated  # noqa: E402

from rollout_trainer.__main__ import main as command  # noqa: E402
from rollout_trainer.training.files import read_file  # noqa: E402
from rollout_trainer.training.runs.export import save_lora  # noqa: E402
from rollout_trainer.training.runs.run import reopen, start, train  # noqa: E402

SAVE_EVERY = 3
SHARES = {"kills": 0.4, "workflows": 0.2, "damage": 0.3, "memory": 0.1}
"""Of the time."""


def equal(a: object, b: object) -> bool:
    """Whether two states have the same tensors, bit for bit."""
    return a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(v.nan_to_num(-7), b.tensors[k].nan_to_num(-7)) for k, v in a.tensors.items()
    )


def kills(folder: Path, seconds: float, rng: random.Random) -> tuple[int, list[str]]:
    """SIGKILL of a training with everything on, at random moments; then it goes on."""
    config, data = toy_config(**EVERYTHING, save_every=SAVE_EVERY, keep=3), toy_data()
    run = start(folder / "killed", "t", ToySource(), data, config)
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "unit" / "killed_training.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    server.stdout.readline()
    done, wrong = 0, []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        server.stdin.write(f"{run.folder.path}\n")
        server.stdin.flush()
        pid = int(server.stdout.readline())
        time.sleep(rng.uniform(0.1, 3.0))
        os.kill(pid, signal.SIGKILL)
        server.stdin.write("reap\n")
        server.stdin.flush()
        server.stdout.readline()
        done += 1
        try:
            reopen(run.folder.path, ToySource(), data).state  # noqa: B018
        except Exception as err:
            wrong.append(f"after kill {done}: {err}")
    server.stdin.close()
    server.wait()
    last = train(reopen(run.folder.path, ToySource(), data), 1)
    whole = train(start(folder / "whole", "t", ToySource(), data, config), last.step)
    if not equal(last.state, whole.state):
        wrong.append("the run that was killed is not the uninterrupted one")
    left = [p.name for p in run.folder.path.rglob("*") if p.name.endswith(".partial") or p.name == ".lock"]
    print(
        f"  {last.step} steps in all; resumed == uninterrupted bit for bit: {equal(last.state, whole.state)}"
    )
    return done, wrong + [f"stray file {name}" for name in left]


def workflows(folder: Path, seconds: float, rng: random.Random) -> tuple[int, list[str]]:
    """Mutated workflows, checked by the command line: printable lines of at most 300 characters, or valid."""
    whole, path = json.loads((ROOT / "workflows" / "quickstart.json").read_text()), folder / "w.json"
    done, wrong, refused = 0, [], 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        path.write_text(json.dumps(mutated(whole, rng)))
        said, begun = io.StringIO(), time.monotonic()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                refused += command(["validate", str(path)]) != 0
        except Exception as err:
            wrong.append(f"{type(err).__name__}: {err}"[:200])
        done += 1
        lines = said.getvalue().splitlines()
        wrong += [f"line: {line!r:.100}" for line in lines if not line.isprintable() or len(line) > 310]
        if time.monotonic() - begun > 5:
            wrong.append("took more than 5 s")
    print(f"  {refused} of them refused")
    return done, wrong


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One bit flipped, or the end cut off."""
    at = rng.randrange(len(content))
    if rng.random() < 0.2:
        return content[:at]
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def damage(folder: Path, seconds: float, rng: random.Random) -> tuple[int, list[str]]:
    """Damaged states, settings and LoRA files: refused in one line, or unharmed."""
    data = toy_data()
    run = train(start(folder / "damaged", "t", ToySource(), data, toy_config(**EVERYTHING)), 3)
    state, kept = run.folder.state_path(3), run.state
    lora = save_lora(run, folder / "loras", "a")
    settings = run.folder.path / "config.json"
    done, wrong = 0, []
    source = ToySource()
    checks: list[tuple[Path, Callable[[], bool]]] = [
        (state, lambda: equal(run.folder.load(3), kept)),
        (settings, lambda: reopen(run.folder.path, source, data).config == run.config),
        (lora, lambda: all(v.isfinite().all() for v in read_file(lora)[0].values())),
    ]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        path, unharmed = rng.choice(checks)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        try:
            if path is not lora and not unharmed():
                wrong.append(f"{path.name}: taken though damaged")
        except (RuntimeError, ValueError) as err:
            if "\n" in str(err):
                wrong.append(f"{path.name}: {err!r:.120}")
        except Exception as err:
            wrong.append(f"{path.name}: {type(err).__name__}: {err}")
        finally:
            path.write_bytes(whole)
        done += 1
    return done, wrong


def memory(folder: Path, seconds: float, rng: random.Random) -> tuple[int, list[str]]:
    """Memory that runs out in a random model call: the state is saved, and what follows is the uninterrupted run."""
    data, config = toy_data(), toy_config(**EVERYTHING)
    whole = train(start(folder / "memory", "w", ToySource(), data, config), 6).state
    done, wrong = 0, []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        source, calls, at = ToySource(), [], rng.randrange(1, 60)
        forward = source.module.forward

        def failing(*args: object, forward=forward, calls=calls, at=at) -> object:
            calls.append(1)
            if len(calls) == at:
                raise MemoryError
            return forward(*args)

        run = start(folder / "memory", "t", source, data, config)
        source.module.forward = failing
        with contextlib.suppress(MemoryError):
            train(run, 6)
        again = reopen(run.folder.path, ToySource(), data)
        last = train(again, 6 - again.step) if again.step < 6 else again
        if not equal(last.state, whole):
            wrong.append(f"memory out in call {at}: not the uninterrupted run")
        done += 1
    return done, wrong


def main() -> int:
    """Run all for the time given, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = 0
    for name, share in SHARES.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds = 60 * options.minutes * share
            done, wrong = globals()[name](Path(folder), seconds, random.Random(options.seed))
        print(f"{name}: {done} times, {len(wrong)} wrong", flush=True)
        for line in wrong[:5]:
            print(f"  {line}", flush=True)
        failed += len(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
