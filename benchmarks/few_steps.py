"""What is left of a few-step model after a LoRA was trained, and what own states save: the study's part on few steps.

    python benchmarks/few_steps.py [--student FOLDER] [--results FILE] [--seeds 4] [--arms plain undistilled]
    python benchmarks/few_steps.py --save docs      write few_steps.json, and the tables of docs/study.md

Distils the demo model into a student of 4 steps first, where FOLDER has none: about 2 minutes of a processor core.
A run that was killed goes on where it was. The plan below was committed before the first run. docs/study.md has the
outcome.

**The student.** Teacher: the demo model, 20 steps (unipc 2) at CFG 2. 400 trajectories from pure noise, over random
names in the styles and before the backgrounds that the base knows, none with the trigger. The student, a copy of
the teacher with all weights trained, learns at each of its 4 noise levels 1, 0.75, 0.5, 0.25 the mean velocity that
leads from the teacher's state there to the teacher's next one, 5 of its steps on: 4 passes over all states, batch
64, AdamW 7e-4 falling to 0, both in bfloat16. It is drawn with 4 Euler steps without guidance. It is fit for the
study if, on 24 other captions, it is nearer to the teacher's 20 guided steps than the teacher's own 4 steps are, in
both feature spaces of benchmarks/study.py.

**Runs.** The faces, with the settings, the seeds, the best moment and the equal compute of benchmarks/study.py.

- `plain`: trained on the student as if it were any flow model.
- `undistilled`: trained plainly on the teacher, applied to the student: what users do with a base and its Turbo.
- `preserve`: plain on the student, and for each batch one own state of captions without the trigger, by up to 4 Euler
  steps, asked for what the student says without the adapter.
- `residual`: half of the samples rolled out over 0 to 3 of the student's 4 Euler steps, target `residual`.
- `redistilled`: from the LoRA of `undistilled`, 40 steps more (batch 8, 1e-3 falling to 0): own states of the student
  with the taught captions, from pure noise to a random one of its 4 noise levels, asked for the mean velocity that
  leads on from there under the teacher with that LoRA, guided (CFG 2), in 5 of its steps.

`redistilled` is the arm of our choice: the only one whose target knows what 4 steps ask of a model on the taught
captions (a mean velocity under guidance), where `plain`, `preserve` and `residual` ask for the velocity at a point,
without guidance; and its states are the student's own, as in D-OPSD (2605.05204), whose teacher sees more than the
student. It needs the teacher. The ceiling is the LoRA of `undistilled` on the teacher, 20 steps, at its own best
CFG of 1 and 2. Where time is short, `residual` runs last, and two seeds of all others come before the next two.

**Metrics.** Pictures of the 24 held-out captions in 4 steps: `style` and `shapes`, energy distances to the held-out
pictures as in benchmarks/study.py; `blob`, style probability; `sharp`, mean strength of the grey pictures'
gradients over that of the held-out pictures. Pictures of 24 captions without the trigger in 4 steps, same noise:
`bleed`, root mean square difference to the student's without a LoRA; `sharp.outside`, their sharpness over that of
those. *Quality kept* of an arm, in each feature space: (D_base - D_arm) / (D_base - D_ceiling), D_base being the
student's without a LoRA; means over the seeds. Statistics as in benchmarks/study.py, paired by seed, against
`plain`. The figure to reach: an arm with own states keeps 90 % in both feature spaces where `plain` keeps half.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import torch
from study import (
    BASE,
    MARK,
    MARKED,
    PLAIN,
    ROOT,
    USED,
    Pictures,
    Plan,
    Views,
    drawn,
    looked_at,
    mean_cell,
    pictures_of,
    rounded,
)
from torch import Tensor

from rollout_trainer.demo.make.captions import BACKGROUNDS, caption, held_out_pairs, read_names
from rollout_trainer.samplers import SolverFrame, integrate, trajectory
from rollout_trainer.training.conditioning import Cond, select
from rollout_trainer.training.files import write_atomically, write_tensors
from rollout_trainer.training.lora.adapter import Adapter, AdapterState
from rollout_trainer.training.models.diffusers import DiffusersModel
from rollout_trainer.training.models.families import load_diffusers
from rollout_trainer.training.models.source import LoadedModel, ModelSource
from rollout_trainer.training.objective.states import without_captions
from rollout_trainer.training.pictures.exposure import energy_distance
from rollout_trainer.training.pictures.sampling import Guided, seeded_noise
from rollout_trainer.training.trial.results import Metrics, Result, Table, go_on, read, tabulated
from rollout_trainer.training.trial.statistics import Comparison, Estimate, difference, differences
from rollout_trainer.training.trial.trial import BEST, Drawing, Trial, run_name, trained
from rollout_trainer.training.trial.verdict import markdown

STEPS, FINE = 4, 5
"""Steps of the student, and the teacher's steps for each of them."""
FEW = Drawing(steps=STEPS, sampler="euler", order=1, cfgs=(1.0,))
CFGS = (1.0, USED)
MANY = Drawing(steps=STEPS * FINE, cfgs=CFGS)
TEACHER = ROOT / "demo" / "model"
BASE_STYLES = ("noto", "flat")
"""What the shipped base was taught, demo/NOTICE."""
WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"

# --- the student --------------------------------------------------------------------------------


def known_captions(count: int, generator: torch.Generator) -> list[str]:
    """Captions of what the base was taught: a name, one of its styles, a background."""
    held_out = held_out_pairs()
    pairs = [(n, s) for n in read_names("concepts.txt") for s in BASE_STYLES if (n, s) not in held_out]
    colours = list(BACKGROUNDS)
    rows = torch.randint(len(pairs), (count,), generator=generator).tolist()
    backgrounds = torch.randint(len(colours), (count,), generator=generator).tolist()
    return [caption(*pairs[i], colours[j]) for i, j in zip(rows, backgrounds, strict=True)]


@torch.no_grad()
def led(
    model: LoadedModel, cond: Cond, x: Tensor, sigmas: Tensor, cfg: float, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """The states after every unipc step from `x: [N, ...]` along `sigmas: [T + 1] or [N, T + 1]`, with guidance."""
    free = without_captions(cond, model.source.encode_text([""]))
    path: list[Tensor] = []

    def keep(frame: SolverFrame) -> None:
        path.append(frame.x.clone())

    with model.denoiser(dtype) as denoiser:
        integrate(Guided(denoiser, cond, free, cfg), x, sigmas, "unipc", 2, callback=keep)
    return path


def trajectories(teacher: ModelSource, captions: Sequence[str], first: int) -> tuple[Tensor, Cond]:
    """The teacher's states [N, STEPS + 1, ...] at the student's noise levels, from pure noise to the picture."""
    cond = teacher.encode_text(captions)
    shape = teacher.latent_shape(teacher.default_resolution, teacher.default_resolution)
    sigmas = trajectory(teacher.schedule, 1.0, 0.0, STEPS * FINE)[0]
    parts = []
    for rows in torch.arange(len(captions)).split(64):
        noise = seeded_noise(shape, (first + rows).tolist())
        path = led(LoadedModel(teacher), select(cond, rows), noise, sigmas, USED, torch.bfloat16)
        parts.append(torch.stack([noise, *path[FINE - 1 :: FINE]], 1))
    return torch.cat(parts), cond


def distil(place: Path, count: int = 400, passes: int = 4, batch: int = 64, lr: float = 7e-4) -> None:
    """Write a pipeline folder whose network takes 4 steps for the teacher's 20 guided ones."""
    teacher = load_diffusers(TEACHER)
    generator = torch.Generator().manual_seed(0)
    states, cond = trajectories(teacher, known_captions(count, generator), first=10_000)
    print(f"trajectories: {time.process_time():.0f} s of processor time", flush=True)
    sigmas = trajectory(teacher.schedule, 1.0, 0.0, STEPS)[0].float()
    mean_velocity = states.diff(dim=1) / sigmas.diff().reshape(1, -1, 1, 1, 1)
    student = load_diffusers(TEACHER)
    student.module.requires_grad_(True)
    optimizer = torch.optim.AdamW(student.module.parameters(), lr, weight_decay=0.0)
    total = passes * count * STEPS // batch
    order = torch.cat([torch.randperm(count * STEPS, generator=generator) for _ in range(passes)])
    for step, rows in enumerate(order[: total * batch].split(batch)):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20) * (1 - step / total)
        i, k = rows // STEPS, rows % STEPS
        output = student.denoiser(torch.bfloat16).predict(states[i, k], sigmas[k], select(cond, i))
        loss = (output - mean_velocity[i, k]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.module.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == total - 1:
            print(f"distilling, step {step} of {total}: {float(loss.detach()):.4f}", flush=True)
    shutil.copytree(TEACHER, place, dirs_exist_ok=True)
    tensors = {name: value.detach().half() for name, value in student.module.state_dict().items()}
    write_tensors(place / WEIGHTS, tensors, {"format": "pt"})


def few(source: ModelSource) -> Trial:
    """A trial on a source, for its way of drawing alone."""
    own = pictures_of("faces", 24, "cpu")
    configs = {arm: Plan().config("plain") for arm in ("plain", "other")}
    return Trial(source, own.taught, configs, validation=own.half(0), drawing=FEW)


def fitness(student: DiffusersModel) -> Metrics:
    """Energy distances to the teacher's 20 guided steps on 24 other captions, other noise: student, and teacher."""
    own = pictures_of("faces", 24, "cpu")
    cond = own.source.encode_text(known_captions(24, torch.Generator().manual_seed(1)))
    many = replace(few(own.source), drawing=MANY)
    unipc = replace(FEW, sampler="unipc", order=2)
    ways = {
        "student, 4 steps, no CFG": (few(student), 1.0),
        "teacher, 4 Euler steps, CFG 2": (few(own.source), USED),
        "teacher, 4 unipc steps, CFG 2": (replace(few(own.source), drawing=unipc), USED),
        "teacher, 20 steps, CFG 2, other noise": (many, USED),
    }
    real = Views.of(drawn(own, many, LoadedModel(own.source), cond, USED, 0))
    out = {}
    for name, (trial, cfg) in ways.items():
        seen = Views.of(drawn(own, trial, LoadedModel(trial.source), cond, cfg, 1))
        out[f"{name}: style"] = float(energy_distance(seen.style, real.style))
        out[f"{name}: shapes"] = float(energy_distance(seen.shapes, real.shapes))
    return out


# --- the arms -----------------------------------------------------------------------------------

OWN = replace(PLAIN, sampler="euler", steps_per_trajectory=STEPS)
ARMS = {
    "plain": PLAIN,
    "undistilled": PLAIN,
    "preserve": replace(OWN, preserve_rows=1, preserve_steps=STEPS),
    "redistilled": PLAIN,
    "residual": replace(OWN, max_step_offset=3, probability=0.5),
}
"""In the order in which a seed runs them."""
CEILING = "undistilled on the teacher, 20 steps"


def trial_of(own: Pictures, source: ModelSource, arm: str) -> Trial:
    """An arm beside plain, whose compute it has, on a source."""
    plain = Plan().config("plain", own.lr)
    rollout = ARMS[arm]
    if arm == "preserve":
        rollout = replace(rollout, preserve="\n".join(own.preserve))
    configs = {"plain": plain, arm: replace(plain, rollout=rollout)}
    if len(configs) < 2:
        configs["other"] = plain
    return Trial(source, own.taught, configs, validation=own.half(0), drawing=FEW)


def redistilled(
    own: Pictures, student: DiffusersModel, lora: AdapterState, seed: int, steps: int = 40, lr: float = 1e-3
) -> AdapterState:
    """A LoRA that leads the student, from its own states, where the teacher goes with `lora`."""
    generator = torch.Generator().manual_seed(seed)
    cond, shape = own.taught.buckets[0].cond, own.taught.buckets[0].shape
    teacher, schedule = LoadedModel(own.source, lora), student.schedule
    sigmas = trajectory(schedule, 1.0, 0.0, STEPS)[0].float()
    denoiser = student.denoiser()
    adapter = Adapter(student.module, lora.config, seed)
    try:
        adapter.load(lora)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr, weight_decay=0.0)
        for n in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - n / steps)
            some = select(cond, torch.randint(len(own.taught), (8,), generator=generator))
            k = torch.randint(STEPS, (8,), generator=generator)
            path = [torch.randn(8, *shape, generator=generator)]
            with torch.no_grad():
                for now, then in pairwise(sigmas[:-1]):
                    velocity = denoiser.predict(path[-1], now.expand(8), some)
                    path.append(path[-1] + (then - now) * velocity)
            x = torch.stack(path, 1)[torch.arange(8), k]
            ends = 1 - k.double() / STEPS
            fine = trajectory(schedule, ends, ends - 1 / STEPS, FINE)
            goal = (led(teacher, some, x, fine, USED)[-1] - x) * -STEPS
            loss = (denoiser.predict(x, sigmas[k], some) - goal).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimizer.step()
        return adapter.state()
    finally:
        adapter.detach()


# --- the metrics --------------------------------------------------------------------------------


def sharpness(pixels: Tensor) -> float:
    """Mean strength of the gradients of pictures [N, 3, H, W], in grey."""
    grey = pixels.mean(1)
    return float(
        torch.hypot(grey[:, :-1, 1:] - grey[:, :-1, :-1], grey[:, 1:, :-1] - grey[:, :-1, :-1]).mean()
    )


@cache
def real_sharpness() -> float:
    """Of the held-out pictures, through the autoencoder."""
    own = pictures_of("faces", 24, "cpu")
    with torch.no_grad():
        return sharpness(own.source.decode_latents(own.unseen.buckets[0].latents))


def measured(own: Pictures, trial: Trial, model: LoadedModel, seed: int) -> Metrics:
    """Every metric of pictures in 4 steps."""
    pixels = drawn(own, trial, model, own.unseen.buckets[0].cond, 1.0, seed)
    out = looked_at(own, pixels) | {"sharp": sharpness(pixels) / real_sharpness()}
    if seed not in own.unmoved:
        own.unmoved[seed] = drawn(own, trial, LoadedModel(trial.source), own.outside, 1.0, seed)
    base, moved = own.unmoved[seed], drawn(own, trial, model, own.outside, 1.0, seed)
    return out | {
        "bleed": float((base - moved).square().mean((1, 2, 3)).sqrt().mean()),
        "sharp.outside": sharpness(moved) / sharpness(base),
    }


def at_many_steps(own: Pictures, lora: AdapterState, seed: int) -> Metrics:
    """The ceiling's metrics, by guidance scale."""
    trial = replace(few(own.source), drawing=MANY)
    out: Metrics = {}
    for cfg in CFGS:
        pixels = drawn(own, trial, LoadedModel(own.source, lora), own.unseen.buckets[0].cond, cfg, seed)
        seen = looked_at(own, pixels) | {"sharp": sharpness(pixels) / real_sharpness()}
        out |= {f"{name}@{cfg:g}": value for name, value in seen.items()}
    return out


# --- the runs -----------------------------------------------------------------------------------


class Runs:
    """The jobs of this study; the LoRA of `undistilled` serves three of them, and is kept beside the results."""

    def __init__(self, student: DiffusersModel, folder: Path) -> None:
        self.teacher_side = pictures_of("faces", 24, "cpu")
        self.student = student
        self.own = replace(self.teacher_side, source=student, unmoved={})
        self.folder = folder

    def train(self, source: ModelSource, arm: str, seed: int) -> tuple[AdapterState, Metrics]:
        """An arm's LoRA at its best moment, and what it cost. Its run stays until all is done."""
        begin = time.process_time()
        best, cost = trained(trial_of(self.own, source, arm), self.folder, arm, seed)
        cost["seconds"] = time.process_time() - begin
        cost["chosen"] = cost.pop("loss")
        return best.adapter, cost

    def __call__(self, arm: str, seed: int) -> Result:
        """Train where it must be, and measure."""
        if arm == BASE:
            return Result(
                arm, seed, {BEST: measured(self.own, few(self.student), LoadedModel(self.student), seed)}
            )
        of_teacher = arm in ("undistilled", "redistilled", CEILING)
        lora, cost = self.train(
            self.teacher_side.source if of_teacher else self.student,
            "undistilled" if of_teacher else arm,
            seed,
        )
        if arm == CEILING:
            return Result(arm, seed, {BEST: at_many_steps(self.teacher_side, lora, seed)})
        if arm == "redistilled":
            begin = time.process_time()
            lora = redistilled(self.teacher_side, self.student, lora, seed)
            cost["seconds"] = time.process_time() - begin
        seen = measured(self.own, few(self.student), LoadedModel(self.student, lora), seed)
        return Result(arm, seed, {BEST: cost | seen})

    def tidy(self, seed: int) -> None:
        """Remove the runs of a seed."""
        for arm in ARMS:
            for place in self.folder.glob(f"{run_name(arm, seed)}-*"):
                shutil.rmtree(place)


def study(student: Path, path: Path, arms: Sequence[str], seeds: int, minutes: float = math.inf) -> None:
    """Distil where it must be, and run what is missing: all arms of a seed before the next seed."""
    if not (student / WEIGHTS).exists():
        distil(student)
    runs = Runs(load_diffusers(student), path.parent / "few-steps-runs")

    def run(arm: str, seed: int) -> Result:
        return Result(arm, seed, {BEST: fitness(runs.student)}) if arm == FIT else runs(arm, seed)

    until = time.monotonic() + 60 * minutes
    say = partial(print, flush=True)
    go_on(path, [(FIT, 0)], run, until, say)
    for seed in range(seeds):
        jobs = [BASE, *(arm for arm in ARMS if arm in arms), *([CEILING] if "undistilled" in arms else [])]
        go_on(path, [(arm, seed) for arm in jobs], run, until, say)
        runs.tidy(seed)


# --- output -------------------------------------------------------------------------------------

FIT = "the student"
HIGHER = ("blob",)
SHOWN = {
    "style": "style distance",
    "shapes": "shapes distance",
    "blob": "style probability",
    "sharp": "sharpness",
    "bleed": "bleeding",
    "sharp.outside": "sharpness without trigger",
}


def table_of(results: Sequence[Result]) -> Table:
    """The results by arm; the ceiling's metrics are those at its own best guidance scale."""
    order = [FIT, BASE, *ARMS, CEILING]
    table = {arm: dict(runs) for arm, runs in tabulated(results, order).items()}
    for name in ("style", "shapes"):
        runs = [run[BEST] for run in table.get(CEILING, {}).values()]
        if runs:
            own = min(CFGS, key=lambda cfg: statistics.fmean(run[f"{name}@{cfg:g}"] for run in runs))
            extra = {"style": ("style", "blob", "sharp"), "shapes": ("shapes",)}[name]
            for run in runs:
                run |= {metric: run[f"{metric}@{own:g}"] for metric in extra} | {f"{name}.cfg": own}
    return table


def kept(table: Table, arm: str, metric: str) -> float:
    """Quality kept: 1 is the ceiling's, 0 the student's without a LoRA; over the seeds that all three have."""
    seeds = set.intersection(*(set(table.get(name, {})) for name in (arm, BASE, CEILING)))
    if not seeds:
        return math.nan
    base, own, ceiling = (
        statistics.fmean(table[name][seed][BEST][metric] for seed in seeds) for name in (BASE, arm, CEILING)
    )
    return (base - own) / (base - ceiling)


def page(table: Table) -> str:
    """The tables for docs/study.md: the student, the means, quality kept, and the paired differences to plain."""
    fit = table[FIT][0][BEST]
    ways = list(dict.fromkeys(name.rpartition(": ")[0] for name in fit))
    cells = [[way, *(f"{fit[f'{way}: {space}']:.2g}" for space in ("style", "shapes"))] for way in ways]
    lines = markdown(["distance to the teacher's 20 steps at CFG 2", "style", "shapes"], cells)
    rows = [
        [
            f"{arm} ({len(table[arm])})",
            *(mean_cell(table[arm], metric) for metric in ("seconds", *SHOWN)),
            *(f"{kept(table, arm, metric):.0%}" if arm in ARMS else "" for metric in ("style", "shapes")),
        ]
        for arm in table
        if arm != FIT
    ]
    head = ["**4 steps**, arm (seeds)", "processor s", *SHOWN.values(), "kept, style", "kept, shapes"]
    lines += ["", *markdown(head, rows), ""]
    compared = [Comparison(f"{arm} - plain", arm, "plain", BEST, BEST) for arm in table if arm in ARMS]
    rows = [
        [f"{c.title} ({len(differences(table, c, 'style'))})", *(cell(table, c, m) for m in SHOWN)]
        for c in compared
        if c.arm != "plain" and difference(table, c, "style")
    ]
    return "\n".join(
        [*lines, *markdown(["paired difference (seeds) [95 % interval]", *SHOWN.values()], rows), ""]
    )


def cell(table: Table, comparison: Comparison, metric: str) -> str:
    """A paired difference, its interval, and what it says; sharpness alone is neither better nor worse."""
    e: Estimate | None = difference(table, comparison, metric)
    if e is None:
        return ""
    word = ("better" if (e.mean > 0) == (metric in HIGHER) else "worse") if e.distinct else ""
    word = "" if metric.startswith("sharp") else word
    return f"{e.mean:+.4f} [{e.low:+.4f}, {e.high:+.4f}]" + (f" **{word}**" if word else "")


FEW_MARK = MARK.replace("study.py", "few_steps.py")


def save(results: Sequence[Result], folder: Path) -> None:
    """Write the stored results, and the tables of the page."""
    page_file = folder / "study.md"
    before, _, rest = page_file.read_text(encoding="utf-8").partition(FEW_MARK)
    text = f"{before}{FEW_MARK}\n{page(table_of(rounded(results)))}{MARKED}{rest.partition(MARKED)[2]}"
    write_atomically(page_file, text.encode())
    lines = ",\n ".join(json.dumps(asdict(result)) for result in rounded(results))
    write_atomically(folder / "few_steps.json", f"[{lines}]\n".encode())


def main() -> None:
    """Run, or save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    place = ROOT / "out" / "study"
    parser.add_argument(
        "--student", type=Path, default=place / "student", help="its folder, made where missing"
    )
    parser.add_argument("--results", type=Path, default=place / "few_steps.jsonl", help="one line per run")
    parser.add_argument("--seeds", type=int, default=4, help="runs of every arm, 2 to 15")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run begins after so long")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="these arms alone")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write few_steps.json and the tables there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.save:
        save(read(options.results), options.save)
        return
    study(options.student, options.results, options.arms, options.seeds, options.minutes)
    print(page(table_of(read(options.results))))


if __name__ == "__main__":
    main()
