"""Our trainer beside the host's own TrainLoraNode: steps per second and peak memory, in one real ComfyUI, in turn.

    python benchmarks/host.py --comfyui DIR [--steps 240] [--rounds 2] [--device cuda]

The same tiny SD3 (1.1 M parameters, latents 16 x 16 x 16, 3 text tokens), float32, rank 8, AdamW, no checkpointing,
one thread. The host's node trains every layer, norms and biases too; ours every linear and convolution layer ("all"),
and the attention projections, which are its preset. A figure is the best of the rounds; each is the time between two
lengths of a run, so that what happens once is not counted. Memory is the process's highest resident size in the longer
run, in the order of the trainers.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "host"))

from comfyui_process import NODES_FOR_TESTS, ComfyUI, find_installation, other_front_end, running  # noqa: E402
from prompt_builder import PromptBuilder  # noqa: E402

BATCHES = (1, 4, 8)
GOALS = {1: 1.0, 4: 3.5, 8: 8.0}
PICTURES = 8


def defaults(info: dict[str, Any], graph: PromptBuilder) -> dict[str, Any]:
    """The graph with the widgets' defaults."""
    for node in graph.prompt.values():
        inputs = info[node["class_type"]]["input"]
        for name, spec in (inputs.get("required", {}) | inputs.get("optional", {})).items():
            if len(spec) > 1 and "default" in spec[1]:
                node["inputs"].setdefault(name, spec[1]["default"])
    return graph.prompt


def ours(
    graph: PromptBuilder,
    model: list[Any],
    data: list[Any],
    batch: int,
    steps: int,
    seed: int,
    targets: str = "",
) -> None:
    """Add our trainer."""
    source = graph.add("RolloutFromComfyModel", model=model)
    encoded = graph.add("RolloutDatasetFromLatents", model=source, latents=data, conditioning=[data[0], 1])
    settings = graph.add("RolloutLoRASettings", rank=8, alpha=8.0, targets=targets)
    done = graph.add(
        "RolloutTrainLoRA",
        model=source,
        data=encoded,
        lora=settings,
        batch_size=batch,
        steps=steps,
        seed=seed,
    )
    graph.add("PreviewAny", source=[done[0], 2])


def theirs(
    graph: PromptBuilder, model: list[Any], data: list[Any], batch: int, steps: int, seed: int
) -> None:
    """Add the host's own."""
    done = graph.add(
        "TrainLoraNode",
        model=model,
        latents=data,
        positive=[data[0], 1],
        batch_size=batch,
        steps=steps,
        seed=seed,
        rank=8,
        training_dtype="fp32",
        lora_dtype="fp32",
        gradient_checkpointing=False,
    )
    graph.add("PreviewAny", source=[done[0], 2])


TRAINERS: dict[str, Any] = {
    "host's own": theirs,
    "ours, all": partial(ours, targets="."),
    "ours, preset": ours,
}


def run(
    host: ComfyUI, info: dict[str, Any], add: Any, batch: int, steps: int, seed: int
) -> tuple[float, float]:
    """Seconds and peak MB of one training."""
    graph = PromptBuilder()
    model = graph.add("UNETLoader", unet_name="tiny_sd3.safetensors", weight_dtype="default")
    data = graph.add("TestTinyData", family="sd3", n=PICTURES, side=16, ragged=False)
    add(graph, model, data, batch, steps, seed)
    Path(f"/proc/{host.process.pid}/clear_refs").write_text("5")  # resets the highest resident size
    begin = time.perf_counter()
    host.queue(defaults(info, graph), 600)
    return time.perf_counter() - begin, peak(host.process.pid)


def peak(pid: int) -> float:
    """Highest resident size of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI folder; by default as in the host tests")
    parser.add_argument(
        "--steps", type=int, default=240, help="steps of the longer run; of the host's own that by the batch"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the host computes")
    parser.add_argument("--batches", type=int, nargs="+", choices=BATCHES, default=list(BATCHES))
    options = parser.parse_args()
    if options.comfyui:
        os.environ["COMFYUI_PATH"] = str(options.comfyui)
    os.environ["OMP_NUM_THREADS"] = "1"
    installation = find_installation()
    if installation is None:
        raise SystemExit("no ComfyUI found; name one with --comfyui")
    device = ("--cpu",) if options.device == "cpu" else ()
    with (
        tempfile.TemporaryDirectory() as base,
        running(installation, Path(base), other_front_end(), [NODES_FOR_TESTS], device) as host,
    ):
        info = host.object_info()
        saving = PromptBuilder()
        saving.add("TestSaveTinyModel", family="sd3")
        host.queue(saving.prompt)
        print("| batch | " + " | ".join(TRAINERS) + " | ratio, all | ratio, preset | goal | peak MB |")
        print("|---" * (len(TRAINERS) + 5) + "|")
        for batch in options.batches:
            rates: dict[str, list[float]] = {name: [] for name in TRAINERS}
            peaks: dict[str, list[float]] = {name: [] for name in TRAINERS}
            for turn in range(options.rounds):
                for name, add in TRAINERS.items():
                    seed = batch * 100 + turn
                    # About as long for each: the host's own gets slower with the square of the batch.
                    steps = options.steps // (batch if name == "host's own" else 1)
                    short, _ = run(host, info, add, batch, 5, seed)
                    long, memory = run(host, info, add, batch, steps + 5, seed)
                    rates[name].append(steps / (long - short))
                    peaks[name].append(memory)
            best = [max(found) for found in rates.values()]
            memory_used = " / ".join(f"{min(found):.0f}" for found in peaks.values())
            figures = [f"{rate:.1f}/s" for rate in best] + [f"{rate / best[0]:.2f}" for rate in best[1:]]
            print(f"| {batch} | {' | '.join(figures)} | {GOALS[batch]} | {memory_used} |", flush=True)


if __name__ == "__main__":
    main()
