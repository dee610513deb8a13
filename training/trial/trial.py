"""A trial: two to four arms, paired by seed, on the same data and model, each stopped at its best moment.

With one seed all arms have the same first weights, batches, noise levels, noise and dropped captions: every random
stream of a run comes from its seed. What a trial finds lies in its folder, ``trial.jsonl``, a line for each run that
has ended; the runs themselves lie beside it, and one that was cut off goes on from its last state, bit for bit.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...samplers import integrate, trajectory
from ..checks import to_plain
from ..conditioning import Cond, placed, select
from ..data.dataset import LatentDataset
from ..files import write_json
from ..forms import add_noise
from ..models.source import LoadedModel, ModelSource
from ..objective.preserve import expected_evaluations
from ..objective.rollout import expected_extra_forwards
from ..objective.states import without_captions
from ..pictures.exposure import energy_distance
from ..pictures.preview import pictures
from ..pictures.sampling import Guided, seeded_noise
from ..runs.folder import RunFolder
from ..runs.run import Run, parted, reopen, resuming, starting
from ..trainer.config import TrainConfig, check_validation, resolved
from ..trainer.trainer import StepReport
from .results import Metrics, Result, Table, go_on, read, tabulated

logger = logging.getLogger(__name__)

RESULTS, SETTINGS = "trial.jsonl", "trial.json"
ARMS = range(2, 13)
"""How many arms a trial may have."""
BEST = "best"
"""The moment at which arms are compared."""
DRAWN = 32
"""Held-out captions that are drawn, at most."""
CHUNK = 16
"""Rows of one forward pass in drawing."""


@dataclass(frozen=True)
class Drawing:
    """How pictures of held-out captions are drawn."""

    steps: int = 20
    sampler: str = "unipc"
    order: int = 2
    cfgs: tuple[float, ...] = (1.0, 2.0)
    """Guidance scales: every arm is judged at its own best one as well."""


@dataclass(frozen=True)
class Trial:
    """Everything that a trial is made of."""

    source: ModelSource
    data: LatentDataset
    arms: Mapping[str, TrainConfig]
    """Settings by the arm's name; the first is what the others are compared with. Their seeds are not used."""
    seeds: int = 2
    validation: LatentDataset | None = None
    """Held-out pictures; None: the arms' `hold_out` sets them apart."""
    equal: str = "compute"
    """What all arms have alike: compute, counted in forward evaluations, or steps."""
    drawing: Drawing = Drawing()

    def __post_init__(self) -> None:
        if len(self.arms) not in ARMS:
            raise ValueError(f"arms must be 2 to 12, got {len(self.arms)}")
        if not 1 <= self.seeds <= 15:
            raise ValueError(f"seeds must be from 1 to 15, got {self.seeds}")
        if self.equal not in ("compute", "steps"):
            raise ValueError(f"equal must be compute or steps, got {self.equal!r}")
        for arm in self.arms:
            check_validation(self.config(arm, 0), self.validation is not None)

    @property
    def first(self) -> str:
        """The arm that the others are compared with."""
        return next(iter(self.arms))

    def config(self, arm: str, seed: int) -> TrainConfig:
        """An arm's settings with its number of steps, and what stops it at its best moment where it says nothing."""
        own = self.arms[arm]
        steps = own.steps
        if self.equal == "compute":
            base = self.arms[self.first]
            steps = max(1, round(base.steps * step_cost(base, self.source) / step_cost(own, self.source)))
        config = replace(own, steps=steps, seed=seed)
        if not config.hold_out and self.validation is None:
            config = replace(config, hold_out=0.2)
        if not config.patience:
            config = replace(config, patience=5, validate_every=max(1, steps // 20))
        return resolved(config, self.source)

    def held_out(self) -> LatentDataset:
        """The pictures that no arm is trained on."""
        _, held = parted(self.data, self.config(self.first, 0), self.validation)
        assert held is not None
        return held

    def described(self) -> dict[str, object]:
        """What makes this trial another one, as plain values."""
        return {
            "model": self.source.fingerprint,
            "data": self.data.fingerprint,
            "validation": None if self.validation is None else self.validation.fingerprint,
            "arms": {name: to_plain(self.config(name, 0)) for name in self.arms},
            "drawing": to_plain(self.drawing),
        }


def step_cost(config: TrainConfig, source: ModelSource) -> float:
    """Expected forward evaluations of an optimiser step.

    The base is frozen: a training row costs a forward and the activations' gradients, about 2, and 3 where they are
    calculated again.
    """
    rollout, trained = config.rollout, 3 if config.gradient_checkpointing else 2
    reflexflow = rollout.rolls_out and rollout.reflexflow.active(source.prediction)
    per_row = trained + expected_extra_forwards(rollout, reflexflow)
    per_batch = config.batch_size * per_row + expected_evaluations(rollout, trained)
    return config.accumulation * per_batch


Watch = Callable[[str, int, StepReport], None]
"""Told of every step, with arm and seed; to stop the trial it raises."""


def carry_out(
    trial: Trial, folder: Path, watch: Watch | None = None, say: Callable[[str], None] = logger.info
) -> Table:
    """Run what is missing of a trial in `folder`, all arms of a seed before the next seed; its table.

    Raises:
        ValueError: the folder holds another trial.
    """
    same_trial(trial, folder)

    def run(arm: str, seed: int) -> Result:
        told = None if watch is None else (lambda report: watch(arm, seed, report))
        handle, cost = trained(trial, folder, arm, seed, told)
        return Result(arm, seed, {BEST: cost | measured(trial, handle, seed)})

    jobs = [(arm, seed) for seed in range(trial.seeds) for arm in trial.arms]
    go_on(folder / RESULTS, jobs, run, say=say)
    wanted = [result for result in read(folder / RESULTS) if (result.arm, result.seed) in jobs]
    return tabulated(wanted, list(trial.arms))


def same_trial(trial: Trial, folder: Path) -> None:
    """Write down what the trial is, or refuse a folder that holds another one.

    Raises:
        ValueError: it does.
    """
    place, own = folder / SETTINGS, digest_of(repr(trial.described()))
    if place.exists():
        if place.read_text(encoding="utf-8").find(own) < 0:
            raise ValueError(
                f"the folder of a trial must be empty or hold the same one, got {folder} with another; choose another"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(place, {"digest": own, **trial.described()})


def trained(
    trial: Trial, folder: Path, arm: str, seed: int, watch: Callable[[StepReport], None] | None = None
) -> tuple[Run, Metrics]:
    """Train one arm from its beginning, or from where it was cut off; its best moment and what it cost."""
    config = trial.config(arm, seed)
    name = run_name(arm, seed)
    begun = unfinished(trial, folder, name)
    opened = (
        starting(folder, name, trial.source, trial.data, config, trial.validation)
        if begun is None
        else resuming(begun)
    )
    with opened as stage:
        best = stage.train(config.steps - stage.trainer.done, watch)
        rows, weight = stage.trainer.meter.rows, 3 if config.gradient_checkpointing else 2
        moment = stage.trainer.best
    evaluations = weight * rows["train"] + rows["rollout"] + rows["clean"]
    cost = {
        "loss": moment.loss,
        "step": float(best.step),
        "trained": float(stage.run.step),
        "planned": float(config.steps),
        "evaluations": float(evaluations),
    }
    return best, cost


def digest_of(text: str) -> str:
    """Hex digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_name(arm: str, seed: int) -> str:
    """The name of a run's folder; arms may be called anything."""
    plain = re.sub(r"[^\w-]+", "-", arm).strip("-") or "arm"
    return f"{plain}-{digest_of(arm)[:6]}-seed{seed}"


def unfinished(trial: Trial, folder: Path, name: str) -> Run | None:
    """The newest state of a run that was begun before; None if there is none."""
    for path in sorted(folder.glob(f"{name}-*"), reverse=True):
        if RunFolder(path).exists and RunFolder(path).steps():
            return reopen(path, trial.source, trial.data, validation=trial.validation)
    return None


def best_run(trial: Trial, folder: Path, arm: str, seed: int) -> Run:
    """The best moment of a run of a trial that was carried out."""
    run = unfinished(trial, folder, run_name(arm, seed))
    assert run is not None
    return replace(run, step=run.state.values["best"]["step"] or run.step)


# --- what is measured ---------------------------------------------------------------------------


def measured(trial: Trial, run: Run, seed: int) -> Metrics:
    """Energy distance of drawn latents to the held-out pictures', by guidance scale."""
    held, cond = drawn_on(trial)
    if len(held) < 2:
        return {}
    out = {}
    for cfg in scales(trial):
        latents = draw(trial, run.model, cond, held.shape[1:], cfg, seed)
        out[f"distance@{cfg:g}"] = float(energy_distance(latents.flatten(1), held.flatten(1)))
    return out


def scales(trial: Trial) -> tuple[float, ...]:
    """The guidance scales that can be drawn with: without an empty caption none but 1."""
    return trial.drawing.cfgs if trial.data.empty_cond else (1.0,)


def drawn_on(trial: Trial) -> tuple[Tensor, Cond]:
    """Latents [N, ...] and conditioning of the first held-out samples of the largest bucket."""
    data = trial.held_out()
    sizes = [len(bucket) for bucket in data.buckets]
    largest = sizes.index(max(sizes))
    batch = data.batch(sum(sizes[:largest]) + torch.arange(min(sizes[largest], DRAWN)))
    return batch.x0, batch.cond


@torch.inference_mode(False)
@torch.no_grad()
def draw(trial: Trial, model: LoadedModel, cond: Cond, shape: torch.Size, cfg: float, seed: int) -> Tensor:
    """Latents [N, ...] drawn from noise that depends on the seed alone. On the CPU."""
    source, own = trial.source, trial.drawing
    count = len(next(iter(cond.values())))
    first = 1000 * (seed + 1)
    noise = seeded_noise(shape, range(first, first + count))
    sigmas = trajectory(source.schedule, 1.0, 0.0, own.steps)[0]
    parts = []
    with model.denoiser() as denoiser:
        for rows in torch.arange(count).split(CHUNK):
            some = placed(select(cond, rows), source.device)
            free = some if cfg == 1 else without_captions(some, trial.data.empty_cond)
            x = noise[rows].to(source.device)
            start = add_noise(source.prediction, torch.zeros_like(x), x, sigmas[:1].to(x))
            guided = Guided(denoiser, some, free, cfg)
            parts.append(integrate(guided, start, sigmas, own.sampler, own.order, source.schedule.process))
    return torch.cat(parts).cpu()


def sheets(trial: Trial, folder: Path, cfgs: Mapping[str, float], columns: int = 6) -> dict[str, Tensor]:
    """Pictures [N, H, W, 3] of the first held-out captions, of each arm at the first seed, after the real ones."""
    held, cond = drawn_on(trial)
    n = min(columns, len(held))
    cond = select(cond, torch.arange(n))
    out = {"real": pictures(trial.source, held[None, :n].to(trial.source.device), None)[0]}
    for arm in trial.arms:
        best = best_run(trial, folder, arm, 0)
        latents = draw(trial, best.model, cond, held.shape[1:], cfgs[arm], 0)
        out[arm] = pictures(trial.source, latents[None].to(trial.source.device), None)[0]
    return out
