"""What a user may rely on, counted: ``python benchmarks/reliability.py [--long] [--only PIECE ...] [--seed N]``.

Each piece repeats a fault so many times and says how often it went wrong. The standard mode takes at most ten minutes
on a quiet machine of two cores; ``--long`` takes the numbers of docs/reliability.md. Nothing needs a GPU. Pieces that
need a ComfyUI (COMFYUI_PATH, as for tests/host) are left out, and named, where there is none. The figures so far lie in
``--out`` (JSON) at any moment; pieces that are in it already are kept unless ``--only`` names them.

Exit code 1: something went wrong.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "unit"), str(ROOT / "tests" / "host")]

from killed_training import register_package  # noqa: E402

if "rollout_trainer" not in sys.modules:
    register_package()

import torch  # noqa: E402
from conftest import ToySource, toy_config, toy_data  # noqa: E402
from everything import EVERYTHING  # noqa: E402
from mutation import mutated  # noqa: E402

from rollout_trainer.__main__ import main as command  # noqa: E402
from rollout_trainer.training import files  # noqa: E402
from rollout_trainer.training.data.encoding import encode  # noqa: E402
from rollout_trainer.training.data.folders import read_image_folder  # noqa: E402
from rollout_trainer.training.files import read_file  # noqa: E402
from rollout_trainer.training.lora.adapter import target_modules  # noqa: E402
from rollout_trainer.training.models.families import load_diffusers  # noqa: E402
from rollout_trainer.training.objective.config import RolloutConfig  # noqa: E402
from rollout_trainer.training.runs.folder import sweep  # noqa: E402
from rollout_trainer.training.runs.run import reopen, start, train  # noqa: E402

torch.set_num_threads(1)
LONGEST_LINE = 300
"""Characters of a message, without the word in front of it."""
SLOW = 10.0
"""Seconds after which one try counts as hanging; `target_modules` and workflows have less."""
DATA, MODEL = ROOT / "demo" / "data", ROOT / "demo" / "model"


@dataclass
class Count:
    """What came of a piece."""

    out: Callable[[dict[str, Any]], None]
    """Keeps the figures so far."""
    tried: int = 0
    wrong: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def one(self, fault: str = "") -> None:
        """One more try; `fault`: it went wrong so."""
        self.tried += 1
        if fault:
            self.wrong.append(fault[:300])
        if self.tried % 50 == 0 or fault:
            self.keep()

    def add(self, fact: str, n: int = 1) -> None:
        """Count a kind of outcome."""
        self.facts[fact] = self.facts.get(fact, 0) + n

    def keep(self) -> None:
        """Write the figures."""
        self.out({"tried": self.tried, "wrong": len(self.wrong), "what": self.wrong[:20], **self.facts})


def equal(a: Any, b: Any) -> bool:
    """Whether two states have the same tensors, bit for bit."""
    return a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(v.nan_to_num(-7), b.tensors[k].nan_to_num(-7)) for k, v in a.tensors.items()
    )


def bad_line(text: str) -> str:
    """What is wrong with a message; "" if it is one printable line."""
    if not text.strip():
        return "an empty message"
    if not text.isprintable() or len(text) > LONGEST_LINE + 10:
        return f"no line: {text[:200]!r}"
    return ""


# -- processes that are killed -----------------------------------------------------------------------


def killed(backend: str, python: str, folder: Path, tries: int, seed: int, count: Count) -> None:
    """Let `killed.py` do it, and take its figures as they come."""
    result = folder / "result.json"
    stubs = os.pathsep.join(filter(None, [str(ROOT / "tests/host/stubs"), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": stubs}
    if backend == "host":
        environment["COMFYUI_PATH"] = str(installation().folder)
    with (folder / "killed.log").open("w") as log:
        program = [python, str(ROOT / "benchmarks" / "killed.py"), backend, str(tries), str(seed)]
        process = subprocess.Popen(
            [*program, str(folder / "work"), str(result)], env=environment, stdout=log, stderr=log
        )
        while process.poll() is None:
            time.sleep(1)
            if result.exists():
                count.out(json.loads(result.read_text()))
    if process.returncode or not result.exists():
        count.wrong.append(f"killed.py ended: {(folder / 'killed.log').read_text()[-300:]}")
        return count.keep()
    figures = json.loads(result.read_text())
    count.tried, count.wrong = figures.pop("tried"), figures.pop("what") if figures.pop("wrong") else []
    count.facts = figures
    count.keep()


def kills_demo(folder: Path, tries: int, seed: int, count: Count) -> None:
    """SIGKILL at random moments of training, saving, encoding and exporting: the demo's diffusers model."""
    killed("demo", sys.executable, folder, tries, seed, count)


def kills_host(folder: Path, tries: int, seed: int, count: Count) -> None:
    """The same on a MODEL as ComfyUI loads it, in its interpreter."""
    killed("host", str(installation().python), folder, tries, seed, count)


# -- files and workflows that are not as they should be --------------------------------------------------


def workflows(folder: Path, tries: int, seed: int, count: Count) -> None:
    """Mutated workflows: printable lines of at most 300 characters or valid, in five seconds, nothing written."""
    rng = random.Random(seed)
    whole = [json.loads(path.read_text()) for path in sorted((ROOT / "workflows").glob("*.json"))]
    path, here = folder / "workflow.json", Path.cwd()
    os.chdir(folder)
    for _ in range(tries):
        value = rng.choice(whole)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            value = mutated(value, rng)
        text = json.dumps(value)
        if rng.random() < 0.1:
            text = damaged(text.encode(), rng).decode(errors="replace")
        path.write_text(text)
        said, begun, fault = StringIO(), time.monotonic(), ""
        try:
            with redirect_stderr(said), redirect_stdout(StringIO()):
                code = command(["validate", str(path)])
            count.add("refused" if code else "valid")
            fault = "" if code in (0, 2) else f"exit code {code}: {said.getvalue()[:200]}"
        except BaseException as err:
            fault = f"{type(err).__name__}: {err}"
        lines = [line.removeprefix("error: ") for line in said.getvalue().splitlines()]
        fault = fault or next((bad for line in lines if (bad := bad_line(line))), "")
        seconds = time.monotonic() - begun
        count.facts["slowest_seconds"] = round(max(count.facts.get("slowest_seconds", 0.0), seconds), 2)
        if seconds > 5:
            fault = fault or f"took {seconds:.1f} s"
        count.one(fault and f"{fault} | {text[:100]}")
    os.chdir(here)
    if new := {p.name for p in folder.iterdir()} - {path.name}:
        count.wrong.append(f"written: {sorted(new)}")
    count.keep()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One bit flipped, the end cut off, a stretch of noise, of zeros, or nothing at all."""
    if not content:
        return b"\0"
    at, kind = rng.randrange(len(content)), rng.random()
    if kind < 0.5:
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind < 0.7:
        return content[:at]
    if kind < 0.85:
        return content[:at] + rng.randbytes(16) + content[at + 16 :]
    if kind < 0.97:
        return content[:at] + bytes(64) + content[at + 64 :]
    return b""


class Damage:
    """Files of every kind, each with a look at what becomes of it once it is damaged."""

    def __init__(self, folder: Path) -> None:
        self.data = toy_data()
        self.source = ToySource()
        self.run = train(start(folder / "runs", "t", self.source, self.data, toy_config(**EVERYTHING)), 3)
        self.state = self.run.state
        self.lora = save_lora_of(self.run, folder / "loras")
        self.tensors = read_file(self.lora)[0]
        self.model = shutil.copytree(MODEL, folder / "model")
        self.base = load_diffusers(self.model, torch.device("cpu"), torch.float32)
        self.images = shutil.copytree(DATA, folder / "data")
        self.cache = folder / "cache"
        self.whole = self.encoded().held()
        (folder / "config.json").write_text(json.dumps(RolloutConfig(4, 0.5).to_config_json()))
        self.settings = folder / "config.json"

    def encoded(self) -> Any:
        """The pictures with what is in the cache."""
        known = self.cache / "folders"
        return encode(read_image_folder(self.images, known=known), self.base, 64, self.cache)

    def kinds(self) -> dict[str, tuple[list[Path], Callable[[], str]]]:
        """Files by kind, and what is wrong with the outcome; a refusal is raised."""
        pictures = sorted(p for p in self.images.iterdir() if p.suffix == ".png")
        captions = sorted(p for p in self.images.iterdir() if p.suffix == ".txt")
        return {
            "state": ([self.run.folder.state_path(3)], self.look_at_state),
            "run settings": ([self.run.folder.path / "config.json"], self.look_at_settings),
            "LoRA": ([self.lora], self.look_at_lora),
            "cache": (sorted(p for p in self.cache.rglob("*") if p.is_file()), self.look_at_cache),
            "picture": (pictures, self.look_at_pictures),
            "caption": (captions, self.look_at_pictures),
            "model": (sorted(p for p in self.model.rglob("*") if p.is_file()), self.look_at_model),
            "config.json": ([self.settings], self.look_at_config),
        }

    def look_at_state(self) -> str:
        """Taken only if it is what was saved."""
        return "" if equal(self.run.folder.load(3), self.state) else "a damaged state was taken"

    def look_at_settings(self) -> str:
        """As of a state."""
        again = reopen(self.run.folder.path, self.source, self.data)
        return "" if again.config == self.run.config else "damaged settings were taken"

    def look_at_lora(self) -> str:
        """As of a state."""
        tensors = read_file(self.lora)[0]
        same = tensors.keys() == self.tensors.keys() and all(
            torch.equal(v, self.tensors[k]) for k, v in tensors.items()
        )
        return "" if same else "a damaged LoRA was taken"

    def look_at_cache(self) -> str:
        """Made anew: the data are those of before."""
        held = self.encoded().held()
        for own, other in zip(held.buckets, self.whole.buckets, strict=True):
            if not torch.equal(own.latents, other.latents) or any(
                not torch.equal(v, other.cond[k]) for k, v in own.cond.items()
            ):
                return "a damaged cache was taken"
        return ""

    def look_at_pictures(self) -> str:
        """Left out with a line, or a picture or caption like any other."""
        dataset = read_image_folder(self.images)
        text = dataset.summary()
        lines = [line for line in text.splitlines() if bad_line(line)]
        if lines:
            return bad_line(lines[0])
        finite = all(bool(b.latents.isfinite().all()) for b in encode(dataset, self.base, 64).held().buckets)
        return "" if finite else "latents that are not finite"

    def look_at_model(self) -> str:
        """Another model, by its fingerprint, or the same one."""
        again = load_diffusers(self.model, torch.device("cpu"), torch.float32)
        if again.fingerprint != self.base.fingerprint:
            return ""
        with again.denoiser().opened(), self.base.denoiser().opened():
            pairs = zip(
                again.denoiser().module.parameters(), self.base.denoiser().module.parameters(), strict=True
            )
            return (
                "" if all(torch.equal(a, b) for a, b in pairs) else "a damaged model passes for the whole one"
            )

    def look_at_config(self) -> str:
        """Settings like any other."""
        from rollout_trainer.nodes.settings import RolloutSettingsFromJSON

        RolloutSettingsFromJSON.execute(str(self.settings))
        return ""


def save_lora_of(run: Any, folder: Path) -> Path:
    """A LoRA file as a real source writes it: with its digest."""
    from rollout_trainer.training.runs.export import save_lora_of_state

    return save_lora_of_state(run.folder, run.step, folder, "a")


def damage(folder: Path, tries: int, seed: int, count: Count) -> None:
    """Damaged states, settings, LoRAs, caches, pictures, captions, models, configs: one line, or unharmed."""
    rng, whole = random.Random(seed), Damage(folder)
    kinds = whole.kinds()
    for i in range(tries):
        kind = list(kinds)[i % len(kinds)]
        paths, look = kinds[kind]
        path = rng.choice(paths)
        content, begun, fault = path.read_bytes(), time.monotonic(), ""
        stat = path.stat()
        path.write_bytes(damaged(content, rng))
        try:
            fault = look()
            count.add(f"{kind}: taken")
        except (RuntimeError, ValueError) as err:
            fault = bad_line(str(err))
            count.add(f"{kind}: refused")
        except BaseException as err:
            fault = f"{type(err).__name__}: {err}"
        finally:
            path.write_bytes(content)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        if time.monotonic() - begun > SLOW:
            fault = fault or "hangs"
        count.one(fault and f"{path.name} ({kind}): {fault}")
    count.keep()


def expressions(folder: Path, tries: int, seed: int, count: Count) -> None:
    """Regular expressions that explode, as `targets`: an answer in a limited time."""
    rng, network = random.Random(seed), torch.nn.Module()
    for i in range(400):
        network.add_module(f"transformer_blocks_{i}_attn_to_q_proj", torch.nn.Linear(2, 2))
    inner = ["[a-z_.0-9]+", "(.|_)*", "(a|[a-z]+|_)+", r"(\w+\.?)*", "([a-z0-9]*_)*", "(x+x+)+", "(?:.*?_)+"]
    for i in range(tries):
        pattern = (
            f"^({rng.choice(inner)}){rng.choice(['+', '*', '{2,}', '+?'])}{rng.choice(['!', '[^a]!', 'Z'])}$"
        )
        if i % 6 == 5:  # references backwards, which no engine is quick at
            n = rng.randint(5, 8)
            pattern = "^" + "(.+)" * n + "".join(rf"\{k}" for k in range(n, 0, -1)) + "[A-Z]$"
        begun, fault = time.process_time(), ""
        try:
            target_modules(network, (pattern,))
        except ValueError as err:
            fault = bad_line(str(err))
            count.add("stopped" if "longer" in str(err) else "answered")
        seconds = time.process_time() - begun
        count.facts["slowest_seconds"] = round(max(count.facts.get("slowest_seconds", 0.0), seconds), 2)
        count.one(fault or (f"{pattern} took {seconds:.1f} s" if seconds > SLOW else ""))
    count.keep()


# -- disks and memory --------------------------------------------------------------------------------


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
    count.keep()


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
    count.keep()


def not_finite(folder: Path, tries: int, seed: int, count: Count) -> None:
    """A model that answers NaN in a random call: the step is skipped and said, no weight is ever NaN."""
    rng, data, config = random.Random(seed), toy_data(), toy_config(**EVERYTHING)
    for _ in range(tries):
        source, calls, at, fault = ToySource(), [], rng.randrange(1, 60), ""
        run, forward = start(folder / "runs", "t", source, data, config), source.module.forward

        def spoilt(*args: Any, forward: Any = forward, calls: list[int] = calls, at: int = at) -> Any:
            calls.append(1)
            return forward(*args) * (float("nan") if len(calls) == at else 1.0)

        source.module.forward = spoilt
        try:
            state = train(run, 8).state
            weights = [
                v for k, v in state.tensors.items() if k.startswith(("adapter.", "average.", "optimizer."))
            ]
            fault = (
                ""
                if all(bool(v.isfinite().all()) for v in weights if v.is_floating_point())
                else "NaN in the LoRA"
            )
            count.add(
                "steps skipped",
                int(sum(run.folder and reopen(run.folder.path, source, data).history.columns["skipped"])),
            )
        except BaseException as err:
            fault = f"{type(err).__name__}: {err}"
        count.one(fault)
        shutil.rmtree(run.folder.path)
    count.keep()


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
    from ast import literal_eval

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
    count.keep()


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
    count.keep()


# -- a real ComfyUI ------------------------------------------------------------------------------------


def installation() -> Any:
    """The ComfyUI of the host tests.

    Raises:
        LookupError: there is none.
    """
    from comfyui_process import find_installation

    found = find_installation()
    if found is None:
        raise LookupError("no ComfyUI: set COMFYUI_PATH")
    return found


def cancels(folder: Path, tries: int, seed: int, count: Count) -> None:
    """Cancels at random moments in a real ComfyUI: the state is saved, the MODEL samples the same bits as before."""
    from reached import cancel_often

    cancel_often(installation(), folder, tries, seed, count)


def routes(folder: Path, tries: int, seed: int, count: Count) -> None:
    """Requests with traversal, odd names, foreign origins and bodies: nothing outside a run, no error 500."""
    from reached import request_often

    request_often(installation(), folder, tries, seed, count)


PIECES: dict[str, tuple[Callable[[Path, int, int, Count], None], int, int]] = {
    "kills_demo": (kills_demo, 18, 200),
    "kills_host": (kills_host, 18, 200),
    "cancels": (cancels, 5, 50),
    "workflows": (workflows, 500, 10_000),
    "damage": (damage, 160, 1_000),
    "disk": (disk, 30, 200),
    "memory": (memory, 30, 200),
    "not_finite": (not_finite, 20, 200),
    "two": (two, 3, 20),
    "routes": (routes, 200, 2_000),
    "expressions": (expressions, 12, 60),
    "unpickling": (unpickling, 1, 1),
}
"""Each piece, how often in the standard mode, how often with ``--long``."""


def table(written: list[Path]) -> str:
    """The figures of several runs, by other seeds, as one Markdown table."""
    sums: dict[str, dict[str, Any]] = {}
    for path in written:
        for name, own in json.loads(path.read_text()).items():
            known = sums.setdefault(name, {"tried": 0, "wrong": 0, "what": [], "lost": 0})
            known["tried"] += own["tried"]
            known["wrong"] += own["wrong"]
            known["what"] += own["what"]
            known["lost"] = max(known["lost"], own.get("most_steps_lost", 0))
    lines = ["| piece | fault | tried | wrong |", "|---|---|---|---|"]
    for name, (piece, _, _) in PIECES.items():
        if name in sums:
            fault = " ".join(str(piece.__doc__).split())
            lines.append(f"| `{name}` | {fault} | {sums[name]['tried']} | {sums[name]['wrong']} |")
    wrong = [f"{name}: {text}" for name, own in sums.items() for text in own["what"]]
    lost = max((own["lost"] for own in sums.values()), default=0)
    return "\n".join([*lines, "", f"At most {lost} steps were lost to a kill.", *wrong])


def main() -> int:
    """Run the pieces and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--long", action="store_true", help="as often as docs/reliability.md says")
    parser.add_argument("--only", nargs="+", choices=list(PIECES), default=[], metavar="PIECE")
    parser.add_argument("--times", type=int, help="how often each of these, instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("reliability.json"))
    parser.add_argument(
        "--table", nargs="+", type=Path, metavar="FILE", help="sum up what was written, run nothing"
    )
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return 0
    logging.disable(logging.WARNING)
    figures: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    failed = 0
    for name in options.only or [n for n in PIECES if not figures.get(n, {}).get("whole")]:
        piece, usual, often = PIECES[name]
        tries, begun = options.times or (often if options.long else usual), time.monotonic()

        def keep(found: dict[str, Any], name: str = name, tries: int = tries, begun: float = begun) -> None:
            seconds = round(time.monotonic() - begun)
            figures[name] = {"planned": tries, "seed": options.seed, "seconds": seconds, **found}
            partial = options.out.with_suffix(".new")
            partial.write_text(json.dumps(figures, indent=1))
            partial.replace(options.out)

        count = Count(keep)
        with tempfile.TemporaryDirectory() as folder:
            try:
                piece(Path(folder), tries, options.seed, count)
            except LookupError as err:
                print(f"{name}: left out, {err}", flush=True)
                continue
        figures[name]["whole"] = count.tried >= tries
        keep({k: v for k, v in figures[name].items() if k not in ("planned", "seed", "seconds")})
        print(f"{name}: {count.tried} times, {len(count.wrong)} wrong {json.dumps(count.facts)}", flush=True)
        for line in count.wrong[:5]:
            print(f"  {line}", flush=True)
        failed += len(count.wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
