"""A trial in the graph: the same data, model and compute, two to four ways to train, paired by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..host import current, io
from ..training.checks import from_plain, to_plain
from ..training.data.dataset import LatentDataset
from ..training.data.images import ImageDataset
from ..training.files import write_atomically
from ..training.lora.adapter import LoRAConfig
from ..training.objective.config import ReflexFlowConfig, RolloutConfig
from ..training.objective.losses import LossConfig
from ..training.objective.timesteps import TimestepConfig
from ..training.pictures import plots
from ..training.trainer.config import TrainConfig
from ..training.trainer.optim import OptimizerConfig
from ..training.trainer.trainer import StepReport
from ..training.trial.results import Table
from ..training.trial.trial import Drawing, Trial, best_run, carry_out, digest_of, sheets
from ..training.trial.verdict import as_text, best_cfg, compared, plotted, winner
from . import sockets
from .base import Node
from .comfy import as_model, hosted_inputs
from .data import as_data
from .pictures import as_image
from .schemas import schema
from .widgets import same, widgets

OWN = same("steps", "batch_size", "caption_dropout", "autocast", "gradient_checkpointing", "hold_out")
OWN_DEFAULTS = {"hold_out": {"default": 0.2}}
CONNECTED = "connected"
"""The arm that has the scheduled sampling that is connected."""
PLAIN = RolloutConfig(reflexflow=ReflexFlowConfig("off"))
RESIDUAL = replace(PLAIN, max_step_offset=3, probability=0.5, steps_per_trajectory=20)
WAYS: Mapping[str, RolloutConfig] = {
    "plain": PLAIN,
    "residual": RESIDUAL,
    "mixflow": replace(PLAIN, target="mixflow", probability=1.0),
    "guided": replace(RESIDUAL, guidance=2.0),
    "solver_error": replace(RESIDUAL, target="solver_error"),
    "reflexflow": replace(RESIDUAL, reflexflow=ReflexFlowConfig(beta1=0.1)),
}
"""Arms that have a name; benchmarks/study.py measures the same."""
PARTS = ("rollout", "rollout.reflexflow", "optimizer", "lora", "timesteps", "loss", "")
"""Where a setting is looked for, in this order, when a line says its name alone."""


def arms_of(text: str, base: TrainConfig, connected: RolloutConfig | None) -> dict[str, TrainConfig]:
    """The arms that `text` names, a line each: ``NAME`` or ``NAME: setting=value, setting=value``.

    A name of `WAYS`, or ``connected``, begins with those rollouts, any other with those of `base`.

    Raises:
        ValueError: it says which line cannot be.
    """
    ways = dict(WAYS) | ({} if connected is None else {CONNECTED: connected})
    arms: dict[str, TrainConfig] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, settings = (part.strip() for part in line.partition(":"))
        if name in arms or not name:
            raise ValueError(f"arms must have different names, got {line!r} again; name one otherwise")
        if name == CONNECTED and connected is None:
            raise ValueError(
                f"arms must not name {CONNECTED}, got it with nothing at scheduled_sampling; wire it"
            )
        config = replace(base, rollout=ways.get(name, base.rollout))
        for setting in filter(None, map(str.strip, settings.split(","))):
            config = changed(config, setting)
        arms[name] = config
    return arms


def changed(config: TrainConfig, setting: str) -> TrainConfig:
    """`config` with one setting, ``name=value`` or ``part.name=value``, for example ``optimizer.lr=1e-4``.

    Raises:
        ValueError: there is no such setting, or it cannot have that value.
    """
    path, equals, text = (part.strip() for part in setting.partition("="))
    plain: dict[str, Any] = to_plain(config)
    part, _, name = path.rpartition(".")
    places = [part] if part else [p for p in PARTS if name in _at(plain, p)]
    place = _at(plain, places[0]) if places else {}
    if not equals or name not in place or isinstance(place[name], dict):
        known = sorted(
            {key for p in PARTS for key, value in _at(plain, p).items() if not isinstance(value, dict)}
        )
        raise ValueError(
            f"arms must set known settings as name=value, got {setting!r}; known: {', '.join(known)}"
        )
    place[name] = _read(text, place[name], setting)
    return from_plain(TrainConfig, plain)


def _at(plain: dict[str, Any], part: str) -> dict[str, Any]:
    """The settings of a part; none of a part that is not there."""
    for name in filter(None, part.split(".")):
        inner = plain.get(name)
        plain = inner if isinstance(inner, dict) else {}
    return plain


def _read(text: str, like: Any, setting: str) -> Any:
    """A value of the type of `like`."""
    if isinstance(like, str):
        return text
    try:
        value = json.loads(text.lower())
    except ValueError:
        value = None
    whole = isinstance(like, int) and not isinstance(like, bool)
    if isinstance(value, bool) is not isinstance(like, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"arms must give numbers to numbers and true or false to switches, got {setting!r}")
    return value if isinstance(like, bool) else int(value) if whole and value == int(value) else float(value)


def scales_of(text: str) -> tuple[float, ...]:
    """Guidance scales, as ``1, 2``.

    Raises:
        ValueError: these are none.
    """
    try:
        scales = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        scales = ()
    if not scales or min(scales) < 0:
        raise ValueError(f"cfg must be numbers of 0 or more, got {text!r}; 1, 2 is usual")
    return scales


class RolloutTrial(Node):
    """Two to four ways to train, compared."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutTrial",
            display_name="Trial (Rollout)",
            description="Trains in two to four ways on your pictures with the same compute, each stopped at its best "
            "moment, several times with paired seeds, and says which is better, or that no difference was seen. "
            "Cancelled, it goes on where it was.",
            inputs=[
                sockets.AnyModel.Input("model", tooltip="The base model; it stays as it is."),
                sockets.AnyData.Input("data", tooltip="What to train on; a share is held out to compare on."),
                io.String.Input(
                    "arms",
                    default="plain\nresidual",
                    multiline=True,
                    tooltip="Two to four ways to train, one per line; the others are compared with the first. Known "
                    f"names: {', '.join(WAYS)}, {CONNECTED} (the scheduled sampling at the input). Settings after a "
                    "colon: slow: lr=1e-4, rank=8. Names that are not known begin with what is connected.",
                ),
                io.Int.Input(
                    "seeds",
                    default=2,
                    min=1,
                    max=15,
                    tooltip="Trainings of every arm. 2 show a large difference, 4 a smaller one; 1 shows none.",
                ),
                *widgets(TrainConfig, OWN, OWN_DEFAULTS),
                io.Combo.Input(
                    "equal",
                    options=["compute", "steps"],
                    default="compute",
                    tooltip="What all arms have alike: compute (dearer arms train fewer steps) or steps.",
                ),
                io.String.Input(
                    "cfg",
                    default="1, 2",
                    tooltip="Guidance scales (CFG) to draw with; every arm is judged at its own best one too. 1 alone "
                    "for models that are used without CFG.",
                ),
                io.String.Input(
                    "trial_name",
                    default="trial",
                    tooltip="Name of the trial's folder; other settings get another one.",
                ),
                sockets.LoRA.Input("lora", optional=True, tooltip="LoRA settings of all arms."),
                sockets.Optimizer.Input(
                    "optimizer", optional=True, tooltip="Optimizer settings of all arms."
                ),
                sockets.Timesteps.Input("timesteps", optional=True, tooltip="Noise levels of all arms."),
                sockets.LossSettings.Input("loss", optional=True, tooltip="Loss settings of all arms."),
                sockets.ScheduledSampling.Input(
                    "scheduled_sampling", optional=True, tooltip=f"Rollout settings of the arm {CONNECTED}."
                ),
                sockets.AnyData.Input(
                    "validation",
                    optional=True,
                    tooltip="Pictures to compare on; set hold_out to 0 with them.",
                ),
                *hosted_inputs(),
            ],
            outputs=[
                io.String.Output(
                    display_name="table", tooltip="The means of all arms, and a sentence for each difference."
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="The differences of the main metric: every seed, the mean, its interval.",
                ),
                io.Image.Output(
                    display_name="pictures",
                    tooltip="Held-out pictures, and what every arm draws for their captions from the same noise.",
                ),
                sockets.Run.Output(
                    display_name="best_run", tooltip="The best moment of the best training, for Save LoRA."
                ),
                sockets.Model.Output(
                    display_name="best_model", tooltip="The base model with the LoRA of that moment."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, arms: str, seeds: int, equal: str, cfg: str, trial_name: str, **inputs: Any
    ) -> io.NodeOutput:
        """Carry the trial out, or go on with it."""
        trial = trial_of(arms, inputs, seeds=seeds, equal=equal, drawing=Drawing(cfgs=scales_of(cfg)))
        folder = (
            current().runs_dir().parent
            / "rollout_trials"
            / f"{trial_name}-{digest_of(repr(trial.described()))}"
        )
        table = conducted(trial, folder)
        text, plot, grid = shown(trial, table, folder)
        run = best_run(trial, folder, *winner(table))
        told = f"{text}\n\nFolder: {folder}"
        return io.NodeOutput(told, as_image(plot), as_image(grid), run, run.model, ui={"text": (told,)})


def trial_of(arms: str, inputs: dict[str, Any], **options: Any) -> Trial:
    """The trial that a node's inputs mean; `options` are those of the `Trial`."""
    parts = {name: inputs.pop(name, None) for name in ("lora", "optimizer", "timesteps", "loss")}
    usual = {
        "lora": LoRAConfig(),
        "optimizer": OptimizerConfig(),
        "timesteps": TimestepConfig(),
        "loss": LossConfig(),
    }
    model = as_model(inputs.pop("model"), inputs.pop("clip", None), inputs.pop("vae", None))
    if model.adapter is not None:
        raise ValueError("model must carry no LoRA in a trial, got one; take Load LoRA File out")
    data = as_data(inputs.pop("data"), model)
    validation: LatentDataset | ImageDataset | None = inputs.pop("validation", None)
    connected: RolloutConfig | None = inputs.pop("scheduled_sampling", None)
    own: dict[str, Any] = {name: parts[name] or config for name, config in usual.items()}
    every = max(1, inputs["steps"] // 20)
    base = TrainConfig(**inputs, **own, validate_every=every, patience=5, rollout=connected or PLAIN)
    held = None if validation is None else as_data(validation, model)
    return Trial(model.source, data, arms_of(arms, base, connected), validation=held, **options)


def conducted(trial: Trial, folder: Path) -> Table:
    """The trial's table, with the host's progress bar."""
    steps = {arm: trial.config(arm, 0).steps for arm in trial.arms}
    first = {arm: sum(list(steps.values())[:i]) for i, arm in enumerate(steps)}
    whole = sum(steps.values())
    progress = current().progress(whole * trial.seeds)

    def watch(arm: str, seed: int, report: StepReport) -> None:
        done = seed * whole + first[arm] + report.step  # a run that stopped early counts whole
        progress.update(done, f"{arm}, seed {seed}: loss {report.loss:.4f}")

    return carry_out(trial, folder, watch)


def shown(trial: Trial, table: Table, folder: Path) -> tuple[str, plots.Picture, plots.Picture]:
    """The trial's text, the plot of its main differences, and pictures of all arms from the same noise."""
    text, found = as_text(table), compared(table)
    write_atomically(folder / "trial.md", f"{text}\n".encode())
    cfgs = {arm: best_cfg(table, arm) for arm in table}
    rows = sheets(trial, folder, cfgs)
    labels = [name if name == "real" else f"{name}, CFG {cfgs[name]:g}" for name in rows]
    grid = plots.image_grid([pixels.cpu().numpy() for pixels in rows.values()], labels)
    return text, plots.difference_plot(plotted(found), found[0].metric), grid
