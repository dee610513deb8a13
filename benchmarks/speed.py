"""Print how fast training is beside others: a plain loop, several processes, a long run, a save.

    python benchmarks/speed.py [--parts abcde] [--model demo/model] [--rounds 9] [--kinds plain] [--steps 100000]

(a) steps per second beside the plain loop of diffusers and peft (train_dreambooth_lora_sd3 with cached latents and
    texts), batch 1, 4 and 8, float32 and bfloat16; contestants take turns, processor time, one thread;
(b) two processes of one thread against one process of one thread, with and without rollouts, wall time; beside it what
    the machine allows: two processes with half of the batch each that know nothing of each other, and what the network
    does: one with half of the batch;
(c) a run of many steps of a model that costs nothing: steps per second of the last thousand against the first, memory;
(d) the time that a save in mid-run takes from the loop, for a state of 500 MB;
(e) how much more the busiest of several processes has to do than the mean one, counted.

(a) wants a quiet machine, (b) one with two free cores. The package must be importable (`pip install -e .`).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rollout_trainer.samplers import FlowSchedule
from rollout_trainer.training.conditioning import Cond
from rollout_trainer.training.data.dataset import Bucket, LatentDataset, read_image_folder
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.lora.adapter import LoRAConfig, target_modules
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.models.source import Denoiser
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.objective.rollout import draw_plan, row_evaluations
from rollout_trainer.training.objective.timesteps import draw_u
from rollout_trainer.training.runs.live import Live
from rollout_trainer.training.runs.run import Stage, starting
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.deal import deal
from rollout_trainer.training.trainer.optim import OptimizerConfig
from rollout_trainer.training.trainer.ranks import joined
from rollout_trainer.training.trainer.trainer import StepReport, Trainer

ROOT = Path(__file__).resolve().parent.parent
LORA = LoRAConfig(rank=8, alpha=8.0, preset="attention")


def config_of(batch: int, rollout: RolloutConfig | None = None) -> TrainConfig:
    """The settings of every contestant."""
    return TrainConfig(
        steps=10_000,
        batch_size=batch,
        lora=LORA,
        optimizer=OptimizerConfig(lr=1e-5),
        rollout=rollout or RolloutConfig(),
    )


# (a) the plain loop


class Peer:
    """diffusers' train_dreambooth_lora_sd3 with cached latents and texts, on the same layers."""

    def __init__(self, source: Any, data: LatentDataset, batch: int) -> None:
        from accelerate import Accelerator
        from diffusers import FlowMatchEulerDiscreteScheduler
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        self.accelerator = Accelerator(cpu=True)
        network = copy.deepcopy(source.module)
        network.requires_grad_(False)
        names = target_modules(network, source.default_lora_targets)
        network.add_adapter(LoraConfig(r=8, lora_alpha=8, init_lora_weights="gaussian", target_modules=names))
        cast_training_params([network], dtype=torch.float32)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, betas=(0.9, 0.99), weight_decay=0.01)
        schedule = get_scheduler("constant", optimizer=optimizer)
        rows = data.batch(torch.arange(len(data)))
        tensors = torch.utils.data.TensorDataset(rows.x0, rows.cond["context"], rows.cond["pooled"])
        loader = torch.utils.data.DataLoader(tensors, batch_size=batch, shuffle=True, drop_last=True)
        self.network, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            network, optimizer, loader, schedule
        )
        self.noise = FlowMatchEulerDiscreteScheduler(shift=3.0)
        self.dtype = source.dtype
        self.batches = iter(self.loader)

    def drawn(self) -> Any:
        """The next batch."""
        try:
            return next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            return next(self.batches)

    def sigmas(self, timesteps: Tensor, x: Tensor) -> Tensor:
        """The noise levels of timesteps, as that script looks them up."""
        places = [(self.noise.timesteps == t).nonzero().item() for t in timesteps]
        return self.noise.sigmas.to(x.dtype)[places].reshape(-1, *[1] * (x.ndim - 1))

    def step(self) -> float:
        """One step."""
        from diffusers.training_utils import (
            compute_density_for_timestep_sampling,
            compute_loss_weighting_for_sd3,
        )

        x, context, pooled = (t.to(self.dtype) for t in self.drawn())
        noise = torch.randn_like(x)
        u = compute_density_for_timestep_sampling("logit_normal", len(x), 0.0, 1.0, 1.29)
        timesteps = self.noise.timesteps[(u * self.noise.config.num_train_timesteps).long()]
        sigma = self.sigmas(timesteps, x)
        noisy = (1 - sigma) * x + sigma * noise
        texts = {"encoder_hidden_states": context, "pooled_projections": pooled}
        output = self.network(hidden_states=noisy, timestep=timesteps, **texts, return_dict=False)[0]
        denoised = output * -sigma + noisy
        weight = compute_loss_weighting_for_sd3("logit_normal", sigmas=sigma)
        error = weight.float() * (denoised.float() - x.float()).square()
        loss = error.reshape(len(x), -1).mean(1).mean()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def beside_the_plain_loop(options: argparse.Namespace) -> None:
    """Part (a)."""
    print(
        "(a) Our steps per second over those of the plain diffusers + peft loop; the goal is at least 1.1\n"
    )
    print(
        "| weights | batch | plain loop, ms | ours, ms | ratio | range |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for dtype in (torch.float32, torch.bfloat16):
        source = load_diffusers(options.model, "cpu", dtype)
        data = encode(read_image_folder(ROOT / "demo" / "data"), source)
        for batch in (1, 4, 8):
            with Trainer(copy.deepcopy(source), data, config_of(batch)) as trainer:
                turns = taken_in_turns([Peer(source, data, batch).step, trainer.step], options.rounds)
            ratios = [theirs / ours for theirs, ours in turns]
            theirs, ours = (statistics.median(column) * 1e3 for column in zip(*turns, strict=True))
            cells = f"{theirs:.1f} | {ours:.1f} | {statistics.median(ratios):.3f}"
            print(f"| {dtype} | {batch} | {cells} | {min(ratios):.2f} to {max(ratios):.2f} |", flush=True)


def taken_in_turns(runs: list[Callable[[], object]], rounds: int, n: int = 12) -> list[list[float]]:
    """Processor seconds a step of every contestant in every round, in which they change places after every step."""

    def seconds(run: Callable[[], object]) -> float:
        begin = time.process_time()
        run()
        return time.process_time() - begin

    found = [[[seconds(run) for run in runs] for _ in range(n)] for _ in range(rounds + 1)]
    return [[statistics.mean(column) for column in zip(*turn, strict=True)] for turn in found[1:]]


# (b) two processes

KINDS = {
    "plain": RolloutConfig(),
    "rollouts": RolloutConfig(max_step_offset=10, probability=1.0),
}


def two_processes(options: argparse.Namespace) -> None:
    """Part (b)."""
    print("\n(b) Two processes of one thread against one; the goal is at least 1.8\n")
    print("| | batch | one, steps/s | two, steps/s | ratio | two apart | one with half |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind, batch in itertools.product(options.kinds, (8, 32)):
        turns = [
            (
                speed_of(options, kind, batch, 1),
                speed_of(options, kind, batch, 2),
                speed_of(options, kind, batch // 2, 1, groups=2),
                speed_of(options, kind, batch // 2, 1),
            )
            for _ in range(3)
        ]
        one, *others = map(statistics.median, zip(*turns, strict=True))
        ratios = " | ".join(f"{other / one:.2f}" for other in others)
        print(f"| {kind} | {batch} | {one:.2f} | {others[0]:.2f} | {ratios} |", flush=True)


def speed_of(options: argparse.Namespace, kind: str, batch: int, size: int, groups: int = 1) -> float:
    """Steps per second of `size` processes with `batch` rows in all, the slowest of so many `groups` at once."""
    command = [sys.executable, __file__, "--rank", kind, "--batch", str(batch), "--model", str(options.model)]
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for group in [group_of(size) for _ in range(groups)]
        for rank in range(size)
    ]
    return min(float(process.communicate()[0].split()[-1]) for process in running)


def group_of(size: int) -> dict[str, str]:
    """What a launcher tells the processes of a group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}


def rank(options: argparse.Namespace) -> None:
    """Train as one of the processes of part (b), and print steps per second."""
    source = load_diffusers(options.model, "cpu")
    data = encode(read_image_folder(ROOT / "demo" / "data"), source)
    ranks = joined(source.device)
    with Trainer(source, data, config_of(options.batch, KINDS[options.rank]), None, ranks) as trainer:
        for _ in range(3):
            trainer.step()
        ranks.meet()
        begin, steps = time.perf_counter(), 320 // options.batch
        for _ in range(steps):
            trainer.step()
        ranks.meet()
        print(steps / (time.perf_counter() - begin))


# (c) a long run, (d) a save


class Nothing(nn.Module):
    """A network that costs nothing: one layer of `width` features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        out: Tensor = self.layer(x)
        return out


class NothingDenoiser(Denoiser):
    """`Nothing` as training sees it."""

    prediction = "flow"
    schedule = FlowSchedule(3.0)

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def opened(
        self, training: bool = False, checkpointing: bool = False, regions: Any = None
    ) -> AbstractContextManager[None]:
        """There is nothing to prepare."""
        return nullcontext()

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The layer over the last axis."""
        out: Tensor = self.module(x)
        return out


class NothingSource:
    """The `ModelSource` of `Nothing`, as far as training goes."""

    name = fingerprint = encoder_fingerprint = "nothing"
    device = torch.device("cpu")
    dtype = torch.float32
    prediction = "flow"
    schedule = NothingDenoiser.schedule
    default_lora_targets = ("^layer$",)
    lora_names = "comfyui"

    def __init__(self, width: int, tokens: int = 1) -> None:
        self.module = Nothing(width).requires_grad_(False)
        self.width, self.tokens = width, tokens

    def denoiser(self, dtype: torch.dtype | None = None) -> NothingDenoiser:
        """For training."""
        return NothingDenoiser(self.module)

    def data(self) -> LatentDataset:
        """Four samples."""
        names = ("a", "b", "c", "d")
        latents, context = torch.randn(4, 1, self.tokens, self.width), torch.zeros(4, 1, 1)
        bucket = Bucket(latents, {"context": context}, None, torch.ones(4, dtype=torch.long), names, names)
        return LatentDataset((bucket,), {"context": torch.zeros(1, 1, 1)}, "nothing")


def trained_on_nothing(
    source: NothingSource,
    config: TrainConfig,
    steps: int,
    watch: Any,
    begun: Callable[[Stage], None] | None = None,
) -> None:
    """Train with a panel that watches, as a node does."""
    with (
        tempfile.TemporaryDirectory() as folder,
        starting(folder, "nothing", source, source.data(), config) as stage,  # type: ignore[arg-type]
    ):
        live = Live(stage.run, steps)
        if begun is not None:
            begun(stage)

        def both(report: StepReport) -> None:
            live.add(report)
            if report.step % 20 == 0:
                live.facts()
            watch(report)

        stage.train(steps, both)


def long_run(options: argparse.Namespace) -> None:
    """Part (c)."""
    import psutil

    process, seen = psutil.Process(), []

    def watch(report: StepReport) -> None:
        if report.step % 1000 == 0:
            seen.append((time.process_time(), process.memory_info().rss / 2**20))

    config = TrainConfig(steps=options.steps, lora=LoRAConfig(rank=2, alpha=2.0))
    begin = time.process_time()
    trained_on_nothing(NothingSource(8), config, options.steps, watch)
    first, last = seen[0][0] - begin, seen[-1][0] - seen[-2][0]
    print(f"\n(c) {options.steps} steps of a model that costs nothing; the goal is at least 0.98\n")
    print(
        f"first thousand {1000 / first:.0f} steps/s, last {1000 / last:.0f} steps/s, ratio {first / last:.3f}; "
        f"resident {seen[0][1]:.0f} MiB after 1000 steps, {seen[-1][1]:.0f} MiB at the end"
    )


def a_save(options: argparse.Namespace) -> None:
    """Part (d)."""
    print(
        "\n(d) Saves of a 500 MB state in mid-run, ms; the goal is at most 50 ms in which the loop stands still\n"
    )
    print(
        "| a step | the loop stands still for a save | that step and those until it is written, longer by |"
    )
    print("| ---: | ---: | ---: |")
    for tokens in (1, 64):  # a network that costs nothing, and one of a step of a second
        step, still, longer = (f"{seconds * 1e3:.0f}" for seconds in saves(tokens))
        print(f"| {step} | {still} | {longer} |", flush=True)


def saves(tokens: int) -> tuple[float, float, float]:
    """Seconds: a step, what a save keeps the loop waiting, what the steps beside it take longer in all; medians."""
    every, width, lora = 8, 8192, LoRAConfig(rank=2560, alpha=1.0)  # 42 M weights and AdamW's two moments
    config = TrainConfig(steps=4 * every, save_every=every, lora=lora)
    waited: list[float] = []
    times: list[float] = []
    then = [0.0]

    def begun(stage: Stage) -> None:
        for owner, name in ((stage, "_save_midway"), (stage.trainer, "settle")):
            setattr(owner, name, timed(getattr(owner, name), waited))

    def watch(report: StepReport) -> None:
        now = time.perf_counter()
        times.append(now - then[0])
        then[0] = now

    trained_on_nothing(NothingSource(width, tokens), config, 4 * every - 1, watch, begun)
    step = statistics.median(times[2 : every - 1])
    beside = [sum(times[n - 1 : n - 1 + every]) - every * step for n in (every, 2 * every, 3 * every)]
    return step, sum(waited) / 3, statistics.median(beside)


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """`function`; the wall time of each call goes into `seconds`."""

    def called(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - begin)

    return called


# (e) straggling


def straggling(options: argparse.Namespace) -> None:
    """Part (e)."""
    config = TrainConfig(rollout=KINDS["rollouts"])
    places, lengths = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)

    def work(steps: int) -> float:
        extra = row_evaluations(config.rollout, torch.tensor([steps]), True)
        return 2.0 + (extra if steps else 0)

    def straggle(size: int, n: int) -> float:
        u = draw_u(config.timesteps, n, places, FlowSchedule(3.0))
        plan = draw_plan(config.rollout, 0, u, lengths, 1.0)
        steps = torch.zeros(n, dtype=torch.long)
        if plan is not None:
            steps[plan.rows] = plan.steps
        costs = [work(k) for k in steps.tolist()]
        loads = [0.0] * size
        for cost, owner in zip(costs, deal(costs, size), strict=True):
            loads[owner] += cost
        return max(loads) / statistics.mean(loads)

    print(
        "\n(e) Row-evaluations of the busiest rank over the mean rank's, 1000 steps; the goal is at most 1.1\n"
    )
    print("| ranks | batch | mean | one step in 20 is above |\n| ---: | ---: | ---: | ---: |")
    for size, n in ((2, 8), (4, 8), (4, 16), (4, 32)):
        ratios = sorted(straggle(size, n) for _ in range(1000))
        print(f"| {size} | {n} | {statistics.mean(ratios):.3f} | {ratios[949]:.3f} |", flush=True)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="abcde", help="which of a to e to run")
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model", help="a diffusers folder")
    parser.add_argument("--rounds", type=int, default=9, help="turns of every contestant in (a)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="rows of (b)")
    parser.add_argument("--steps", type=int, default=100_000, help="steps of (c)")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=8, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.rank:
        rank(options)
        return
    print(json.dumps({"torch": torch.__version__, "threads": 1}))
    for letter, part in (
        ("a", beside_the_plain_loop),
        ("b", two_processes),
        ("c", long_run),
        ("d", a_save),
        ("e", straggling),
    ):
        if letter in options.parts:
            part(options)


if __name__ == "__main__":
    main()
