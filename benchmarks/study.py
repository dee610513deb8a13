"""Which ways to train a LoRA earn their cost? Arms x seeds x two sets of pictures, paired by seed.

    python benchmarks/study.py [--results FILE] [--seeds 4] [--minutes 70] [--arms plain mixflow] [--sets faces objects]
    python benchmarks/study.py --table [docs/study.json]    print the stored study
    python benchmarks/study.py --save docs                  write study.json and study.png there
    python benchmarks/study.py --quick                      a small version of everything, in about a minute

A use of `training/trial`: what is said here is arms, pictures and metrics. The results file has a line for each run
that has ended; a study that was killed goes on where it was.
The plan below was committed before the first run of the study. docs/study.md has the outcome.

**Sets.** `faces`: the demo's 24 blob faces, another 24 held out. `objects`: 24 objects in a shaded style ("toy"),
another 24 held out (`demo/make/objects.py`). The base has been shown neither style, but knows all the names in two
others. Of the 24 held out, the first 12 choose each run's best moment by their loss (`validation`); the other 12
judge the loss. Pictures are drawn for all 24.

**Runs.** The quick start's model and settings: LoRA rank 8, batch 8, AdamW 2e-3 with a cosine (5e-4 on `objects`,
where a pilot of plain, seed 0, had its best moment at step 30 of 300 with 2e-3: too early to be told apart), at most
300 steps of `plain`; the other arms have as many as cost the same (counted in forward evaluations, a training row
being two). With one seed all arms have the same first weights, batches, noise levels, noise and dropped captions.
Every arm is validated 20 times in its planned steps and stops when the loss has not fallen for 3 of them; its state
of the least loss is measured. `plain, whole` is plain without stopping, measured at its end. (The loss of `mixflow`
is higher by construction, docs/theory.md, but what matters here is where along its run it is least.)

| arm | what |
|---|---|
| plain | no rollouts |
| mixflow | every sample up to 0.2 of the way noisier than told |
| residual | half of the samples rolled out over 0 to 3 of 20 solver steps, target `residual` |
| guided | the same, own steps at CFG 2 |
| solver_error | the same lengths, target `solver_error` |
| reflexflow | as `residual`, with ReflexFlow (beta1 0.1): what workflows/quickstart.json ships before this study |
| preserve | plain, and for each batch one own state of 24 captions without the trigger, asked for what the base says |
| plain, whole | as `plain`, to its last step: what stopping in time is worth |

`preserve` has weight 1 and 6 steps; its 24 captions are others than those on which bleeding is measured. Where time is
short, the first four arms of all sets and seeds run first, then `plain, whole`, then the rest.

**Added later**, before their own runs, with the results above in view (four seeds of plain, mixflow, preserve and
whole):
- *Is preserve more than weak training?* Arms `plain, rank 2` (rank and alpha 2) and `preserve 0.3` (its weight), on
  the faces; and plain stopped where its style probability at CFG 2 is the mean of preserve's, read off its front
  (benchmarks/fronts.py) on a straight line between two moments. If weak training explains `preserve`, a plain LoRA
  of equal style probability, or of equal style distance, bleeds as little: within the interval.
- *A subject*: set `subject`, 6 drawings of one robot in different poses before 6 backgrounds, 24 more held out
  (`demo/make/subject.py`); 5e-4, batch 6. Arms plain, preserve, mixflow, residual. Of the 24 captions of bleeding 4
  are of the base's own robot; `preserve` is given it before other backgrounds.

**Metrics** of 24 pictures drawn for the held-out captions (unipc 2, 8 steps) at CFG 1, 1.5, 2 and 3; `@own` is each
arm's own best scale, the one with the least mean distance over the seeds:
- `style`: energy distance to the held-out pictures (0 for one distribution) on the features of the demo's style
  classifier. It was trained to tell the faces' style from others, the objects' among those.
- `shapes`: the same on features that nothing was trained for: histograms of oriented gradients (8 x 8 cells of 8
  pixels, 9 directions) and each cell's mean colour.
- `loss`: teacher-forced, of the 12 judging pictures, the same noise for all.
- `blob`: the classifier's mean probability of the faces' style (faces alone).
- `bleed`: how far the LoRA moves what it was not taught. 24 captions without the trigger, 12 of the set's own names
  in the base's two styles, 12 of the other set's, drawn by base and LoRA from the same noise at CFG 2: mean root mean
  square difference of the pixels. `bleed.shapes` is that of the features.
- `chosen`: the loss that chose; `step`: where the best moment was; `trained`: steps until the run stopped; `seconds`:
  processor time of training.
The main metrics are `style@own` and `shapes@own`, then `loss`; for models used without guidance `style@1` and
`shapes@1`; for `preserve`, `bleed` beside `style@own`. All others describe.

**Statistics.** Per set, arm and metric: the mean over seeds of the paired differences to `plain`, and Student's 95 %
interval. Where it holds 0, no difference was seen. A method *wins* where both main metrics are better on both sets,
intervals without 0. Of many intervals about one in twenty misses 0 by chance. The number of seeds is what fits into
the time, the same for all arms of a set where time allows; results do not decide it.

**Best moment.** Of `plain`, stopped by its patience, against `plain, whole` at its end: `loss`, `style@own` and
`shapes@own`, and trained steps as a share of all; and whether `plain, whole` had a better moment after the other had
stopped. The figure to reach: no difference at 0.6 of the steps or fewer.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rollout_trainer.demo.style import style_net, style_probability
from rollout_trainer.training.conditioning import Cond, select
from rollout_trainer.training.data.dataset import LatentDataset
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.data.folders import read_image_folder
from rollout_trainer.training.data.images import ImageDataset
from rollout_trainer.training.files import write_atomically
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.models.diffusers import DiffusersModel
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.models.source import LoadedModel
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.pictures.exposure import energy_distance
from rollout_trainer.training.runs.run import Run, validate
from rollout_trainer.training.trainer.config import TrainConfig
from rollout_trainer.training.trainer.optim import OptimizerConfig
from rollout_trainer.training.trial.results import Metrics, Result, Table, go_on, read, tabulated
from rollout_trainer.training.trial.statistics import STUDENT as STUDENT
from rollout_trainer.training.trial.statistics import Comparison, Estimate, difference, differences
from rollout_trainer.training.trial.trial import BEST, Drawing, Trial, draw, run_name, trained
from rollout_trainer.training.trial.verdict import markdown

ROOT = Path(__file__).resolve().parent.parent
NAMES = ROOT / "demo" / "make" / "names"
END = "end"
CFGS = (1.0, 1.5, 2.0, 3.0)
USED = 2.0
"""The guidance scale at which bleeding is measured."""
PRESERVE = "preserve"
NEVER = 10_000
"""Patience of an arm that trains all its steps."""

# --- the arms -----------------------------------------------------------------------------------

PLAIN = RolloutConfig(reflexflow=ReflexFlowConfig("off"))
RESIDUAL = replace(PLAIN, max_step_offset=3, probability=0.5, steps_per_trajectory=20)
REFLEXFLOW = replace(RESIDUAL, reflexflow=ReflexFlowConfig(beta1=0.1))
WHOLE, WEAK = "plain, whole", "plain, rank 2"
PRESERVE_LESS = "preserve 0.3"
ARMS = {
    "plain": PLAIN,
    "mixflow": replace(PLAIN, target="mixflow", probability=1.0, gamma=0.2),
    "reflexflow": REFLEXFLOW,
    PRESERVE: replace(PLAIN, preserve_rows=1, preserve_steps=6),
    "guided": replace(RESIDUAL, guidance=USED),
    "solver_error": replace(RESIDUAL, target="solver_error"),
    "residual": RESIDUAL,
    WHOLE: PLAIN,
    WEAK: PLAIN,
    PRESERVE_LESS: replace(PLAIN, preserve_rows=1, preserve_steps=6, preserve_weight=0.3),
}
"""In the order in which a seed runs them."""


@dataclass(frozen=True)
class Plan:
    """How large the study is."""

    steps: int = 300
    """Optimiser steps of the plain arm, at most."""
    validations: int = 20
    patience: int = 3
    drawing: Drawing = field(default_factory=lambda: Drawing(steps=8, cfgs=CFGS))
    pictures: int = 24
    """Taught pictures, and held-out ones; even."""

    def config(self, arm: str, lr: float = 2e-3, batch: int = 8) -> TrainConfig:
        """The quick start's settings with the arm's own, stopped at its best moment."""
        rank = 2 if arm == WEAK else 8
        return TrainConfig(
            steps=self.steps,
            batch_size=batch,
            validate_every=max(1, self.steps // self.validations),
            patience=NEVER if arm == WHOLE else self.patience,
            lora=LoRAConfig(
                rank=rank,
                alpha=float(rank),
                targets=(
                    r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$",
                    r"ff(_context)?\.net\.(0\.proj|2)$",
                ),
            ),
            optimizer=OptimizerConfig(
                lr=lr, weight_decay=0.0, schedule="cosine", warmup_steps=10, final_lr=0.1
            ),
            caption_dropout=0.05,
            rollout=ARMS[arm],
        )


QUICK = Plan(steps=6, validations=3, drawing=Drawing(steps=2, cfgs=(1.0, 2.0)), pictures=4)

# --- the pictures -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Views:
    """N pictures as the metrics see them."""

    style: Tensor
    """[N, 768], the style classifier's features."""
    shapes: Tensor
    """[N, 768], of no training."""

    @classmethod
    def of(cls, pixels: Tensor) -> Views:
        """Of pictures [N, 3, H, W] in [0, 1]."""
        return cls(style_net().pooled(pixels), shapes(pixels))


def shapes(pixels: Tensor, cells: int = 8, directions: int = 9) -> Tensor:
    """Histograms of oriented gradients (Dalal and Triggs 2005) and mean colours of cells x cells places.

    Square roots of the gradients' strength by direction, without a sign, linearly shared between neighbouring
    directions; no normalisation, since the drawings' contrast matters. [N, 3, H, W] in [0, 1] -> [N, cells^2 (9 + 3)].
    """
    small = F.interpolate(pixels.float(), size=(8 * cells, 8 * cells), mode="bilinear", antialias=True)
    grey = F.pad(small.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    dx, dy = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2], grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    place = torch.atan2(dy, dx).remainder(math.pi) * (directions / math.pi)  # [N, 1, S, S] in [0, directions)
    apart = (place - torch.arange(directions)[:, None, None]).abs()  # [N, directions, S, S]
    share = (1 - torch.minimum(apart, directions - apart)).clamp(min=0)
    histogram = F.avg_pool2d(share * torch.hypot(dx, dy), 8).sqrt()
    return torch.cat([histogram, F.avg_pool2d(small, 8)], 1).flatten(1)


@dataclass(frozen=True)
class Pictures:
    """A set: what is taught, what is held out, and captions that are neither."""

    name: str
    source: DiffusersModel
    taught: LatentDataset
    """In one bucket, as the next."""
    unseen: LatentDataset
    real: Views
    """Of the unseen pictures, through the autoencoder as the model's own are."""
    outside: Cond
    """Captions without the trigger, on which bleeding is measured."""
    lr: float
    preserve: Sequence[str]
    """Other captions without it, which that arm is given."""
    unmoved: dict[int, Tensor] = field(default_factory=dict)
    """What the base draws for those, by seed: drawn once."""

    def half(self, which: int) -> LatentDataset:
        """The unseen pictures that choose (0), or that judge (1)."""
        return rows_of(self.unseen, torch.arange(len(self.unseen)).chunk(2)[which])

    def trial(self, plan: Plan, arms: Sequence[str]) -> Trial:
        """Everything that the runs on this set are made of; the first arm is `plain`, whose compute all have."""
        batch = min(8, len(self.taught))
        configs = {arm: plan.config(arm, self.lr, batch) for arm in dict.fromkeys(("plain", WHOLE, *arms))}
        for arm in configs.keys() & {PRESERVE, PRESERVE_LESS}:
            rollout = replace(configs[arm].rollout, preserve="\n".join(self.preserve))
            configs[arm] = replace(configs[arm], rollout=rollout)
        return Trial(self.source, self.taught, configs, validation=self.half(0), drawing=plan.drawing)


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


def faces() -> tuple[ImageDataset, ImageDataset]:
    """The demo's own pictures; the unseen ones in the order of their list."""
    demo = ROOT / "demo"
    unseen = read_image_folder(demo / "unseen", default_caption="")
    items = {item.path.stem.replace("-", " "): item for item in unseen.items}
    lines = (demo / "unseen_captions.txt").read_text(encoding="utf-8").splitlines()
    found = [(items[line.partition(",")[0].replace("-", " ")], line) for line in lines]
    ordered = tuple(replace(item, caption=line) for item, line in found)
    return read_image_folder(demo / "data"), replace(unseen, items=ordered)


def drawings(set_name: str) -> tuple[ImageDataset, ImageDataset]:
    """A set in benchmarks/: shaded drawings of things, or one subject."""
    folder = ROOT / "benchmarks" / set_name
    return read_image_folder(folder / "taught"), read_image_folder(folder / "unseen")


SUBJECT = "robot"
Reader = Callable[[], tuple[ImageDataset, ImageDataset]]
SETS: dict[str, tuple[Reader, str, str, float]] = {
    "faces": (faces, "blob", "toy", 2e-3),
    "objects": (partial(drawings, "objects"), "toy", "blob", 5e-4),
    "subject": (partial(drawings, "subject"), SUBJECT, "blob", 5e-4),
}
"""How the pictures are read; the names of the set's own and of the other's; the learning rate."""
FIRST_ARMS = {"subject": ("plain", PRESERVE, "mixflow", "residual")}
"""The arms of a set that has not all."""


def names_of(names: str, part: str) -> list[str]:
    """12 names of a set; of the subject 4 times its own, and things."""
    if names == SUBJECT:
        return [SUBJECT] * 4 + names_of("toy", part)[:8]
    return (NAMES / f"{names}_{part}.txt").read_text(encoding="utf-8").splitlines()[:12]


def without_trigger(own: str, other: str, part: str) -> list[str]:
    """24 captions in the base's two styles: 12 of the set's own names, 12 of the other's."""
    names = names_of(own, part) + names_of(other, part)
    backgrounds = ("white", "blue", "yellow", "gray")
    if own == SUBJECT and part == "unseen":  # the same name is in both parts
        backgrounds = ("red", "green", "pink", "black")
    return [
        f"{name}, {('noto', 'flat')[i % 2]} style, {backgrounds[i % 4]} background"
        for i, name in enumerate(names)
    ]


@cache
def pictures_of(name: str, count: int, device: str) -> Pictures:
    """Load the demo model and encode `count` pictures of each kind."""
    read_both, own, other, lr = SETS[name]
    source = load_diffusers(ROOT / "demo" / "model", device)
    both = [replace(images, items=images.items[:count]) for images in read_both()]
    taught, unseen = (encode(images, source).held() for images in both)
    pixels = source.decode_latents(unseen.buckets[0].latents.to(source.device)).cpu()
    outside = source.encode_text(without_trigger(own, other, "unseen")[:count])
    return Pictures(
        name, source, taught, unseen, Views.of(pixels), outside, lr, without_trigger(own, other, "train")
    )


# --- one run ------------------------------------------------------------------------------------


def run_arm(own: Pictures, plan: Plan, arm: str, seed: int, folder: Path) -> dict[str, Metrics]:
    """Train an arm as a trial does, and measure it at its best moment, and at its end where it goes there."""
    trial = own.trial(plan, [arm])
    begin = time.process_time()
    best, cost = trained(trial, folder, arm, seed)
    cost["seconds"] = time.process_time() - begin
    cost["chosen"] = cost.pop("loss")
    if arm == WHOLE:
        last = replace(best, step=trial.config(arm, seed).steps)
        return {BEST: cost, END: measured(own, trial, last, seed)}
    return {BEST: cost | measured(own, trial, best, seed)}


def measured(own: Pictures, trial: Trial, run: Run, seed: int) -> Metrics:
    """Every metric of one state."""
    out = {"loss": validate(run, own.half(1)), "taught": validate(run, own.taught)}
    for cfg in trial.drawing.cfgs:
        pixels = drawn(own, trial, run.model, own.unseen.buckets[0].cond, cfg, seed)
        out |= {f"{name}@{cfg:g}": value for name, value in looked_at(own, pixels).items()}
    return out | bled(own, trial, run.model, seed)


def looked_at(own: Pictures, pixels: Tensor) -> Metrics:
    """Metrics of pictures [N, 3, H, W], the i-th of which has the i-th held-out caption."""
    seen = Views.of(pixels)
    out = {
        "style": float(energy_distance(seen.style, own.real.style)),
        "shapes": float(energy_distance(seen.shapes, own.real.shapes)),
    }
    return out | ({"blob": float(style_probability(pixels).mean())} if own.name == "faces" else {})


def bled(own: Pictures, trial: Trial, model: LoadedModel, seed: int) -> Metrics:
    """How far the LoRA moves pictures of captions without the trigger."""
    if seed not in own.unmoved:
        own.unmoved[seed] = drawn(own, trial, LoadedModel(own.source), own.outside, USED, seed)
    base, moved = own.unmoved[seed], drawn(own, trial, model, own.outside, USED, seed)
    apart = (Views.of(base).shapes - Views.of(moved).shapes).square().mean(1).sqrt()
    return {
        "bleed": float((base - moved).square().mean((1, 2, 3)).sqrt().mean()),
        "bleed.shapes": float(apart.mean()),
    }


def drawn(own: Pictures, trial: Trial, model: LoadedModel, cond: Cond, cfg: float, seed: int) -> Tensor:
    """Pictures [N, 3, H, W] from noise that depends on the seed alone, on the CPU."""
    shape = own.unseen.buckets[0].latents.shape[1:]
    latents = draw(trial, model, cond, shape, cfg, seed)
    with torch.no_grad():
        return own.source.decode_latents(latents.to(own.source.device)).cpu()


BASE, REAL = "base", "taught pictures"
AS_MANY = ("faces", "objects")
"""Sets with as many taught pictures as held-out ones, as their distance wants."""


def compared_with(own: Pictures, plan: Plan, arm: str) -> dict[str, Metrics]:
    """The metrics of the base alone, or of the taught pictures themselves, whose captions differ."""
    if arm == REAL:
        with torch.no_grad():
            pixels = own.source.decode_latents(own.taught.buckets[0].latents.to(own.source.device)).cpu()
        return {BEST: {f"{name}@own": value for name, value in looked_at(own, pixels).items()}}
    trial = own.trial(plan, [])
    out: Metrics = {}
    for cfg in trial.drawing.cfgs:
        pixels = drawn(own, trial, LoadedModel(own.source), own.unseen.buckets[0].cond, cfg, 0)
        out |= {f"{name}@{cfg:g}": value for name, value in looked_at(own, pixels).items()}
    return {BEST: out}


# --- statistics ---------------------------------------------------------------------------------

MAIN = ("style@own", "shapes@own", "loss")
WITHOUT_GUIDANCE = ("style@1", "shapes@1")
OTHERS = ("style@2", "shapes@2", "blob@2", "taught", "bleed", "bleed.shapes")
COST = ("chosen", "step", "trained", "planned", "evaluations", "seconds")
HIGHER_IS_BETTER = ("blob",)
DESCRIBES = (*COST, "taught")
"""Neither better nor worse."""


def key(name: str, arm: str) -> str:
    """The name of an arm on a set in the results."""
    return f"{name}/{arm}"


def table_of(results: Sequence[Result]) -> Table:
    """The results by set and arm, each with the metrics at its own best guidance scale."""
    order = [key(name, arm) for name in SETS for arm in (BASE, REAL, *ARMS)]
    table = tabulated(results, order)
    return {arm: with_own(runs) for arm, runs in table.items()}


def with_own(runs: Mapping[int, Mapping[str, Metrics]]) -> dict[int, dict[str, Metrics]]:
    """The runs of an arm with each distance at the scale where its mean over the seeds is least, by moment."""
    out: dict[int, dict[str, Metrics]] = {seed: dict(run) for seed, run in runs.items()}
    for moment in (BEST, END):
        here = [run[moment] for run in runs.values() if moment in run]
        for metric in ("style", "shapes"):
            scales = [f"{metric}@{cfg:g}" for cfg in CFGS if here and f"{metric}@{cfg:g}" in here[0]]
            if not scales:
                continue
            own = min(scales, key=lambda name: statistics.fmean(run[name] for run in here))
            for run in out.values():
                if moment in run:
                    extra = {f"{metric}@own": run[moment][own], f"{metric}.cfg": float(own.partition("@")[2])}
                    run[moment] = run[moment] | extra
    return out


def sets_of(table: Table) -> list[str]:
    """The sets on which plain was run."""
    return [name for name in SETS if key(name, "plain") in table]


def comparisons(name: str) -> list[Comparison]:
    """Every arm against plain, at the best moment of both, on a set; then what stopping in time is worth."""
    plain = key(name, "plain")
    arms = [arm for arm in ARMS if arm not in ("plain", WHOLE)]
    whole = key(name, WHOLE)
    return [
        *(Comparison(f"{arm} - plain", key(name, arm), plain, BEST, BEST) for arm in arms),
        Comparison("plain, stopped - plain, whole, at its end", plain, whole, BEST, END),
        Comparison(f"{PRESERVE} - {WEAK}", key(name, PRESERVE), key(name, WEAK), BEST, BEST),
        Comparison(f"{PRESERVE_LESS} - {WEAK}", key(name, PRESERVE_LESS), key(name, WEAK), BEST, BEST),
    ]


def verdict(metric: str, estimate: Estimate) -> str:
    """better, worse, up, down, or nothing where 0 is in the interval."""
    if not estimate.distinct:
        return ""
    up = estimate.mean > 0
    if metric in DESCRIBES:
        return "up" if up else "down"
    return "better" if up == (metric.partition("@")[0] in HIGHER_IS_BETTER) else "worse"


# --- output -------------------------------------------------------------------------------------


def print_rows(title: str, metrics: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Print a Markdown table without the rows that have nothing in them."""
    body = [[name, *cells] for name, cells in rows.items() if any(cells)]
    for row in ([title, *metrics], ["---", *["---:"] * len(metrics)], *body):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def report(table: Table) -> None:
    """Print, for each set, the means of all arms and the paired differences, behind each name the number of seeds."""
    for name in sets_of(table):
        arms = {arm: runs for arm, runs in table.items() if arm.startswith(f"{name}/")}
        for metrics in ((*MAIN, *WITHOUT_GUIDANCE, "style.cfg", "shapes.cfg"), OTHERS, COST):
            rows = {
                f"{arm.partition('/')[2]}{'' if at == BEST else ', at its end'} ({len(runs)})": [
                    mean_cell(runs, metric, at) for metric in metrics
                ]
                for arm, runs in arms.items()
                for at in (BEST, END)
            }
            print_rows(f"{name}: mean ± standard error", metrics, rows)
        for metrics in (MAIN, WITHOUT_GUIDANCE, OTHERS, ("step", "trained", "seconds")):
            cells = {
                f"{c.title} ({len(differences(table, c, 'loss'))})": [
                    difference_cell(table, c, m) for m in metrics
                ]
                for c in comparisons(name)
            }
            print_rows(f"{name}: difference [95 % interval]", metrics, cells)


def mean_cell(runs: Mapping[int, Mapping[str, Metrics]], metric: str, at: str = BEST) -> str:
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
    word = verdict(metric, e)
    return f"{e.mean:+.4f} [{e.low:+.4f}, {e.high:+.4f}]" + (f" **{word}**" if word else "")


def plot(table: Table, path: Path) -> None:
    """Draw the differences of the main metrics, a row of charts for each set: every seed, the mean, its interval."""
    from matplotlib.figure import Figure

    metrics = (*MAIN, "bleed")
    names = sets_of(table)
    figure = Figure(figsize=(13, 1 + 2.8 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), len(metrics), squeeze=False), names, strict=True):
        rows = [c for c in comparisons(name) if difference(table, c, MAIN[0])]
        labels = [f"{c.title} ({len(differences(table, c, MAIN[0]))})" for c in rows]
        for axis, metric in zip(axes, metrics, strict=True):
            for y, comparison in enumerate(rows):
                draw_difference(axis, y, table, comparison, metric)
            axis.axvline(0, color="black", lw=0.8)
            axis.set(title=f"{name}: {metric}", xlabel="difference; left is better")
            axis.locator_params(axis="x", nbins=4)  # numbers of thousandths need room
            axis.set_yticks(range(len(rows)), labels if metric == metrics[0] else [""] * len(rows))
            axis.invert_yaxis()
            axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=80)


def draw_difference(axis: Any, y: int, table: Table, comparison: Comparison, metric: str) -> None:
    """One comparison in one chart: green is better, red worse, grey neither."""
    values, e = differences(table, comparison, metric), difference(table, comparison, metric)
    if e is None:
        return
    colour = {"better": "#1a7f37", "worse": "#cf222e"}.get(verdict(metric, e), "#6e7781")
    axis.plot(values, [y] * len(values), "|", color=colour, alpha=0.5)
    axis.errorbar(e.mean, y, xerr=e.high - e.mean, fmt="o", color=colour, capsize=3)


MARK, MARKED = "<!-- tables: benchmarks/study.py --save docs -->", "<!-- end of tables -->"
"""What stands between these in docs/study.md is written by the program."""
SHOWN = (*WITHOUT_GUIDANCE, "style@2", "blob@2", "bleed")
WORDS = {
    "style@own": "style distance, own CFG",
    "shapes@own": "shapes distance, own CFG",
    "loss": "held-out loss",
    "style@1": "style, CFG 1",
    "shapes@1": "shapes, CFG 1",
    "style@2": "style, CFG 2",
    "blob@2": "style probability, CFG 2",
    "bleed": "bleeding",
    "trained": "steps trained",
    "step": "best step",
    "seconds": "processor s",
}


def page(table: Table) -> str:
    """The tables of docs/study.md: for each set the means, the paired differences, and what they say in words."""
    lines = []
    for name in sets_of(table):
        lines += [*means(table, name), "", *paired(table, name), "", *in_words(table, name), ""]
    return "\n".join([*lines, *figures(table), ""])


def in_words(table: Table, name: str) -> list[str]:
    """A line for every arm of a set beside plain: what was seen of it."""
    return [
        f"- {name}, {c.title}: " + "; ".join(found) + "."
        for c in comparisons(name)
        if (
            found := [
                said(table, c, m) for m in (*MAIN, "style@2", "blob@2", "bleed") if differences(table, c, m)
            ]
        )
    ]


def said(table: Table, c: Comparison, metric: str) -> str:
    """A comparison in plain English."""
    values, e = differences(table, c, metric), difference(table, c, metric)
    if e is None:
        return f"{WORDS[metric]} {values[0]:+.4f} of one seed, which may be chance"
    word = verdict(metric, e) or "no difference seen"
    return f"{WORDS[metric]} {word} ({e.mean:+.4f} [{e.low:+.4f}, {e.high:+.4f}], {len(values)} seeds)"


def ratio(table: Table, name: str, arm: str, metric: str) -> float:
    """An arm's mean of a metric over plain's, on the seeds that both have."""
    one, other = table.get(key(name, arm), {}), table[key(name, "plain")]
    seeds = one.keys() & other.keys()
    sums = [sum(runs[seed][BEST][metric] for seed in seeds) for runs in (one, other)]
    return sums[0] / sums[1] if seeds else math.nan


def figures(table: Table) -> list[str]:
    """What the issue asked for, beside what was found, by set: no more than the numbers say."""
    lines = []
    for name in sets_of(table):
        by_title = {c.title: c for c in comparisons(name)}
        seeds = len(differences(table, by_title["preserve - plain"], "bleed"))
        if seeds:
            c = by_title["preserve - plain"]
            style = [said(table, c, m) for m in (*MAIN[:2], "style@2", "blob@2") if differences(table, c, m)]
            lines.append(
                f"- `preserve` on {name}, {seeds} seeds: {ratio(table, name, PRESERVE, 'bleed'):.2f} of plain's "
                f"bleeding (to reach: 0.5). Both planned the same compute; until it stopped, `preserve` used "
                f"{ratio(table, name, PRESERVE, 'evaluations'):.2f} times the evaluations of plain (to reach: at most "
                f"1.5), {ratio(table, name, PRESERVE, 'seconds'):.2f} times the processor time. {'; '.join(style)}."
            )
        runs = [run[BEST] for run in table[key(name, "plain")].values()]
        share = statistics.fmean(run["trained"] / run["planned"] for run in runs)
        step = statistics.fmean(run["step"] / run["planned"] for run in runs)
        lines.append(
            f"- best moment on {name}, {len(runs)} seeds of plain: at {step:.2f} of the steps, training ended by "
            f"itself at {share:.2f} (to reach: 0.6)."
        )
    return lines


def means(table: Table, name: str) -> list[str]:
    """Means and standard errors of every arm of a set."""
    columns = ("step", "trained", "seconds", *MAIN, *SHOWN)
    rows = []
    for arm in (arm for arm in table if arm.startswith(f"{name}/")):
        at = END if arm == key(name, WHOLE) else BEST
        cells = [mean_cell(table[arm], m, BEST if m in COST else at) for m in columns]
        rows.append([f"{arm.partition('/')[2]} ({len(table[arm])})", *cells])
    return markdown([f"**{name}**, arm (seeds)", *(WORDS[m] for m in columns)], rows)


def paired(table: Table, name: str) -> list[str]:
    """Paired differences, with intervals, of every arm of a set."""
    columns = (*MAIN, *SHOWN)
    rows = [
        [
            f"{c.title} ({len(differences(table, c, MAIN[0]))})",
            *(difference_cell(table, c, m) for m in columns),
        ]
        for c in comparisons(name)
        if difference(table, c, MAIN[0])
    ]
    return markdown(
        [f"**{name}**, paired difference (seeds) [95 % interval]", *(WORDS[m] for m in columns)], rows
    )


def save(results: Sequence[Result], folder: Path) -> None:
    """Write the stored study: per-seed numbers to five digits, the plot, and the tables of the page."""
    written = folder / "study.md"
    if written.exists():
        before, _, rest = written.read_text(encoding="utf-8").partition(MARK)
        text = f"{before}{MARK}\n{page(table_of(rounded(results)))}{MARKED}{rest.partition(MARKED)[2]}"
        write_atomically(written, text.encode())
    lines = ",\n ".join(json.dumps(asdict(result)) for result in rounded(results))
    write_atomically(folder / "study.json", f"[{lines}]\n".encode())
    plot(table_of(results), folder / "study.png")


def rounded(results: Sequence[Result]) -> list[Result]:
    """The results to five digits, as they are stored."""
    return [
        Result(
            own.arm,
            own.seed,
            {
                at: {name: float(f"{v:.5g}") for name, v in metrics.items()}
                for at, metrics in own.metrics.items()
            },
        )
        for own in results
    ]


def study(
    path: Path,
    plan: Plan,
    arms: Sequence[str],
    seeds: int,
    sets: Sequence[str] = tuple(SETS),
    minutes: float = math.inf,
    device: str = "cpu",
) -> None:
    """Run what is missing of the study: all arms on all sets of a seed before the next seed."""

    def run(job: str, seed: int) -> Result:
        name, _, arm = job.partition("/")
        own = pictures_of(name, plan.pictures, device)
        if arm in (BASE, REAL):
            return Result(job, seed, compared_with(own, plan, arm))
        folder = path.parent / "runs" / name
        result = Result(job, seed, run_arm(own, plan, arm, seed, folder))
        for place in folder.glob(f"{run_name(arm, seed)}-*"):
            shutil.rmtree(place)
        return result

    jobs = [(key(name, arm), 0) for name in sets for arm in ((BASE, REAL) if name in AS_MANY else (BASE,))]
    jobs += [
        (key(name, arm), seed)
        for seed in range(seeds)
        for name in sets
        for arm in arms
        if arm in FIRST_ARMS.get(name, ARMS)
    ]
    go_on(path, jobs, run, time.monotonic() + 60 * minutes, say=partial(print, flush=True))


def main() -> None:
    """Run, print or save the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    place = ROOT / "out" / "study" / "study.jsonl"
    parser.add_argument("--results", type=Path, default=place, help="one line per run")
    parser.add_argument("--seeds", type=int, default=4, help="runs of every arm, 2 to 15")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run begins after so long")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="these arms alone")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="these sets alone")
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
        report(table_of([Result(**result) for result in stored]))
    elif options.quick:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "study.jsonl"
            study(path, QUICK, options.arms, 2, options.sets, options.minutes, options.device)
            report(table_of(read(path)))
    elif options.save:
        save(read(options.results), options.save)
    else:
        plan = Plan()
        study(
            options.results, plan, options.arms, options.seeds, options.sets, options.minutes, options.device
        )
        report(table_of(read(options.results)))


if __name__ == "__main__":
    main()
