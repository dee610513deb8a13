"""Print what data of any size costs: memory against the number of samples, the start of a training, the time of a step.

    python benchmarks/data.py [--sizes 4 1000 10000 100000] [--folder DIR] [--steps 20]

Pictures, captions, latents (16 x 128 x 128) and captions' conditioning (512 x 4096 and 768, bfloat16), as Flux at 1024
pixels has them, are made here; each size is measured in a process of its own, with everything in the cache, by the code
that nodes call. Cache files hold zeros, as holes: 100,000 samples would be 470 GB, and take less than one on the disk.
The network is a small one on states of that size: its step is shorter than a real one, so reading shows rather more.

The tables are Markdown. The package must be importable (`pip install -e .`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from rollout_trainer.samplers import FlowSchedule
from rollout_trainer.training.data import cache, encoding
from rollout_trainer.training.data.dataset import LatentDataset
from rollout_trainer.training.data.folders import read_image_folder
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.runs.run import training_mode
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.trainer import Trainer

BATCH = 4
LATENT = (16, 128, 128)
TEXT = (1, 512, 4096)


class Network(nn.Module):
    """A few convolutions, and the caption's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Conv2d(LATENT[0], 32, 3, padding=1)
        self.text = nn.Linear(TEXT[-1], 32)
        self.middle = nn.Sequential(*(nn.Conv2d(32, 32, 3, padding=1) for _ in range(6)))
        self.out = nn.Conv2d(32, LATENT[0], 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Velocity [B, ...] at `x`."""
        text = self.text(context.float().mean(1))[:, :, None, None]
        out: Tensor = self.out(self.middle(self.inp(x) + text))
        return out


class Source:
    """A `ModelSource` of Flux's sizes whose encoders give zeros."""

    name = "Flux's sizes"
    fingerprint = encoder_fingerprint = "benchmark"
    prediction = "flow"
    schedule = FlowSchedule(3.0)
    device = torch.device("cpu")
    dtype = torch.bfloat16
    default_resolution = 1024
    size_multiple = 16
    default_lora_targets = (r"^(inp|text|out)$",)

    def __init__(self) -> None:
        self.module = Network().requires_grad_(False).eval()

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Of a picture of that size."""
        return LATENT[0], height // 8, width // 8

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros(len(pixels), LATENT[0], pixels.shape[-2] // 8, pixels.shape[-1] // 8).bfloat16()

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Zeros."""
        zeros = torch.zeros(len(captions), *TEXT[1:], dtype=torch.bfloat16)
        return {"context": zeros, "pooled": zeros[:, 0, :768].clone()}

    def denoiser(self, dtype: torch.dtype | None = None) -> Source:
        """Itself."""
        return self

    def opened(
        self, training: bool = False, checkpointing: bool = False, regions: Any = None
    ) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()

    def loss_weight(self, sigma: Tensor) -> Tensor | None:
        """None: 1."""
        return None

    def predict(self, x: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Velocity."""
        out: Tensor = self.module(x, cond["context"])
        return out


# --- the data --------------------------------------------------------------------------------------


def make(folder: Path, count: int) -> None:
    """Fill a dataset folder and its cache."""
    pictures, colours = folder / "set", torch.arange(count)
    if (folder / "made").exists():
        return
    pictures.mkdir(parents=True, exist_ok=True)
    for i in colours.tolist():
        colour = (i % 256, i // 256 % 256, i // 65536 % 256)
        Image.new("RGB", (16, 16), colour).save(pictures / f"{i:06d}.png")
        caption = (
            f"picture number {i}, of one colour, as plain as can be, in the style of a benchmark of data"
        )
        (pictures / f"{i:06d}.txt").write_text(caption)
    with Holes():
        load(folder, Source())
    (folder / "made").touch()


def load(folder: Path, source: Any) -> LatentDataset:
    """What the nodes do: read the folder, encode what is not in the cache."""
    images = read_image_folder(folder / "set", known=folder / "cache" / "folders")
    return encoding.encode(images, source, cache_dir=folder / "cache")


class Holes:
    """Inside, cache files of zeros take no room on the disk."""

    def __init__(self) -> None:
        self.digests: dict[Any, str] = {}
        self.heads: dict[Any, tuple[bytes, int]] = {}
        self.own = cache.write_tensors, cache._digest, encoding.fitted

    def __enter__(self) -> None:
        pixels = torch.zeros(3, 1024, 1024)
        cache.write_tensors, cache._digest = self.write, self.digest
        encoding.fitted = lambda *args: (pixels, None)  # nothing looks at them

    def __exit__(self, *error: object) -> None:
        cache.write_tensors, cache._digest, encoding.fitted = self.own

    def digest(self, tensors: Mapping[str, Tensor]) -> str:
        """As it is, worked out once."""
        layout = cache.layout(tensors)
        if layout not in self.digests:
            self.digests[layout] = self.own[1](tensors)
        return self.digests[layout]

    def write(self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """The header, and a hole."""
        if path.name == cache.INDEX:
            self.own[0](path, tensors, metadata)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        layout = cache.layout(tensors)
        if layout not in self.heads:
            size = sum(t.numel() * t.element_size() for t in tensors.values())
            content = save({k: v.contiguous() for k, v in tensors.items()}, dict(metadata))
            self.heads[layout] = content[: len(content) - size], len(content)
        head, size = self.heads[layout]
        path.write_bytes(head)
        os.truncate(path, size)


# --- what is measured ------------------------------------------------------------------------------


def memory(field: str) -> float:
    """MiB of this process: `VmRSS` now, `VmHWM` at most since `forget`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def forget() -> None:
    """Count the peak from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def config() -> TrainConfig:
    """Of all trainings here."""
    return TrainConfig(steps=1000, batch_size=BATCH, lora=LoRAConfig(rank=4), caption_dropout=0.1)


def measure(folder: Path, steps: int) -> dict[str, float]:
    """Start a training on what is cached, and train some steps."""
    source: Any = Source()
    torch.set_num_threads(1)
    warm(source)
    before = memory("VmRSS")
    forget()
    begin, used = time.perf_counter(), time.process_time()
    data = load(folder, source)
    loaded = time.perf_counter()
    with training_mode(), Trainer(source, data, config()) as trainer:
        trainer.order.next()
        started, spent = time.perf_counter(), time.process_time()
        peak = memory("VmHWM")
        trainer.step()
        forget()
        for _ in range(steps):
            trainer.step()
        training = memory("VmHWM")
    return {
        "samples": len(data),
        "start": started - begin,
        "of it, folder and cache": loaded - begin,
        "cpu": spent - used,
        "before": before,
        "peak of start": peak,
        "training": training,
    }


def warm(source: Any) -> None:
    """Have everything imported and allocated that a first step needs, whatever the data."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "set"
        folder.mkdir()
        for i in range(BATCH):
            Image.new("RGB", (16, 16), (i, 0, 0)).save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text("x")
        data = load(Path(place), source)
        with training_mode(), Trainer(source, data, config()) as trainer:
            trainer.step()
            trainer.step()


def compare(folder: Path, steps: int) -> dict[str, float]:
    """Steps on the same data from the cache and in memory, in turn; their losses must be the same bits."""
    torch.set_num_threads(1)
    stored = load(folder, Source())
    times: dict[str, list[float]] = {"stored": [], "held": []}
    losses: dict[str, list[float]] = {"stored": [], "held": []}
    with training_mode(), ExitStack() as stack:
        trainers = {}
        for name, data in (("stored", stored), ("held", stored.held())):
            torch.manual_seed(0)
            source: Any = Source()
            trainers[name] = stack.enter_context(Trainer(source, data, config()))
        for turn in range(steps + 1):
            for name in ("stored", "held") if turn % 2 else ("held", "stored"):
                begin = time.perf_counter()
                losses[name].append(trainers[name].step().loss)
                if turn:
                    times[name].append(time.perf_counter() - begin)
    if losses["stored"] != losses["held"]:
        raise RuntimeError(f"the same data must train alike, got {losses}")
    ratios = sorted(a / b for a, b in zip(times["stored"], times["held"], strict=True))
    middle = {name: sorted(t)[len(t) // 2] for name, t in times.items()}
    return {**middle, "ratio": ratios[len(ratios) // 2]}


def alone(task: str, folder: Path, steps: int) -> dict[str, float]:
    """A measure in a process of its own."""
    command = [sys.executable, __file__, "--task", task, "--folder", str(folder), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for row in (head, ["---:"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[BATCH, 1000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where the data is made, and kept; a temporary one else")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--task", choices=("measure", "compare"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(json.dumps({"measure": measure, "compare": compare}[args.task](args.folder, args.steps)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary)
        rows = []
        for size in args.sizes:
            make(root / str(size), size)
            found = alone("measure", root / str(size), args.steps)
            names = ("start", "of it, folder and cache", "cpu", "before", "peak of start", "training")
            rows.append([f"{size:,}", *(f"{found[name]:.1f}" for name in names)])
        head = ("samples", "start, s", "of it data, s", "CPU, s")
        print_table((*head, "RAM before, MiB", "peak while it starts", "peak while it trains"), rows)
        size = min(args.sizes, key=lambda n: abs(n - 64))
        found = alone("compare", root / str(size), args.steps)
        print_table(
            ("step from the cache, ms", "from RAM, ms", "ratio (median of pairs)"),
            [[f"{1000 * found['stored']:.1f}", f"{1000 * found['held']:.1f}", f"{found['ratio']:.3f}"]],
        )


if __name__ == "__main__":
    main()
