"""Do rollouts help a LoRA? Arms x seeds on the demo model, paired by seed.

    python benchmarks/study.py [--results FILE] [--seeds 8] [--minutes 70] [--arms plain residual]
    python benchmarks/study.py --table [docs/study.json]    print the stored study
    python benchmarks/study.py --save docs                  write study.json and study.png there
    python benchmarks/study.py --quick                      a small version of everything, in about a minute

The results file has a line for each run that has ended; a study that was killed goes on where it was.
What follows was written before any result of an arm with rollouts existed; docs/study.md has the outcome.

**Runs.** The quick start's model, 24 pictures and settings (LoRA rank 8, batch 8, AdamW 2e-3 cosine, 300 steps).
With one seed all arms have the same first weights, batches, noise levels, noise and dropped captions, and those
with rollouts of one length distribution roll out the same samples equally far.

| arm | rollouts (per sample: chance, steps of 1/20 of the trajectory) | optimiser steps |
|---|---|---|
| plain | none | N = 300 |
| plain, longer | none | as long as N steps of `quickstart` cost |
| residual | 0.5, 0 to 3, target `residual` | N |
| clean | 0.5, 0 to 3, target `clean`, the published one | N |
| clean, gentle | 0.25, 0 to 1, target `clean`, as careful users of the published form have it | N |
| solver_error | 0.5, 0 to 3, target `solver_error` | N |
| quickstart | as `residual`, with ReflexFlow (beta1 0.1): what workflows/quickstart.json has | N |
| quickstart, shorter | as `quickstart` | as long as N plain steps cost |
| mixflow | none; every sample up to 0.2 of the way noisier than told (not run yet) | N |
| guided | as `residual`, own steps at CFG 2 (not run yet) | N |
| guided, shorter | as `guided` (not run yet) | as long as N plain steps cost |

Cost is counted in forward evaluations, of which a training row takes two (`TRAIN_COST`); the processor time is told.
The learning rate falls over an arm's own number of steps. `clean, gentle` runs last, if there is time.

**Moments.** `end`: after the last step. `early`: after N / 3 steps, since a pilot of the plain arm (another seed)
found that the style rate is at its ceiling, 96 %, from there on. `stopped`: at the least held-out loss of the states
after every 50 steps and at the end, chosen on one half of the 24 held-out pictures and measured on the other, for both
halves.

**Metrics**, on the 24 held-out pictures and their captions (`unseen`), and on the 24 of the training set (`taught`):
- `loss`: teacher-forced, the same noise for all;
- of pictures drawn with unipc 2, CFG 2, at 20 (`@20`) and 8 steps (`@8`): `style`, the classifier's mean probability;
  `rate`, the share above its threshold; `distance`, the energy distance of the classifier's features to the real
  pictures' (0 for one distribution; the row `real` has what the taught pictures give); `nearest`, the RMS pixel
  distance to the nearest training picture (copying lowers it); `own`, that to the real picture of the caption;
- of the model's own trajectories at CFG 1 (unipc 2, 10 steps; training/exposure.py): `exposure`, the energy distance to
  the forward process above its floor, mean over noise levels; `power` of the final latents over that of the data (1
  is right); `latents`, the energy distance of the final latents to the data.
The main metric is `distance@20` on unseen captions; then come `loss` and `style@20`. All others describe.

**Statistics.** Per metric and comparison: the mean over seeds of the paired differences, its standard error, and
Student's 95 % interval. A difference whose interval contains 0 is called indistinguishable. Of many such intervals
about one in twenty misses 0 by chance. The number of seeds is what fits into the time; results do not decide it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rollout_trainer.demo.style import THRESHOLD, style_net, style_probability
from rollout_trainer.training.conditioning import select
from rollout_trainer.training.data.dataset import LatentDataset, read_image_folder
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.data.images import ImageDataset
from rollout_trainer.training.files import write_atomically
from rollout_trainer.training.lora.adapter import AdapterState, LoRAConfig
from rollout_trainer.training.models.diffusers import DiffusersModel
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.models.source import LoadedModel
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.objective.rollout import expected_extra_forwards
from rollout_trainer.training.pictures.exposure import energy_distance, exposure_bias
from rollout_trainer.training.pictures.sampling import sample
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.optim import OptimizerConfig
from rollout_trainer.training.trainer.trainer import Trainer, training_mode
from rollout_trainer.training.trial.results import Metrics, Result, Table, go_on, read
from rollout_trainer.training.trial.statistics import STUDENT as STUDENT
from rollout_trainer.training.trial.statistics import Comparison, Estimate, difference, differences

ROOT = Path(__file__).resolve().parent.parent
TRAIN_COST = 2.0
"""Forward evaluations that a training row costs: forward and activations' gradients; a LoRA's own are small."""
CFG = 2.0


# --- the arms -----------------------------------------------------------------------------------

PLAIN = RolloutConfig(reflexflow=ReflexFlowConfig("off"))
RESIDUAL = replace(PLAIN, max_step_offset=3, probability=0.5, steps_per_trajectory=20)
QUICKSTART = replace(RESIDUAL, reflexflow=ReflexFlowConfig(beta1=0.1))


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    rollout: RolloutConfig
    budget: RolloutConfig | None = None
    """The arm trains as many steps as cost what the full number of steps costs with this; None: the full number."""

    def steps(self, full: int) -> int:
        """Optimiser steps, where an arm without a budget of its own has `full`."""
        return round(full * step_cost(self.budget or self.rollout) / step_cost(self.rollout))


def step_cost(rollout: RolloutConfig) -> float:
    """Expected forward evaluations per sample of an optimiser step."""
    active = rollout.rolls_out and rollout.reflexflow.active("flow")
    return TRAIN_COST + expected_extra_forwards(rollout, active)


ARMS = {
    "plain": Arm(PLAIN),
    "plain, longer": Arm(PLAIN, budget=QUICKSTART),
    "residual": Arm(RESIDUAL),
    "clean": Arm(replace(RESIDUAL, target="clean")),
    "solver_error": Arm(replace(RESIDUAL, target="solver_error")),
    "quickstart": Arm(QUICKSTART),
    "quickstart, shorter": Arm(QUICKSTART, budget=PLAIN),
    "clean, gentle": Arm(replace(RESIDUAL, target="clean", max_step_offset=1, probability=0.25)),
    "mixflow": Arm(replace(PLAIN, target="mixflow", probability=1.0)),
    "guided": Arm(replace(RESIDUAL, guidance=CFG)),
    "guided, shorter": Arm(replace(RESIDUAL, guidance=CFG), budget=PLAIN),
}


@dataclass(frozen=True)
class Plan:
    """How large the study is."""

    steps: int = 300
    """Optimiser steps of the plain arm."""
    every: int = 50
    """Optimiser steps between the states that early stopping chooses from; `early` is the one at a third."""
    solver_steps: tuple[int, int] = (8, 20)
    """Few and many steps to draw with."""
    exposure_steps: int = 10
    """Steps of the own trajectories whose exposure bias is measured."""
    pictures: int = 24
    """Taught pictures, and unseen ones; even."""

    def config(self, arm: Arm, seed: int) -> TrainConfig:
        """The quick start's settings with the arm's rollouts."""
        return TrainConfig(
            steps=arm.steps(self.steps),
            batch_size=8,
            seed=seed,
            lora=LoRAConfig(
                rank=8,
                alpha=8.0,
                targets=(
                    r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$",
                    r"ff(_context)?\.net\.(0\.proj|2)$",
                ),
            ),
            optimizer=OptimizerConfig(
                lr=2e-3, weight_decay=0.0, schedule="cosine", warmup_steps=10, final_lr=0.1
            ),
            caption_dropout=0.05,
            rollout=arm.rollout,
        )


QUICK = Plan(steps=6, every=2, solver_steps=(2, 3), exposure_steps=2, pictures=4)


# --- what is measured on ------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """N captioned drawings of the style."""

    data: LatentDataset
    """In one bucket."""
    pixels: Tensor
    """[N, 3, H, W] in [0, 1], through the autoencoder as the model's own pictures are."""
    features: Tensor
    """[N, 768], the classifier's."""

    @classmethod
    def encoded(cls, images: ImageDataset, source: DiffusersModel, count: int) -> Pictures:
        """Encode the first `count` pictures."""
        data = encode(replace(images, items=images.items[:count]), source).held()
        pixels = source.decode_latents(data.buckets[0].latents)
        return cls(data, pixels, style_net().pooled(pixels))

    @property
    def captions(self) -> tuple[str, ...]:
        """N captions."""
        return self.data.buckets[0].captions

    def halves(self) -> list[LatentDataset]:
        """The first and the second half of the pictures."""
        return [rows_of(self.data, rows) for rows in torch.arange(len(self.data)).chunk(2)]


def rows_of(data: LatentDataset, rows: Tensor) -> LatentDataset:
    """The samples numbered `rows: LongTensor [B]` of the only bucket."""
    bucket = data.buckets[0]
    part = replace(
        bucket,
        latents=bucket.latents[rows],
        cond=select(bucket.cond, rows),
        repeats=bucket.repeats[rows],
        names=tuple(bucket.names[i] for i in rows),
        captions=tuple(bucket.captions[i] for i in rows),
    )
    return replace(data, buckets=(part,))


@dataclass(frozen=True)
class Lab:
    """The demo model and its pictures."""

    source: DiffusersModel
    taught: Pictures
    unseen: Pictures

    @classmethod
    def of_the_demo(cls, count: int, device: str = "cpu") -> Lab:
        """Load and encode `count` pictures of each kind, the unseen ones in the order of their list."""
        demo = ROOT / "demo"
        source = load_diffusers(demo / "model", device)
        captions = (demo / "unseen_captions.txt").read_text(encoding="utf-8").split("\n")
        unseen = read_image_folder(demo / "unseen", default_caption="")
        items = {item.path.stem.replace("-", " "): item for item in unseen.items}
        found = [(items[line.partition(",")[0].replace("-", " ")], line) for line in captions if line]
        ordered = replace(unseen, items=tuple(replace(item, caption=line) for item, line in found))
        taught = Pictures.encoded(read_image_folder(demo / "data"), source, count)
        return cls(source, taught, Pictures.encoded(ordered, source, count))


# --- one run ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A state of a run."""

    step: int
    adapter: AdapterState
    losses: tuple[float, ...]
    """Held-out loss of either half."""


def train(lab: Lab, config: TrainConfig, every: int) -> tuple[list[Checkpoint], Metrics]:
    """Train an arm; return its states and what it cost: processor seconds, evaluations by kind."""
    halves = lab.unseen.halves()
    states, seconds = [], 0.0
    with training_mode(), Trainer(lab.source, lab.taught.data, config) as trainer:
        while trainer.done < config.steps:
            begin = time.process_time()
            trainer.step()
            seconds += time.process_time() - begin
            if trainer.done % every == 0 or trainer.done == config.steps:
                losses = tuple(trainer.validate(half) for half in halves)
                states.append(Checkpoint(trainer.done, trainer.adapter.state(), losses))
        rows = trainer.meter.rows
    kinds = ("train", "rollout", "clean")
    return states, {"steps": config.steps, "seconds": seconds} | {f"rows.{k}": rows[k] for k in kinds}


def run_arm(lab: Lab, plan: Plan, name: str, seed: int) -> Result:
    """Train an arm and measure it at its three moments."""
    states, cost = train(lab, plan.config(ARMS[name], seed), plan.every)
    models = [LoadedModel(lab.source, state.adapter) for state in states]
    noise = 1000 * (seed + 1)
    few, many = plan.solver_steps

    early = next(i for i, state in enumerate(states) if state.step >= plan.steps / 3)
    chosen = [best(states, half) for half in (1, 0)]  # the first half is measured where the second was best
    stopped = {
        "step": statistics.fmean(states[i].step for i in chosen),
        "unseen.loss": statistics.fmean(states[i].losses[half] for half, i in enumerate(chosen)),
        **drawn(lab, lab.unseen, [models[i] for i in chosen], many, noise, "unseen", "@20"),
    }
    return Result(
        name,
        seed,
        {
            "end": cost | at_the_end(lab, plan, models[-1], states[-1].losses, noise),
            "early": drawn(lab, lab.unseen, [models[early]] * 2, few, noise, "unseen", "@8")
            | {"unseen.loss": statistics.fmean(states[early].losses)},
            "stopped": stopped,
        },
    )


def best(states: Sequence[Checkpoint], half: int) -> int:
    """The index of the state with the least loss on a half of the held-out pictures."""
    return min(range(len(states)), key=lambda i: states[i].losses[half])


def at_the_end(lab: Lab, plan: Plan, model: LoadedModel, losses: Sequence[float], noise: int) -> Metrics:
    """Every metric of one model."""
    few, many = plan.solver_steps
    return {
        "unseen.loss": statistics.fmean(losses),
        **drawn(lab, lab.unseen, [model] * 2, many, noise, "unseen", "@20"),
        **drawn(lab, lab.unseen, [model] * 2, few, noise, "unseen", "@8"),
        **drawn(lab, lab.taught, [model] * 2, few, noise, "taught", "@8"),
        **exposed(model, lab.unseen, plan.exposure_steps, noise, "unseen"),
        **exposed(model, lab.taught, plan.exposure_steps, noise, "taught"),
    }


def drawn(
    lab: Lab, real: Pictures, models: Sequence[LoadedModel], steps: int, noise: int, label: str, mark: str
) -> Metrics:
    """Metrics of pictures drawn for the captions of `real`: one part of them by each of the models."""
    size = len(real.captions) // len(models)
    pixels = torch.cat(
        [
            sample(
                model, real.captions[i * size : (i + 1) * size], steps=steps, cfg=CFG, seed=noise + i * size
            )
            for i, model in enumerate(models)
        ]
    )
    seen = look(pixels.cpu(), real, lab.taught)
    return {f"{label}.{name}{mark}": value for name, value in seen.items()}


def look(pixels: Tensor, real: Pictures, taught: Pictures) -> Metrics:
    """Metrics of pictures [N, 3, H, W], the i-th of which has the i-th caption of `real`."""
    probability = style_probability(pixels)
    apart = torch.cdist(pixels.flatten(1), taught.pixels.flatten(1)) / math.sqrt(pixels[0].numel())
    return {
        "style": float(probability.mean()),
        "rate": float((probability > THRESHOLD).float().mean()),
        "distance": float(energy_distance(style_net().pooled(pixels), real.features)),
        "nearest": float(apart.min(1).values.mean()),
        "own": float((pixels - real.pixels).square().mean((1, 2, 3)).sqrt().mean()),
    }


def exposed(model: LoadedModel, real: Pictures, steps: int, noise: int, label: str) -> Metrics:
    """How the states of the model's own trajectories differ from noised real pictures."""
    bias = exposure_bias(model, real.data, len(real.data), steps, sampler="unipc", seed=noise)
    return {
        f"{label}.exposure": float((bias.energy - bias.energy_floor).mean()),
        f"{label}.power": float(bias.power[-1]),
        f"{label}.latents": float(bias.energy[-1]),
    }


# --- what the metrics are compared with ---------------------------------------------------------

BASE, REAL = "base", "real"


def untrained(lab: Lab, plan: Plan) -> Result:
    """The base model's metrics."""
    with training_mode(), Trainer(lab.source, lab.taught.data, plan.config(ARMS["plain"], 0)) as trainer:
        losses = [trainer.validate(half) for half in lab.unseen.halves()]
    return Result(BASE, 0, {"end": at_the_end(lab, plan, LoadedModel(lab.source), losses, 1000)})


def real_pictures(lab: Lab) -> Result:
    """The unseen pictures' own metrics; distances are those of the two sets of 24, whose captions differ.

    `distance.spread` is the standard deviation of the distance of random halves of all 48: that of chance.
    """
    itself = look(lab.unseen.pixels, lab.unseen, lab.taught)
    seen = {f"unseen.{name}@20": value for name, value in itself.items()}
    features = torch.cat([lab.taught.features, lab.unseen.features])
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(features), generator=generator).chunk(2) for _ in range(200)]
    chance = [float(energy_distance(features[a], features[b])) for a, b in orders]
    seen["unseen.distance@20"] = float(energy_distance(lab.taught.features, lab.unseen.features))
    return Result(REAL, 0, {"end": seen | {"distance.spread": statistics.stdev(chance)}})


# --- statistics ---------------------------------------------------------------------------------

EQUAL_STEPS = ("residual", "quickstart", "clean", "clean, gentle", "solver_error", "mixflow", "guided")
COMPARISONS = (
    *(Comparison(f"{arm} - plain", arm, "plain") for arm in EQUAL_STEPS),
    Comparison("quickstart - plain, longer", "quickstart", "plain, longer"),
    Comparison("residual - plain, longer", "residual", "plain, longer"),
    Comparison("quickstart, shorter - plain", "quickstart, shorter", "plain"),
    Comparison("guided, shorter - plain", "guided, shorter", "plain"),
    Comparison("plain, stopped - plain", "plain", "plain", "stopped"),
    Comparison("quickstart - plain, stopped", "quickstart", "plain", "end", "stopped"),
    *(Comparison(f"{arm} - plain, both stopped", arm, "plain", "stopped", "stopped") for arm in EQUAL_STEPS),
)
"""At equal steps, at equal compute, and with early stopping."""
LOWER_IS_BETTER = ("loss", "distance", "own", "exposure", "latents")
HIGHER_IS_BETTER = ("style", "rate")
MAIN: tuple[str, ...] = ("unseen.distance@20", "unseen.loss", "unseen.style@20")
OTHERS: tuple[str, ...] = (
    "unseen.distance@8",
    "unseen.style@8",
    "unseen.own@20",
    "unseen.nearest@20",
    "unseen.exposure",
)
TAUGHT: tuple[str, ...] = (
    "unseen.power",
    "unseen.latents",
    "taught.distance@8",
    "taught.exposure",
    "taught.power",
)
STOPPED: tuple[str, ...] = ("step", *MAIN)
EARLY: tuple[str, ...] = ("unseen.distance@8", "unseen.loss", "unseen.style@8", "unseen.rate@8")
COST: tuple[str, ...] = ("steps", "seconds", "rows.train", "rows.rollout", "rows.clean")


def tabulate(results: Sequence[Result]) -> Table:
    """The results by arm and seed, what the metrics are compared with first."""
    table: dict[str, dict[int, dict[str, Metrics]]] = {}
    order = [BASE, REAL, *ARMS]
    results = sorted(results, key=lambda result: order.index(result.arm))
    for result in results:
        table.setdefault(result.arm, {})[result.seed] = result.metrics
    return table


def verdict(metric: str, estimate: Estimate) -> str:
    """better, worse, up, down, or nothing where 0 is in the interval."""
    if not estimate.distinct:
        return ""
    up = estimate.mean > 0
    kind = metric.split(".")[-1].partition("@")[0]
    if kind in LOWER_IS_BETTER:
        return "worse" if up else "better"
    if kind in HIGHER_IS_BETTER:
        return "better" if up else "worse"
    return "up" if up else "down"


# --- output -------------------------------------------------------------------------------------


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def report(table: Table) -> None:
    """Print the means of all arms and the paired differences, behind each name the number of seeds."""
    moments = [("at the end", "end", metrics) for metrics in (COST, MAIN, OTHERS, TAUGHT)]
    for title, at, metrics in (*moments, ("stopped", "stopped", STOPPED), ("early", "early", EARLY)):
        means = {
            f"{arm} ({len(table[arm])})": [mean_cell(table[arm], m, at) for m in metrics] for arm in table
        }
        print_rows(f"{title}: mean ± standard error", metrics, means)
    for metrics in (MAIN, OTHERS, TAUGHT):
        cells = {
            f"{c.title} ({len(differences(table, c, MAIN[0]))})": [
                difference_cell(table, c, m) for m in metrics
            ]
            for c in COMPARISONS
        }
        print_rows("difference [95 % interval]", metrics, cells)
    shown = [difference(table, c, m) for m in (*MAIN, *OTHERS, *TAUGHT) for c in COMPARISONS]
    found = [e.distinct for e in shown if e is not None]
    print(
        f"{sum(found)} of {len(found)} intervals leave 0 out; chance alone would make it {len(found) / 20:.0f}."
    )


def print_rows(title: str, metrics: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Print a table without the rows that have nothing in it."""
    print_table([title, *metrics], [[name, *cells] for name, cells in rows.items() if any(cells)])


def mean_cell(runs: Mapping[int, Mapping[str, Metrics]], metric: str, at: str = "end") -> str:
    """Mean and standard error of a metric over the seeds."""
    values = [run[at][metric] for run in runs.values() if metric in run.get(at, {})]
    if len(values) < 2:
        return f"{values[0]:.4g}" if values else ""
    estimate = Estimate.of(values)
    return f"{estimate.mean:.4g} ± {estimate.error:.2g}"


def difference_cell(table: Table, comparison: Comparison, metric: str) -> str:
    """A paired difference, its interval and what it says."""
    e = difference(table, comparison, metric)
    if e is None:
        return ""
    return f"{e.mean:+.4f} [{e.low:+.4f}, {e.high:+.4f}] {verdict(metric, e)}".rstrip()


def plot(table: Table, path: Path) -> None:
    """Draw the differences of the main metrics: every seed, the mean and its interval."""
    from matplotlib.figure import Figure

    rows = [c for c in COMPARISONS if difference(table, c, MAIN[0])]
    figure = Figure(figsize=(12, 0.36 * len(rows) + 1.4), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(MAIN), sharey=True), MAIN, strict=True):
        for y, comparison in enumerate(rows):
            values = differences(table, comparison, metric)
            e = Estimate.of(values)
            colour = {"better": "#1a7f37", "worse": "#cf222e"}.get(verdict(metric, e), "#6e7781")
            axis.plot(values, [y] * len(values), "|", color=colour, alpha=0.5)
            axis.errorbar(e.mean, y, xerr=e.high - e.mean, fmt="o", color=colour, capsize=3)
        axis.axvline(0, color="black", lw=0.8)
        better = "right" if verdict(metric, Estimate(1, 0, 1, 1)) == "better" else "left"
        axis.set(title=metric, xlabel=f"difference; {better} is better")
        axis.grid(axis="x", alpha=0.3)
    seeds = [len(differences(table, c, MAIN[0])) for c in rows]
    axis.set_yticks(range(len(rows)), [f"{c.title} ({n})" for c, n in zip(rows, seeds, strict=True)])
    axis.invert_yaxis()
    figure.savefig(path, dpi=90)


def save(results: Sequence[Result], folder: Path) -> None:
    """Write the stored study: per-seed numbers to five digits, and the plot."""
    plain = [asdict(result) for result in results]
    for result in plain:
        for metrics in result["metrics"].values():
            metrics.update({name: float(f"{value:.5g}") for name, value in metrics.items()})
    lines = ",\n ".join(json.dumps(result) for result in plain)
    write_atomically(folder / "study.json", f"[{lines}]\n".encode())
    plot(tabulate(results), folder / "study.png")


def study(
    path: Path, plan: Plan, arms: Sequence[str], seeds: int, minutes: float, device: str = "cpu"
) -> None:
    """Run what is missing of the study, all arms of a seed before the next seed."""
    until = time.monotonic() + 60 * minutes
    lab = Lab.of_the_demo(plan.pictures, device)
    references = {BASE: partial(untrained, lab, plan), REAL: partial(real_pictures, lab)}

    def run(arm: str, seed: int) -> Result:
        return references[arm]() if arm in references else run_arm(lab, plan, arm, seed)

    jobs = [(arm, 0) for arm in references] + [(arm, seed) for seed in range(seeds) for arm in arms]
    go_on(path, jobs, run, until, say=partial(print, flush=True))


def main() -> None:
    """Run, print or save the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "out" / "study.jsonl", help="one line per run")
    parser.add_argument("--seeds", type=int, default=8, help="runs of every arm, 2 to 16")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run begins after so long")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="these arms alone")
    parser.add_argument("--device", default="cpu", help="where the models compute, cpu or cuda")
    parser.add_argument("--table", type=Path, nargs="?", const=ROOT / "docs" / "study.json", metavar="JSON")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write study.json and study.png there")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds of tiny runs; its figures mean nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table:
        stored = json.loads(options.table.read_text(encoding="utf-8"))
        report(tabulate([Result(**result) for result in stored]))
    elif options.quick:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "study.jsonl"
            study(path, QUICK, options.arms, 2, options.minutes, options.device)
            report(tabulate(read(path)))
    elif options.save:
        save(read(options.results), options.save)
    else:
        study(options.results, Plan(), options.arms, options.seeds, options.minutes, options.device)
        report(tabulate(read(options.results)))


if __name__ == "__main__":
    main()
