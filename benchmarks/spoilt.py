"""Files, workflows and expressions as they should not be, many to a process: pieces of `reliability.py`."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from conftest import ToySource, toy_config, toy_data
from everything import EVERYTHING
from looks import ROOT, bad_line, equal, same_data, same_tensors, some_pictures
from mutation import mutated

import rollout_trainer.__main__ as command_line
from rollout_trainer.nodes.settings import RolloutSettingsFromJSON
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.data.folders import read_image_folder
from rollout_trainer.training.files import read_file
from rollout_trainer.training.lora.adapter import target_modules
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.runs.export import save_lora_of_state
from rollout_trainer.training.runs.run import reopen, start, train

if TYPE_CHECKING:
    from reliability import Count

torch.set_num_threads(1)
SLOW, SLOW_WORKFLOW = 10.0, 5.0
"""Seconds of this process's own time after which one try counts as hanging."""


def workflows(folder: Path, tries: int, seed: int, count: Count) -> None:
    """Mutated workflows: printable lines of at most 300 characters or valid, in five seconds, nothing written."""
    rng = random.Random(seed)
    whole = [json.loads(path.read_text()) for path in sorted((ROOT / "workflows").glob("*.json"))]
    command_line._catalog = cache(command_line._catalog)  # no workflow changes which nodes there are
    path = folder / "workflow.json"
    os.chdir(folder)
    for _ in range(tries):
        value = rng.choice(whole)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            value = mutated(value, rng)
        text = json.dumps(value)
        if rng.random() < 0.1:
            text = damaged(text.encode(), rng).decode(errors="replace")
        path.write_text(text)
        fault = validated(path, count)
        if new := {p.name for p in folder.iterdir()} - {path.name}:
            fault = fault or f"written: {sorted(new)}"
        count.one(fault and f"{fault} | {text[:100]}")


def validated(path: Path, count: Count) -> str:
    """What is wrong with how a workflow is refused or taken."""
    said, begun = StringIO(), time.process_time()
    try:
        with redirect_stderr(said), redirect_stdout(StringIO()):
            code = command_line.main(["validate", str(path)])
    except BaseException as err:
        return f"{type(err).__name__}: {err}"
    seconds = time.process_time() - begun
    count.add("refused" if code else "valid")
    count.most("seconds", seconds)
    if code not in (0, 2):
        return f"exit code {code}: {said.getvalue()[:200]}"
    if code == 2 and not said.getvalue():
        return "refused without a word"
    if seconds > SLOW_WORKFLOW:
        return f"took {seconds:.1f} s"
    lines = [line.removeprefix("error: ") for line in said.getvalue().splitlines()]
    return next((bad for line in lines if (bad := bad_line(line))), "")


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
        self.lora = save_lora_of_state(self.run.folder, self.run.step, folder / "loras", "a")
        self.tensors = read_file(self.lora)[0]
        self.model = shutil.copytree(ROOT / "demo" / "model", folder / "model")
        self.base = load_diffusers(self.model, torch.device("cpu"), torch.float32)
        self.fingerprint = self.base.fingerprint  # read now, while the folder is whole
        self.images = some_pictures(folder / "data")
        self.cache = folder / "cache"
        self.whole = self.encoded()
        self.settings = folder / "config.json"
        self.settings.write_text(json.dumps(RolloutConfig(4, 0.5).to_config_json()))

    def encoded(self) -> Any:
        """The pictures with what is in the cache."""
        return encode(read_image_folder(self.images, known=self.cache / "folders"), self.base, 64, self.cache)

    def kinds(self) -> dict[str, tuple[list[Path], Callable[[], str]]]:
        """Files by kind, and what is wrong with the outcome; a refusal is raised."""
        return {
            "state": ([self.run.folder.state_path(3)], self.look_at_state),
            "run settings": ([self.run.folder.path / "config.json"], self.look_at_settings),
            "LoRA": ([self.lora], self.look_at_lora),
            "cache": (sorted(p for p in self.cache.rglob("*") if p.is_file()), self.look_at_cache),
            "picture": (sorted(self.images.glob("*.png")), self.look_at_pictures),
            "caption": (sorted(self.images.glob("*.txt")), self.look_at_pictures),
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
        return "" if same_tensors(read_file(self.lora)[0], self.tensors) else "a damaged LoRA was taken"

    def look_at_cache(self) -> str:
        """Made anew: the data are those of before."""
        return "" if same_data(self.encoded(), self.whole) else "a damaged cache was taken"

    def look_at_pictures(self) -> str:
        """Left out with a line, or a picture or caption like any other."""
        dataset = read_image_folder(self.images)
        lines = [bad for line in dataset.summary().splitlines() if (bad := bad_line(line))]
        if lines:
            return lines[0]
        found = encode(dataset, self.base, 64, self.cache).held()
        finite = all(bool(b.latents.isfinite().all()) for b in found.buckets)
        return "" if finite else "latents that are not finite"

    def look_at_model(self) -> str:
        """Another model, by its fingerprint, or the same one."""
        again = load_diffusers(self.model, torch.device("cpu"), torch.float32)
        if again.fingerprint != self.fingerprint:
            return ""
        own, other = (model.denoiser() for model in (again, self.base))
        with own.opened(), other.opened():
            pairs = zip(own.module.parameters(), other.module.parameters(), strict=True)
            same = all(torch.equal(a, b) for a, b in pairs)
        return "" if same else "a damaged model passes for the whole one"

    def look_at_config(self) -> str:
        """Settings like any other."""
        RolloutSettingsFromJSON.execute(str(self.settings))
        return ""


def damage(folder: Path, tries: int, seed: int, count: Count) -> None:
    """Damaged states, settings, LoRAs, caches, pictures, captions, models, configs: one line, or unharmed."""
    rng, kinds = random.Random(seed), Damage(folder).kinds()
    for i in range(tries):
        kind = list(kinds)[i % len(kinds)]
        paths, look = kinds[kind]
        path, begun = rng.choice(paths), time.process_time()
        fault = looked_at(path, look, kind, rng, count)
        if (seconds := time.process_time() - begun) > SLOW:
            fault = fault or f"took {seconds:.1f} s"
        count.one(fault and f"{path.name} ({kind}): {fault}")


def looked_at(path: Path, look: Callable[[], str], kind: str, rng: random.Random, count: Count) -> str:
    """Damage a file, look, mend it; what was wrong."""
    content, stat = path.read_bytes(), path.stat()
    path.write_bytes(damaged(content, rng))
    try:
        fault = look()
        count.add(f"{kind} taken")
    except (RuntimeError, ValueError) as err:
        fault = bad_line(str(err))
        count.add(f"{kind} refused")
    except BaseException as err:
        fault = f"{type(err).__name__}: {err}"
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return fault


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
        count.most("seconds", seconds)
        count.one(fault or (f"{pattern} took {seconds:.1f} s" if seconds > SLOW else ""))
