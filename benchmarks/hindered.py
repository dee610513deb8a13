"""Trainings whose disk, memory or model fails, and two at once: pieces of `reliability.py`."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from conftest import ToySource, toy_config, toy_data
from everything import EVERYTHING
from looks import ROOT, bad_line, equal

from rollout_trainer.training import files
from rollout_trainer.training.runs.folder import sweep
from rollout_trainer.training.runs.run import reopen, start, train

if TYPE_CHECKING:
    from reliability import Count

torch.set_num_threads(1)


@contextmanager
def failing(
    owner: Any, name: str, at: int, error: Callable[[], BaseException], lasting: bool
) -> Iterator[None]:
    """Inside, the call `at` of a function raises, and all later ones too if `lasting`."""
    real, calls = getattr(owner, name), []

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == at or (lasting and len(calls) > at):
            raise error()
        return real(*args, **kwargs)

    setattr(owner, name, called)
    try:
        yield
    finally:
        setattr(owner, name, real)


DISK = {"full": errno.ENOSPC, "read-only": errno.EROFS, "broken": errno.EIO}


def disk(folder: Path, tries: int, seed: int, count: Count) -> None:
    """A disk that is full, read-only or broken from a random write on: goes on or one line, then goes on exactly."""
    rng, data = random.Random(seed), toy_data()
    config = toy_config(**EVERYTHING, save_every=2, keep=2)
    whole = train(start(folder / "runs", "w", ToySource(), data, config), 8).state
    for i in range(tries):
        kind = list(DISK)[i % len(DISK)]
        run, fault = start(folder / "runs", "t", ToySource(), data, config), ""
        number, lasting = DISK[kind], rng.random() < 0.5
        error = lambda number=number: OSError(number, os.strerror(number))  # noqa: E731
        where = rng.choice([(files, "replace_file"), (os, "fsync"), (Path, "replace")])
        try:
            with failing(*where, rng.randrange(1, 12), error, lasting):
                train(run, 8)
            count.add(f"{kind}: went on")
        except RuntimeError as err:
            fault = bad_line(str(err))
            count.add(f"{kind}: told in a line")
        except BaseException as err:
            fault = f"{type(err).__name__}: {err}"
        count.one(fault or after(run, data, whole, 8))
        shutil.rmtree(run.folder.path)


def after(run: Any, data: Any, whole: Any, steps: int) -> str:
    """What is wrong with a run that goes on after a fault: nothing unfinished, and the uninterrupted run's state."""
    again = reopen(run.folder.path, ToySource(), data)
    last = train(again, steps - again.step) if again.step < steps else again
    sweep(run.folder.path.parent)
    left = [p.name for p in run.folder.path.rglob("*") if p.name.endswith((".partial", ".lock"))]
    if left:
        return f"left: {left[:3]}"
    return "" if equal(last.state, whole) else "not the uninterrupted run"


def memory(folder: Path, tries: int, seed: int, count: Count) -> None:
    """Memory that runs out in a random model call, once: the state is saved, what follows is the uninterrupted run."""
    rng, data, config = random.Random(seed), toy_data(), toy_config(**EVERYTHING)
    whole = train(start(folder / "runs", "w", ToySource(), data, config), 6).state
    errors = [MemoryError, lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")]
    for _ in range(tries):
        source, fault = ToySource(), ""
        run = start(folder / "runs", "t", source, data, config)
        try:
            with failing(source.module, "forward", rng.randrange(1, 60), rng.choice(errors), lasting=False):
                train(run, 6)
            count.add("did not run out")
        except (MemoryError, torch.OutOfMemoryError):
            count.add("ran out")
        except BaseException as err:
            fault = f"{type(err).__name__}: {err}"
        count.one(fault or after(run, data, whole, 6))
        shutil.rmtree(run.folder.path)


def not_finite(folder: Path, tries: int, seed: int, count: Count) -> None:
    """A model that answers NaN in a random call: the step is skipped and said, no weight is ever NaN."""
    rng, data, config = random.Random(seed), toy_data(), toy_config(**EVERYTHING)
    for _ in range(tries):
        source, fault = ToySource(), ""
        run = start(folder / "runs", "t", source, data, config)
        source.module.forward = spoilt_once(source.module.forward, rng.randrange(1, 60))
        try:
            state = train(run, 8).state
            own = [
                v for k, v in state.tensors.items() if k.startswith(("adapter.", "average.", "optimizer."))
            ]
            finite = all(bool(v.isfinite().all()) for v in own if v.is_floating_point())
            fault = "" if finite else "NaN in the LoRA"
            skipped = reopen(run.folder.path, source, data).history.columns["skipped"]
            count.add("steps skipped", int(sum(skipped)))
        except BaseException as err:
            fault = f"{type(err).__name__}: {err}"
        count.one(fault)
        shutil.rmtree(run.folder.path)


def spoilt_once(forward: Callable[..., Any], at: int) -> Callable[..., Any]:
    """That forward, whose call number `at` answers NaN."""
    calls = 0

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(*args, **kwargs) * (float("nan") if calls == at else 1.0)

    return spoilt


# -- two processes -------------------------------------------------------------------------------------

TWO = """
import sys
sys.path.insert(0, {unit!r})
from killed_training import register_package
register_package()
import torch
torch.set_num_threads(1)
from pathlib import Path
from conftest import ToySource, toy_config, toy_data
from everything import EVERYTHING
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.data.folders import read_image_folder
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.runs.export import save_lora
from rollout_trainer.training.runs.run import reopen, start, train
place, root = Path({place!r}), Path({root!r})
data, model = toy_data(), load_diffusers(root / "demo/model")
print("ready", flush=True)
for line in sys.stdin:
    own = start(place / "runs", "own", ToySource(), data, toy_config(**EVERYTHING))
    done, refused = [str(train(own, 3).folder.path)], 0
    for _ in range(3):
        try:
            train(reopen(place / "runs" / line.strip(), ToySource(), data), 1)
        except RuntimeError as err:
            refused += 1
            assert "another process trains it" in str(err), err
    loras = [save_lora(own, place / "loras", "a").name for _ in range(5)]
    found = encode(read_image_folder(root / "demo/data", known=place / "cache/folders"), model, 64, place / "cache")
    total = sum(float(b.latents.double().abs().sum()) for b in found.held().buckets)
    print(repr((done, loras, total, refused)), flush=True)
"""


def two(folder: Path, tries: int, seed: int, count: Count) -> None:
    """Two processes on one runs folder, one run, one name of LoRA files and one cache."""
    data = toy_data()
    script = TWO.format(unit=str(ROOT / "tests/unit"), place=str(folder), root=str(ROOT))
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]  # fmt: skip
    streams = [(p, p.stdin, p.stdout) for p in pair if p.stdin and p.stdout]
    expected: set[float] = set()
    for _, _, out in streams:
        out.readline()
    for _ in range(tries):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        shared = start(folder / "runs", "shared", ToySource(), data, toy_config(**EVERYTHING))
        for _, given, _ in streams:
            given.write(f"{shared.folder.path.name}\n")
            given.flush()
        lines = [out.readline() for _, _, out in streams]
        if not all(lines):
            count.one("a process ended by an error")
            break
        answers = [literal_eval(line) for line in lines]
        own, loras = [a[0][0] for a in answers], [name for a in answers for name in a[1]]
        expected |= {a[2] for a in answers}
        count.add("refused as another process trains it", sum(a[3] for a in answers))
        fault = ""
        if len(set(own)) != 2 or len(set(loras)) != len(loras):
            fault = f"one name twice: {own} {loras}"
        elif len(expected) != 1:
            fault = f"the cache gave different data: {expected}"
        else:
            steps = shared.folder.steps()
            fault = "" if steps == list(range(steps[-1] + 1)) else f"steps of the shared run: {steps}"
            for step in steps:
                shared.folder.load(step)
        count.one(fault)
    for process, given, _ in streams:
        given.close()
        process.wait()


# -- nothing is unpickled --------------------------------------------------------------------------------


def unpickling(folder: Path, tries: int, seed: int, count: Count) -> None:
    """A training from loading to exporting and back, watched for whatever is unpickled."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests/unit")!r})
from killed_training import register_package
register_package()
from pathlib import Path
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.data.folders import read_image_folder
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.runs.export import save_lora
from rollout_trainer.training.runs.run import reopen, start, train
from rollout_trainer.training.trainer.config import TrainConfig
import torch
seen = []
def watch(event, args):
    if event in ("pickle.find_class", "marshal.loads") and "site-packages" not in str(args):
        seen.append((event, str(args)[:80])) if event == "pickle.find_class" else None
sys.addaudithook(watch)
place, root = Path({str(folder)!r}), Path({str(ROOT)!r})
model = load_diffusers(root / "demo/model")
for _ in range(2):  # the second time from the cache
    data = encode(read_image_folder(root / "demo/data", known=place / "cache/folders"), model, 64, place / "cache")
run = train(start(place / "runs", "t", model, data, TrainConfig(steps=4, batch_size=2, preview_every=2)), 2)
run = train(reopen(run.folder.path, model, data), 2)
path = save_lora(run, place / "loras", "a")
model.read_lora(path)
print(seen)
"""
    for _ in range(tries):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        said = done.stdout.strip()
        count.one("" if said == "[]" else f"unpickled: {said or done.stderr[-200:]}")
