"""Trainings that are killed at random moments: ``python killed.py BACKEND KILLS SEED FOLDER RESULT``.

For `reliability.py`.

BACKEND is `demo`, the demo's diffusers folder, or `host`, a tiny SD 1.5 as ComfyUI loads it: that needs the
interpreter of a ComfyUI and COMFYUI_PATH. This process loads the model once. For each kill it forks a child that
trains with everything on, saves, encodes or exports without end, kills it after a random time, looks at what is left
and prints a line. At the end the run goes on and is compared with one that nobody killed; RESULT has the figures.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BACKEND, KILLS, SEED, FOLDER, RESULT = (
    sys.argv[1],
    int(sys.argv[2]),
    int(sys.argv[3]),
    *map(Path, sys.argv[4:6]),
)
ROOT = Path(__file__).resolve().parents[1]

if BACKEND == "host":
    HOST = os.environ["COMFYUI_PATH"]
    sys.path[:0] = [HOST, str(ROOT / "tests" / "host")]
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args
    import nodes_for_tests.model_nodes as own_nodes
    import tiny_families

spec = importlib.util.spec_from_file_location(
    "rollout_trainer", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
)
assert spec is not None
assert spec.loader is not None
sys.modules["rollout_trainer"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["rollout_trainer"])

import torch  # noqa: E402
from looks import equal, same_data, some_pictures  # noqa: E402

from rollout_trainer.training.data.encoding import encode  # noqa: E402
from rollout_trainer.training.data.folders import read_image_folder  # noqa: E402
from rollout_trainer.training.files import read_file  # noqa: E402
from rollout_trainer.training.lora.adapter import LoRAConfig  # noqa: E402
from rollout_trainer.training.objective.config import RolloutConfig  # noqa: E402
from rollout_trainer.training.objective.timesteps import TimestepConfig  # noqa: E402
from rollout_trainer.training.runs.export import save_lora  # noqa: E402
from rollout_trainer.training.runs.folder import sweep  # noqa: E402
from rollout_trainer.training.runs.run import reopen, resuming, start, train  # noqa: E402
from rollout_trainer.training.trainer.config import TrainConfig  # noqa: E402
from rollout_trainer.training.trainer.optim import OptimizerConfig  # noqa: E402

torch.set_num_threads(1)
SAVE_EVERY = 2
PHASES = ("train", "train", "train", "save", "encode", "export")
MOST = 7
"""Steps, saves, encodings or exports that a child begins at most before it is killed."""
PATIENCE = 60.0
"""Seconds that one of them may take."""
EARLY = 0.2
"""Share of the children that are killed before they are."""
CONFIG = TrainConfig(
    steps=1_000_000,
    batch_size=2,
    accumulation=2,
    caption_dropout=0.2,
    ema_decay=0.9,
    save_every=SAVE_EVERY,
    keep=3,
    hold_out=0.2,
    validate_every=4,
    preview_every=7,
    lora=LoRAConfig(rank=2, alpha=2.0, dropout=0.3),
    optimizer=OptimizerConfig(lr=1e-3, schedule="cosine", warmup_steps=5),
    timesteps=TimestepConfig("logit_normal"),
    rollout=RolloutConfig(
        max_step_offset=3, ramp_steps=20, prob_start=0.1, prob_end=0.9, steps_per_trajectory=20, reuse=3
    ),
)
"""Everything on: each step draws from every stream, and saves, films and validation are due often."""


def model() -> Any:
    """The base model of the backend."""
    if BACKEND == "demo":
        from rollout_trainer.training.models.families import load_diffusers

        return load_diffusers(ROOT / "demo" / "model", torch.device("cpu"), torch.float32)
    from rollout_trainer.host.comfyui.model import ComfyModel
    from rollout_trainer.training.models.hosted import HostModel

    (clip,), (vae,) = own_nodes.TestTinyClip().make("tiny"), own_nodes.TestTinyVae().make(4)
    return HostModel(ComfyModel(tiny_families.build("sd15"), clip, vae))


class Campaign:
    """One run that is killed again and again, and what its children write beside it."""

    def __init__(self) -> None:
        self.source = model()
        self.loras, self.cache, self.log = FOLDER / "loras", FOLDER / "cache", FOLDER / "steps.log"
        self.pictures = some_pictures(FOLDER / "pictures")
        self.images = self.looked_at()
        self.data = self.encoded(FOLDER / "whole-cache")
        self.run = start(FOLDER / "runs", "killed", self.source, self.data, CONFIG)
        self.at_work, self.working = os.pipe()
        os.set_blocking(self.working, False)
        self.wrong: list[str] = []
        self.lost = 0
        self.by_phase = dict.fromkeys(PHASES, 0)

    def looked_at(self) -> Any:
        """The folder, with what is known of its files."""
        return read_image_folder(self.pictures, known=self.cache / "folders")

    def encoded(self, cache: Path) -> Any:
        """The data, with what is in the cache."""
        return encode(self.images, self.source, 64, cache)

    # -- what a child does without end --------------------------------------------------------------

    def train(self) -> None:
        """Train on; each step is told once it is done."""
        file = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        run = reopen(self.run.folder.path, self.source, self.data)

        def watch(report: Any) -> None:
            os.write(file, f"{report.step}\n".encode())
            self.begun()

        train(run, 1_000_000, watch)

    def save(self) -> None:
        """Write the newest state again and again."""
        run = reopen(self.run.folder.path, self.source, self.data)
        with resuming(run) as stage:
            state = stage.trainer.state()
            while True:
                self.begun()
                run.folder.save(state, keep=CONFIG.keep)

    def encode(self) -> None:
        """Look at all files and encode them anew."""
        while True:
            self.begun()
            shutil.rmtree(self.cache, ignore_errors=True)
            self.images = self.looked_at()
            self.encoded(self.cache)

    def export(self) -> None:
        """Write LoRA files of one name."""
        run = reopen(self.run.folder.path, self.source, self.data)
        while True:
            self.begun()
            save_lora(run, self.loras, "killed")

    def begun(self) -> None:
        """Tell that the child is at work, once or more often."""
        with contextlib.suppress(BlockingIOError):
            os.write(self.working, b".")

    # -- what is looked at afterwards -----------------------------------------------------------------

    def kill(self, phase: str, rng: random.Random) -> None:
        """Let a child do that for a while, kill it, and look."""
        self.log.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            try:
                torch.set_num_threads(1)
                sys.stderr = Path(FOLDER / "child.log").open("a")  # noqa: SIM115
                work: Callable[[], None] = getattr(self, phase)
                work()
            except BaseException as err:
                print(f"{phase}: {type(err).__name__}: {err}", file=sys.stderr, flush=True)
            finally:
                os._exit(1)
        self.wait(phase, rng)
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        while select.select([self.at_work], [], [], 0)[0]:
            os.read(self.at_work, 1 << 16)
        if not os.WIFSIGNALED(status):
            self.wrong.append(f"{phase}: the child ended by itself")
        self.by_phase[phase] += 1
        self.look(phase)

    def wait(self, phase: str, rng: random.Random) -> None:
        """Until a random moment of what the child does: while it starts, or between two of its rounds."""
        if rng.random() < EARLY:
            return time.sleep(rng.uniform(0, 0.3))
        begun = time.monotonic()
        rounds = rng.randint(1, MOST if phase == "train" else 2)
        for _ in range(rounds):
            if not select.select([self.at_work], [], [], PATIENCE)[0]:
                self.wrong.append(f"{phase}: nothing for {PATIENCE:g} s")
                return None
            os.read(self.at_work, 1)
        time.sleep(rng.uniform(0, (time.monotonic() - begun) / rounds))
        return None

    def look(self, phase: str) -> None:
        """What is left must be whole."""
        try:
            steps = self.run.folder.steps()
            for step in steps:
                self.run.folder.load(step)
            reopen(self.run.folder.path, self.source, self.data)
            done = [int(line) for line in self.log.read_text().split()] if self.log.exists() else []
            if done:
                self.lost = max(self.lost, done[-1] - steps[-1])
                # Written while the next steps are trained, one at a time: the last that was due may be missing.
                if steps[-1] < done[-1] // SAVE_EVERY * SAVE_EVERY - SAVE_EVERY:
                    self.wrong.append(f"step {done[-1]} was done, the newest state is {steps[-1]}")
            for path in self.loras.glob("*.safetensors") if phase == "export" else ():
                read_file(path)
                path.unlink()
            if phase == "encode":
                self.images = self.looked_at()
                if not same_data(self.encoded(self.cache), self.data):
                    self.wrong.append("the cache gives other data than before")
        except Exception as err:
            self.wrong.append(f"after a kill while it was to {phase}: {type(err).__name__}: {err}"[:300])

    def strays(self) -> list[str]:
        """What the next start leaves of unfinished files."""
        sweep(FOLDER / "runs")
        save_lora(self.run, self.loras, "last")
        self.encoded(self.cache)
        self.looked_at()
        places = [FOLDER / "runs", self.loras, self.cache]
        ends = (".partial", ".part", ".lock", ".tmp")
        return sorted(p.name for place in places for p in place.rglob("*") if p.name.endswith(ends))

    def write(self, killed: int) -> None:
        """The figures of all kills."""
        phases = {f"while it was to {phase}": n for phase, n in self.by_phase.items()}
        figures = {
            "tried": killed, "wrong": len(self.wrong), "what": self.wrong[:20], "counts": phases,
            "most": {"steps lost": self.lost},
        }  # fmt: skip
        RESULT.write_text(json.dumps(figures))


def main() -> None:
    """All kills, then the comparison."""
    rng = random.Random(SEED)
    FOLDER.mkdir(parents=True, exist_ok=True)
    campaign = Campaign()
    for i in range(KILLS):
        campaign.kill(PHASES[i % len(PHASES)], rng)
        print(i + 1, campaign.wrong, flush=True)
    run = train(reopen(campaign.run.folder.path, campaign.source, campaign.data), 1)
    campaign.wrong += [f"stray file {name}" for name in campaign.strays()]
    whole = train(start(FOLDER / "runs", "whole", campaign.source, campaign.data, CONFIG), run.step)
    if not equal(run.state, whole.state):
        campaign.wrong.append("the run that was killed is not the uninterrupted one")
    campaign.write(KILLS)


if __name__ == "__main__":
    main()
