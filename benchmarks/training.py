"""Print what a training step costs: the loop itself, rollouts, reuse, and memory.

    python benchmarks/training.py [--parts abcd] [--compile] [--model demo/model] [--device cpu] [--threads 1]
                                  [--rounds 20]

(a) a step of the loop against bare forward, backward and optimiser of the same model at the same batch;
(b) a step with rollouts of 0 to 10 steps against its forward passes by themselves, against the same rows in full
    batches, and against one row at a time;
(c) a step with reused rollouts against a plain step;
(d) peak memory of both;
(e) with --compile alone: a step with the network's blocks compiled against one without, and how often code is compiled
    after step 20.

In every part the contestants take turns, and what is printed is the median over the turns of the ratio within a turn:
a busy machine is busy for all of them. On the CPU, time is processor time. The tables are Markdown.
The package must be importable (`pip install -e .`).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rollout_trainer.training.conditioning import select
from rollout_trainer.training.data.dataset import LatentDataset, read_image_folder
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.models.diffusers import DiffusersModel
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.models.source import ModelSource
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.objective.states import RolledStates
from rollout_trainer.training.objective.targets import Field, Route, Solver, own_trajectory
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.meter import Kind
from rollout_trainer.training.trainer.optim import OptimizerConfig, build_optimizer
from rollout_trainer.training.trainer.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
BATCH = 8
LONG = RolloutConfig(max_step_offset=10, probability=1.0)
"""The rollouts of part (b): 0..10 steps of 1/50."""
SHORT = RolloutConfig(max_step_offset=5, probability=0.5, reuse=4)
"""Those of part (c)."""

Run = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """What is measured on."""

    source: DiffusersModel
    data: LatentDataset
    rounds: int

    def trainer(
        self,
        rollout: RolloutConfig,
        kind: type[Trainer] = Trainer,
        batch: int = BATCH,
        compiled: bool = False,
    ) -> Trainer:
        """A trainer on a copy of the model: LoRA of rank 8, AdamW. Equal seeds, so equal draws."""
        config = TrainConfig(
            steps=10_000,
            batch_size=batch,
            lora=LoRAConfig(rank=8, alpha=8.0, preset="attention"),
            optimizer=OptimizerConfig(lr=1e-5),
            rollout=rollout,
            compile=compiled,
        )
        return kind(copy.deepcopy(self.source), self.data, config)

    def seconds(self, run: Run) -> float:
        """Time of one run: processor time on the CPU, else until the device has finished."""
        if self.source.device.type == "cpu":
            begin = time.process_time()
            run()
            return time.process_time() - begin
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    def turns(self, runs: dict[str, Run]) -> list[dict[str, float]]:
        """Seconds of every run in every round, after three rounds to warm up."""
        rounds = [{name: self.seconds(run) for name, run in runs.items()} for _ in range(self.rounds + 3)]
        return rounds[3:]


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def ms(turns: list[dict[str, float]], name: str) -> str:
    """Median milliseconds of a run."""
    return f"{statistics.median(turn[name] for turn in turns) * 1e3:.1f}"


def median_ratio(turns: list[dict[str, float]], name: str, base: str) -> float:
    """Median over the rounds of the time of `name` in units of that of `base`."""
    return statistics.median(turn[name] / turn[base] for turn in turns)


class Bare:
    """What no trainer can do without, on a trainer's model and batch: nothing is drawn, moved or written down."""

    def __init__(self, trainer: Trainer) -> None:
        self.denoiser = trainer.denoiser
        u = torch.rand(trainer.config.batch_size, dtype=torch.float64)
        self.inputs = trainer.noised(trainer.order.next(), u)
        self.target = self.inputs.noise - self.inputs.x0
        self.optimizer = build_optimizer(trainer.config.optimizer, trainer.parameters)

    def predict(self, rows: int = BATCH) -> Tensor:
        """One forward pass over the first rows."""
        own, cond = self.inputs, {name: value[:rows] for name, value in self.inputs.cond.items()}
        return self.denoiser.predict(own.x[:rows], own.sigma[:rows], cond)

    def forward(self, rows: int) -> None:
        """One forward pass over so many rows without gradient."""
        with torch.no_grad():
            self.predict(rows)

    def step(self) -> None:
        """Forward, mean squared error, backward, optimiser."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.mse_loss(self.predict(), self.target).backward()
        self.optimizer.step()


# (a) the loop


def overhead(bench: Bench) -> None:
    """Part (a)."""
    trainer = bench.trainer(RolloutConfig())
    bare = Bare(trainer)
    turns = bench.turns({"bare": bare.step, "loop": trainer.step, "again": bare.step})
    print(f"(a) A plain step, batch {BATCH}, LoRA rank 8; the goal is a ratio of at most 1.05\n")
    noise = median_ratio(turns, "again", "bare")
    rows = [
        [ms(turns, "bare"), ms(turns, "loop"), f"{median_ratio(turns, 'loop', 'bare'):.3f}", f"{noise:.3f}"]
    ]
    print_table(["bare, ms", "loop, ms", "ratio", "bare : bare"], rows)


# (b) rollouts


def row_by_row(
    field: Field, route: Route, solver: Solver, path: list[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """`own_trajectory`, one rollout per row."""
    parts = []
    for i in range(len(route.x_source)):
        row = torch.tensor([i], device=route.x_source.device)
        alone = Field(field.model, select(field.cond, row), field.count)
        own = Route(route.x_source[row], route.x_target[row], route.sigmas[[i]])
        parts.append(own_trajectory(alone, own, solver))
    x_hat, velocity = zip(*parts, strict=True)
    return torch.cat(x_hat), torch.cat(velocity)


class RowByRow(Trainer):
    """The naive way: every row is rolled out, and run at its clean interpolant, by itself."""

    def __init__(self, source: ModelSource, data: LatentDataset, config: TrainConfig) -> None:
        super().__init__(source, data, config)
        self.target = replace(self.target, construct=row_by_row)

    def clean_output(self, states: RolledStates) -> Tensor | None:
        """One forward pass per row."""
        if not self.reflexflow:
            return None
        ones = [states.at(torch.tensor([i])) for i in range(len(states))]
        return torch.cat([super(RowByRow, self).clean_output(one) for one in ones])


def no_grad_rows(trainer: Trainer) -> int:
    """Row-evaluations without gradient so far."""
    return trainer.meter.rows["rollout"] + trainer.meter.rows["clean"]


def counted(trainer: Trainer, per_step: list[list[int]]) -> None:
    """One step; the rows of each of its forward passes without gradient are appended."""
    meter, own = trainer.meter, list[int]()
    per_step.append(own)
    count = meter.count

    def noted(kind: Kind, rows: int) -> None:
        count(kind, rows)
        if kind != "train":
            own.append(rows)

    meter.count = noted  # type: ignore[method-assign]
    try:
        trainer.step()
    finally:
        del meter.count


def rollouts(bench: Bench) -> None:
    """Part (b)."""
    rows = []
    every = [("euler", "off"), ("euler", "on"), ("unipc", "off"), ("unipc", "on"), ("rk4", "off")]
    for sampler, switch in every:
        config = replace(LONG, sampler=sampler, reflexflow=ReflexFlowConfig(switch))
        rows.append([sampler, switch, *rollout_row(bench, config)])
    print(
        f"(b) Rollouts of 0..{LONG.max_step_offset} steps, batch {BATCH}, every row, against a bare training step and "
        "the bare forward passes, of as many rows each; the goal is a ratio of at most 1.10. In full batches: its "
        f"rows at 1/{BATCH} of a bare forward pass of {BATCH}\n"
    )
    head = ["solver", "ReflexFlow", "row-evaluations", "step, ms", "its passes, ms", "ratio"]
    print_table([*head, "ours : in full batches", "row by row : ours", "ours : plain"], rows)


def rollout_row(bench: Bench, config: RolloutConfig) -> list[str]:
    """A row of part (b)."""
    ours, naive = bench.trainer(config), bench.trainer(config, RowByRow)
    bare = Bare(bench.trainer(RolloutConfig()))
    passes: list[list[int]] = []
    forwards = {f"forward {n}": partial(bare.forward, n) for n in range(1, BATCH + 1)}
    turns = bench.turns(
        {"train": bare.step, **forwards, "ours": partial(counted, ours, passes), "naive": naive.step}
    )
    passes = passes[-len(turns) :]
    for turn, sizes in zip(turns, passes, strict=True):
        turn["passes"] = turn["train"] + sum(turn[f"forward {n}"] for n in sizes)
        turn["full"] = turn["train"] + sum(sizes) * turn[f"forward {BATCH}"] / BATCH
    pairs = ("ours", "passes"), ("ours", "full"), ("naive", "ours"), ("ours", "train")
    mean = f"{statistics.mean(map(sum, passes)):.1f}"
    return [
        mean,
        ms(turns, "ours"),
        ms(turns, "passes"),
        *(f"{median_ratio(turns, *pair):.2f}" for pair in pairs),
    ]


# (c) reuse


def reuse(bench: Bench) -> None:
    """Part (c). A turn is a whole cycle: one step that rolls out and those that draw from it."""
    rows = []
    every = [(0.5, "on", 4), (0.5, "off", 4), (1.0, "on", 4), (1.0, "off", 4), (0.5, "on", 1)]
    for probability, switch, steps in every:
        config = replace(SHORT, probability=probability, reuse=steps, reflexflow=ReflexFlowConfig(switch))
        plain, ours = bench.trainer(RolloutConfig()), bench.trainer(config)

        def cycle(trainer: Trainer) -> None:
            for _ in range(SHORT.reuse):
                trainer.step()

        turns = bench.turns({"plain": partial(cycle, plain), "ours": partial(cycle, ours)})
        share = no_grad_rows(ours) / ours.meter.rows["train"]
        ratio = median_ratio(turns, "ours", "plain")
        rows.append([str(steps), f"{probability:g}", switch, f"{share:.2f}", f"{ratio:.2f}"])
    print(
        f"(c) Rollouts of 0..{SHORT.max_step_offset} steps, batch {BATCH}, {SHORT.sampler}; the goal is a ratio of at "
        "most 1.5 with reuse 4 and probability 0.5\n"
    )
    print_table(["reuse", "probability", "ReflexFlow", "extra forwards a sample", "step : plain step"], rows)


# (d) memory


def peak(options: argparse.Namespace) -> None:
    """Train in this process and print the most memory that it took, in MiB."""
    bench = make_bench(options)
    with bench.trainer(
        RolloutConfig.from_config_json(json.loads(options.peak)), batch=options.batch
    ) as trainer:
        cuda = bench.source.device.type == "cuda"
        tensors = peak_on_device(trainer) if cuda else 0.0
        for _ in range(8):
            trainer.step()
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux: in KiB
        if not cuda:
            tensors = peak_on_cpu(trainer)
    print(json.dumps({"process": process, "tensors": tensors}))


def peak_on_device(trainer: Trainer) -> float:
    """MiB allocated at most during eight steps, above what was there before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(8):
        trainer.step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def peak_on_cpu(trainer: Trainer) -> float:
    """The same from the allocations and releases that torch's profiler records."""
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(8):
            trainer.step()
    events = profile.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]  # releases are negative
    return max(itertools.accumulate(sizes)) / 2**20


def memories(options: argparse.Namespace) -> None:
    """Part (d). Each figure comes from a process of its own; the median of three."""
    rows = []
    for batch in (BATCH, 4 * BATCH):
        plain = measured_peak(options, RolloutConfig(), batch)
        for name, config in (("(b)", LONG), ("(c)", SHORT), ("(b), reuse 4", replace(LONG, reuse=4))):
            ours = measured_peak(options, config, batch)
            cells = [f"{peaks[kind]:.1f}" for kind in ("process", "tensors") for peaks in (plain, ours)]
            ratios = [ours[kind] / plain[kind] for kind in ("process", "tensors")]
            rows.append([name, str(batch), *cells, *(f"{ratio:.3f}" for ratio in ratios)])
    print(
        "(d) Peak memory, MiB, of the whole process (ru_maxrss; on the CPU only), and of the tensors that the steps "
        "allocate; the goal is a ratio of at most 1.05\n"
    )
    head = ["process, plain", "process, rollout", "tensors, plain", "tensors, rollout"]
    print_table(["rollouts as in", "batch", *head, "ratio, process", "ratio, tensors"], rows)


def measured_peak(options: argparse.Namespace, rollout: RolloutConfig, batch: int) -> dict[str, float]:
    """Medians over three processes of what `peak` prints."""
    command = [sys.executable, __file__, "--peak", json.dumps(rollout.to_config_json())]
    command += ["--batch", str(batch)]
    command += ["--model", str(options.model), "--device", options.device, "--threads", str(options.threads)]
    found = []
    for _ in range(3):
        # The profiler chats on stderr.
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {kind: statistics.median(f[kind] for f in found) for kind in ("process", "tensors")}


# (e) compiled blocks


def compiling(bench: Bench) -> None:
    """Part (e)."""
    from torch._dynamo.utils import counters

    rows = []
    for name, config in (("plain", RolloutConfig()), ("rollouts as in (b)", LONG)):
        plain, ours = bench.trainer(config), bench.trainer(config, compiled=True)
        began, found = time.perf_counter(), counters["stats"]["unique_graphs"]
        told = ours.compile()
        took = f"{time.perf_counter() - began:.0f}"
        print(f"{name}: {told}", file=sys.stderr, flush=True)
        for trainer in (plain, ours):
            for _ in range(20):
                trainer.step()
        graphs = counters["stats"]["unique_graphs"]
        turns = bench.turns({"plain": plain.step, "compiled": ours.step})
        cells = [ms(turns, "plain"), ms(turns, "compiled"), f"{median_ratio(turns, 'plain', 'compiled'):.2f}"]
        late = counters["stats"]["unique_graphs"] - graphs
        rows.append([name, *cells, took, str(graphs - found), str(late)])
    print(f"(e) Compiled blocks, batch {BATCH}; the goal is to compile nothing after step 20\n")
    head = [
        "step, ms",
        "compiled, ms",
        "steps/s : without",
        "compiling, s (wall)",
        "graphs",
        "compiled after step 20",
    ]
    print_table(["", *head], rows)


def make_bench(options: argparse.Namespace) -> Bench:
    """Load the model and encode the demo's pictures."""
    source = load_diffusers(options.model, options.device)
    data = encode(read_image_folder(ROOT / "demo" / "data"), source)
    return Bench(source, data, options.rounds)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="abcd", help="which of a, b, c and d to run")
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model", help="a diffusers folder")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=20, help="turns of every contestant")
    parser.add_argument("--compile", action="store_true", help="run part (e) alone")
    parser.add_argument("--batch", type=int, default=BATCH, help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        peak(options)
        return
    cuda = options.device.startswith("cuda")
    where = torch.cuda.get_device_name() if cuda else f"CPU, {options.threads} thread(s)"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {where}, {options.model.name}\n")
    bench = make_bench(options)
    if options.compile:
        compiling(bench)
        return
    for letter, part in (("a", overhead), ("b", rollouts), ("c", reuse)):
        if letter in options.parts:
            part(bench)
    if "d" in options.parts:
        memories(options)


if __name__ == "__main__":
    main()
