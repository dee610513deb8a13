"""Training: the whole in one node, or in stages with pictures in between; and the file at the end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from ..host import Cancelled, current, io
from ..host.report import REPORT_VARIABLE
from ..training.data.dataset import LatentDataset
from ..training.data.images import ImageDataset
from ..training.lora.adapter import LoRAConfig
from ..training.models.source import ModelSource
from ..training.objective.config import RolloutConfig
from ..training.objective.losses import LossConfig
from ..training.objective.rollout import step_time_factor
from ..training.objective.timesteps import TimestepConfig
from ..training.pictures.sampling import Drawing, Prompts
from ..training.plan.memory import fitted
from ..training.runs.board import Board, board_of, check_installed
from ..training.runs.export import save_lora
from ..training.runs.folder import RunFolder
from ..training.runs.live import Live
from ..training.runs.report import describe, report
from ..training.runs.run import Run, Stage, reopen, resuming, start, starting, validate
from ..training.runs.stages import branch
from ..training.trainer.config import TrainConfig, cost
from ..training.trainer.optim import OptimizerConfig
from ..training.trainer.ranks import RankStopped, cards_told, launched
from ..training.trainer.recipes import Recipe, fitting
from ..training.trainer.trainer import StepReport
from . import sockets
from .base import Node
from .comfy import as_model, hosted_inputs
from .data import as_data
from .recipe import model_class
from .schemas import schema
from .widgets import NO_LIMIT, added, same, widget, widgets

TRAIN = same(
    *("steps", "batch_size", "accumulation", "seed", "caption_dropout", "autocast", "gradient_checkpointing"),
    *("ema_decay", "save_every", "keep"),
)
WATCH = same("validate_every", "preview_every")
MEMORY = same("activation_offload")
HOLD_OUT = same("hold_out", "patience")


def setup_inputs() -> list[io.Input]:
    """What starting a run takes; `RolloutTrainLoRA` and `RolloutInitTraining` share it."""
    return [
        sockets.AnyModel.Input(
            "model",
            tooltip="The base model; it stays as it is. If it has a LoRA on it, that LoRA is trained further. A MODEL "
            "of ComfyUI will do, with clip and vae beside it if data are pictures.",
        ),
        sockets.AnyData.Input(
            "data",
            tooltip="What to train on: encoded data, or the pictures of Dataset from Folder as they are.",
        ),
        # Unless told not to, the front end randomises a seed after each queue, which would train anew.
        *widgets(TrainConfig, TRAIN, {"seed": {"control_after_generate": False}}),
        io.String.Input(
            "run_name", default="rollout", tooltip="Name of the run's folder; a number is added to it."
        ),
        *widgets(TrainConfig, WATCH, {"preview_every": {"optional": True}}),
        sockets.LoRA.Input(
            "lora",
            optional=True,
            tooltip="LoRA settings. Without them: rank 16 and alpha 16, or the settings of the LoRA that is on the "
            "model.",
        ),
        sockets.Optimizer.Input(
            "optimizer",
            optional=True,
            tooltip="Optimizer settings. Without them: adamw with a learning rate of 1e-4.",
        ),
        sockets.Timesteps.Input(
            "timesteps",
            optional=True,
            tooltip="Which noise levels are trained more often. Without it: all alike.",
        ),
        sockets.LossSettings.Input("loss", optional=True, tooltip="Loss settings. Without them: mse."),
        sockets.ScheduledSampling.Input(
            "scheduled_sampling",
            optional=True,
            tooltip="Rollout settings. Without them: the usual training, no rollouts.",
        ),
        sockets.AnyData.Input(
            "validation",
            optional=True,
            tooltip="Pictures that are not trained on: the loss on them is measured, see validate_every.",
        ),
        *widgets(TrainConfig, MEMORY, {"activation_offload": {"optional": True}}),
        io.Combo.Input(
            "memory",
            options=["manual", "auto"],
            default="manual",
            optional=True,
            tooltip="Before a large model is trained, the memory that it will need is predicted and shown. manual "
            "trains with the settings as they are; auto changes gradient_checkpointing, activation_offload, batch_size "
            "and accumulation where they would not fit, as little as it can.",
        ),
        *widgets(TrainConfig, HOLD_OUT, {id: {"optional": True} for id in HOLD_OUT}),
        widget(TrainConfig, "save_minutes", optional=True),
        *hosted_inputs(),
    ]


def recipe_input() -> io.Input:
    """Whether settings that are not connected are those of the model's recipe."""
    choice = io.Combo.Input(
        "recipe",
        options=["automatic", "none"],
        default="automatic",
        optional=True,
        tooltip="Settings that are not connected (LoRA, optimizer, timesteps, loss): automatic takes those that "
        "trainers use for your model, as the Recipe node has them, and says so; none takes the same for every model.",
    )
    return added(choice, before="none")


def new_run(
    model: Any,
    data: LatentDataset | ImageDataset,
    run_name: str,
    lora: LoRAConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    timesteps: TimestepConfig | None = None,
    loss: LossConfig | None = None,
    scheduled_sampling: RolloutConfig | None = None,
    validation: LatentDataset | ImageDataset | None = None,
    memory: str = "manual",
    clip: Any = None,
    vae: Any = None,
    recipe: str = "none",
    prompts: Prompts | None = None,
    **own: Any,
) -> tuple[dict[str, Any], str, Drawing | None]:
    """The arguments of `start` and `starting`, what to say of its recipe and of the memory that it will need, prompts.

    The prompts are made ready before the network is opened to train: text encoders may need its place. `own` are the
    widgets that are fields of `TrainConfig`.
    """
    model = as_model(model, clip, vae)
    found = recipe_of(model.source, data) if recipe == "automatic" else None
    data = as_data(data, model)
    validation = None if validation is None else as_data(validation, model)
    if model.adapter is not None:
        own_lora = model.adapter.config
    else:
        own_lora = found.lora if found else LoRAConfig(preset="attention")
    config = TrainConfig(
        lora=lora or own_lora,
        optimizer=optimizer or (found.optimizer if found else OptimizerConfig()),
        timesteps=timesteps or (found.timesteps if found else TimestepConfig()),
        loss=loss or (found.loss if found else LossConfig()),
        rollout=scheduled_sampling or RolloutConfig(),
        **own,
    )
    if config.validate_every and validation is None and not config.hold_out:
        raise ValueError(
            f"validate_every must be 0 without validation data, got {config.validate_every}; connect some to "
            "validation, or set hold_out to 0.1 or more"
        )
    drawing = drawing_of(prompts, model.source, data)
    config, told = fitted(model.source, data, config, memory == "auto", drawing)
    if found and None in (lora, optimizer, timesteps, loss):
        told = "; ".join(filter(None, [f"settings of the recipe {found.family}, {found.kind}", told]))
    asked = {
        "root": current().runs_dir(),
        "name": run_name,
        "source": model.source,
        "data": data,
        "config": config,
        "validation": validation,
        "adapter": model.adapter,
    }
    return asked, told, drawing


def recipe_of(source: ModelSource, data: LatentDataset | ImageDataset) -> Recipe | None:
    """The recipe of a model's family: for pairs if the pictures have controls, else for a look; None: it has none."""
    pairs = isinstance(data, ImageDataset) and bool(data.items[0].controls)
    return fitting(model_class(source), "edit" if pairs else "style")


def compile_input() -> io.Input:
    """Whether the model's blocks are compiled."""
    return widget(TrainConfig, "compile", optional=True)


def prompts_input() -> io.Input:
    """What is drawn while a node trains."""
    return sockets.SamplePrompts.Input(
        "sample_prompts",
        optional=True,
        tooltip="Your own prompts, drawn while it trains and shown in the panel.",
    )


def drawing_of(prompts: Prompts | None, source: ModelSource, data: LatentDataset) -> Drawing | None:
    """The prompts made ready before the network is opened to train: text encoders may need its place."""
    return None if prompts is None else Drawing(source, prompts, data)


def events_input() -> io.Input:
    """Whether a node writes event files."""
    return io.Boolean.Input(
        "tensorboard",
        default=False,
        optional=True,
        tooltip="Also writes the curves and pictures as TensorBoard event files into the run's folder. Needs the "
        "Python package tensorboard; nothing is sent anywhere.",
    )


def train_watched(
    opening: AbstractContextManager[Stage],
    steps: int,
    told: str = "",
    drawing: Drawing | None = None,
    tensorboard: bool = False,
    graph: Mapping[str, Any] | None = None,
    save_as: str = "",
) -> io.NodeOutput:
    """Train with the host's progress bar and the node's panel.

    Args:
        opening: of `starting` or `resuming`.
        told: what to say first of the memory that it will need.
        drawing: the user's prompts.
        tensorboard: whether to write event files.
        graph: what `graph_of` says, kept in the run's folder.
        save_as: name of the LoRA file; "": none.
    """
    check_launch()
    if tensorboard:
        check_installed()
    try:
        with opening as stage:
            trainer = stage.trainer
            cards = cards_told(trainer.ranks, trainer.device, torch.cuda.device_count())
            told = "; ".join(filter(None, [told, cards]))
            stage.drawing = drawing
            if graph and trainer.ranks.first:
                stage.run.folder.keep_workflow(graph)
            with board_of(stage.run, tensorboard and trainer.ranks.first) as board:
                run, live = watched(stage, steps, told, board)
            best = stage.trainer.best if run.config.patience else None
    except RankStopped as err:  # a stop of one rank is one of all
        raise Cancelled from err
    measured = report(run)
    if best is not None:
        measured["best"] = best.plain() | {"trained": stage.trainer.done}
    current().report(measured)
    saved = saved_lora(run, save_as, graph or {}) if save_as and launched().first else None
    return outputs(run, measured, live.facts(), told, saved)


def graph_of(node: type[io.ComfyNode]) -> dict[str, Any]:
    """The graph that a node runs in, ``prompt`` and ``workflow``; ComfyUI tells it to output nodes.

    Without what ComfyUI notes in it while it runs: a node that is always run anew has a NaN there.
    """
    hidden = getattr(node, "hidden", None)
    if hidden is None:
        return {}
    prompt = {
        id: {name: value for name, value in own.items() if name != "is_changed"}
        for id, own in (hidden.prompt or {}).items()
    }
    return {"prompt": prompt, **(hidden.extra_pnginfo or {})}


def check_launch() -> None:
    """Refuse a ComfyUI that a launcher started itself: its processes do not get the same workflows.

    Raises:
        RuntimeError: this is one.
    """
    if launched().several and current().name == "comfyui" and REPORT_VARIABLE not in os.environ:
        raise RuntimeError(
            "ComfyUI must not be started by accelerate launch; to train on several cards in it, run the workflow with "
            "accelerate launch -m rollout_trainer run WORKFLOW.json --comfyui DIR"
        )


def watched(stage: Stage, steps: int, told: str = "", board: Board | None = None) -> tuple[Run, Live]:
    """Train, and show how it goes; tell first what it and its rollouts will cost.

    Returns:
        The handle to pass on, and the panel's facts.
    """
    run = stage.run
    progress = current().progress(steps, run.folder)
    extra = cost(run.config, run.source)
    if run.config.compile:
        progress.update(0, "compiling the model's blocks, which takes a minute or more")
    lines = [line for line in (told, stage.trainer.compile()) if line]
    if extra:
        factor = step_time_factor(extra, run.config.gradient_checkpointing)
        lines.append(
            f"about {extra:.1f} extra model calls per sample, {factor:.1f}x the time of a plain step"
        )
    if lines:
        progress.update(0, "; ".join(lines))
    live = Live(run, steps, lines)

    def watch(done: StepReport) -> None:
        live.add(done)
        if board is not None:
            board.add(done)
        text = f"loss {done.loss:.4f}, {done.steps_per_second:.1f} steps/s"
        if done.probability:
            what = "slowed" if run.config.rollout.slowed else "rollouts"
            text += f", {what} {done.probability:.0%}"
        picture = None if done.film is None else done.film.frames[-1]
        progress.update(done.step - run.step, text, picture, live.facts)

    try:
        kept = stage.train(steps, watch, progress.asked)
    except BaseException as err:
        live.saved()
        if isinstance(err, Exception) and not isinstance(
            err, Cancelled
        ):  # ComfyUI's Cancelled is one in 0.3.64
            progress.end(live.facts, "failed", str(err))
        else:
            progress.end(live.facts, "stopped")
        current().report({"saved": str(run.folder.state_path(live.step))})
        raise
    live.saved()
    progress.end(live.facts, "done")
    return kept, live


RUN_OUTPUTS = (
    sockets.Run.Output(
        display_name="run",
        tooltip="The training at the step that it ended at: for Save LoRA, Apply LoRA, Loss Plot, "
        "Validate, or Train Steps to go on.",
    ),
    sockets.Model.Output(
        display_name="model",
        tooltip="The model with the trained LoRA on it: for Sample, Preview Rollout and Exposure Bias.",
    ),
    io.String.Output(
        display_name="summary",
        tooltip="What the training did, in words: steps, losses, time, model calls, memory.",
    ),
)


def outputs(
    run: Run,
    measured: dict[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    told: str = "",
    saved: Path | None = None,
) -> io.NodeOutput:
    """What every training node gives: the handle, the model with its adapter, a text, and facts for its panel.

    Args:
        measured: the run's report, where it was made already.
        told: what to say first.
        saved: the file of the LoRA.
    """
    text = "\n".join(filter(None, [told, describe(run, measured or report(run))]))
    lines = (text,) if saved is None else (text, f"saved {saved}")
    shown = {"text": lines} | ({"rollout_trainer": (facts,)} if facts else {})
    return io.NodeOutput(run, run.model, text, ui=shown)


class RolloutTrainLoRA(Node):
    """The whole training in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutTrainLoRA",
            display_name="Train LoRA (Rollout)",
            description="Trains a LoRA, with rollouts if scheduled sampling is connected. Cancel at any time: the "
            "run is saved and can be resumed.",
            inputs=[
                *setup_inputs(),
                prompts_input(),
                events_input(),
                recipe_input(),
                io.String.Input(
                    "save_lora_as",
                    default="",
                    optional=True,
                    tooltip="File name of the LoRA, which is saved at the end where ComfyUI's LoRA loader finds it. "
                    "Empty: it is not; connect Save LoRA, or save it from the list of runs in the sidebar.",
                ),
                compile_input(),
            ],
            outputs=list(RUN_OUTPUTS),
            is_output_node=True,  # a graph may end here: the run is on the disk, the sidebar saves its LoRA
        )

    @classmethod
    def execute(
        cls,
        sample_prompts: Prompts | None = None,
        tensorboard: bool = False,
        save_lora_as: str = "",
        **inputs: Any,
    ) -> io.NodeOutput:
        """Start, train, and save the LoRA if it was given a name."""
        if tensorboard:
            check_installed()  # before the data are encoded
        run, told, drawing = new_run(prompts=sample_prompts, **inputs)
        return train_watched(
            starting(**run), inputs["steps"], told, drawing, tensorboard, graph_of(cls), save_lora_as.strip()
        )


class RolloutInitTraining(Node):
    """The start of a staged training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutInitTraining",
            display_name="Init Training",
            description="Starts a run but does not train yet: connect Train Steps after it, with previews in "
            "between.",
            inputs=[*setup_inputs(), recipe_input(), compile_input()],
            outputs=list(RUN_OUTPUTS),
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Start."""
        run, told, _ = new_run(**inputs)
        check_launch()
        return outputs(start(**run), told=told)


class RolloutTrainSteps(Node):
    """One stage of a staged training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutTrainSteps",
            display_name="Train Steps",
            description="Trains on from the state at its input. That state stays: two Train Steps may go on from the "
            "same one, and queueing again starts from it once more. A stage with settings of its own goes on in a new "
            "run folder.",
            inputs=[
                sockets.Run.Input("run", tooltip="The state to go on from."),
                widget(TrainConfig, "steps", default=100, tooltip="Training steps of this stage."),
                io.Int.Input(
                    "until_step",
                    optional=True,
                    default=0,
                    min=0,
                    max=NO_LIMIT,
                    tooltip="Above 0: instead of steps, train until the run has this many steps in all, and not at "
                    "all if it has them. For use after Resume Training, which may open a later state each time.",
                ),
                widget(
                    OptimizerConfig,
                    "lr",
                    "learning_rate",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    tooltip="Above 0: another highest learning rate from this stage on, for example a third of the "
                    "first for the last stage; 0 keeps the run's.",
                ),
                sockets.ScheduledSampling.Input(
                    "scheduled_sampling",
                    optional=True,
                    tooltip="Other rollout settings from this stage on; without them the run's stay. Their "
                    "ramp_steps and start_step count from the start of the first stage that has them.",
                ),
                prompts_input(),
                events_input(),
            ],
            outputs=list(RUN_OUTPUTS),
            is_output_node=True,  # a graph may end here: the run is on the disk, the sidebar saves its LoRA
        )

    @classmethod
    def execute(
        cls,
        run: Run,
        steps: int,
        until_step: int = 0,
        learning_rate: float = 0.0,
        scheduled_sampling: RolloutConfig | None = None,
        sample_prompts: Prompts | None = None,
        tensorboard: bool = False,
    ) -> io.NodeOutput:
        """Train."""
        if until_step:
            steps = until_step - run.step
            if steps <= 0:
                return outputs(run)
        branched = branch(run, scheduled_sampling, learning_rate or None, steps)
        drawing = drawing_of(sample_prompts, run.source, run.data)
        return train_watched(resuming(branched), steps, "", drawing, tensorboard, graph_of(cls))


class RolloutResumeTraining(Node):
    """A saved state of an earlier run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutResumeTraining",
            display_name="Resume Training",
            description="Opens a run folder again; connect Train Steps after it. The resumed run becomes the same as "
            "one that was never stopped.",
            inputs=[
                sockets.AnyModel.Input("model", tooltip="The base model that the run was made with."),
                sockets.AnyData.Input("data", tooltip="The data that the run was made with."),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="The run's folder; the summary of the training node names it.",
                ),
                io.Int.Input(
                    "step",
                    default=-1,
                    min=-1,
                    max=NO_LIMIT,
                    tooltip="Which saved state, by its step; -1 is the last one.",
                ),
                sockets.AnyData.Input(
                    "validation",
                    optional=True,
                    tooltip="The validation pictures that the run was made with, if it had any of its own: the loss "
                    "on them is measured as before. Pictures that the run held out itself need nothing here.",
                ),
                *hosted_inputs(),
            ],
            outputs=list(RUN_OUTPUTS),
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **inputs: Any) -> str:
        """A folder that got another state since is another input; None: its name comes through a link."""
        folder = folder or current().linked_text("folder")
        if not folder:
            return ""
        try:
            return ",".join(map(str, RunFolder(current().resolve_path(folder)).steps()))
        except ValueError:  # execute says so
            return ""

    @classmethod
    def execute(
        cls,
        model: Any,
        data: LatentDataset | ImageDataset,
        folder: str,
        step: int,
        validation: LatentDataset | ImageDataset | None = None,
        clip: Any = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        """Open it."""
        base = as_model(model, clip, vae)
        held_out = None if validation is None else as_data(validation, base)
        path = current().resolve_path(folder)
        return outputs(reopen(path, base.source, as_data(data, base), step, held_out))


class RolloutValidate(Node):
    """The validation loss of one state."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutValidate",
            display_name="Validate (Rollout)",
            description="Mean loss on pictures that are not trained on: always with the same noise and noise levels, "
            "never rolled out. Falls while the LoRA learns what holds for other pictures too, rises when it starts to "
            "memorise.",
            inputs=[
                sockets.Run.Input("run", tooltip="The state to measure."),
                sockets.Data.Input("data", tooltip="Pictures that are not trained on."),
            ],
            outputs=[
                io.Float.Output(
                    display_name="loss",
                    tooltip="The loss on these data at fixed noise, never rolled out: lower is better, "
                    "and comparable only on the same data.",
                )
            ],
        )

    @classmethod
    def execute(cls, run: Run, data: LatentDataset) -> io.NodeOutput:
        """Measure it."""
        loss = validate(run, data)
        current().report({"validation": {str(run.step): loss}})
        return io.NodeOutput(loss, ui={"text": (f"step {run.step}: {loss:.5f}",)})


def saved_lora(run: Run, name: str, graph: Mapping[str, Any]) -> Path:
    """The LoRA of a run as a file that has the graph which made it."""
    path = save_lora(run, current().loras_dir(), name, graph)
    current().report({"lora": str(path)})
    return path


class RolloutSaveLoRA(Node):
    """The adapter as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutSaveLoRA",
            display_name="Save LoRA (Rollout)",
            description="Saves the LoRA where ComfyUI's LoRA loader finds it, with all settings in the file. Never "
            "overwrites: if the name is taken, a number is added.",
            inputs=[
                sockets.Run.Input("run", tooltip="The state whose LoRA is saved."),
                io.String.Input(
                    "filename",
                    default="rollout_lora",
                    tooltip="File name without .safetensors; may include a folder.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the LoRA file was written.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, run: Run, filename: str) -> io.NodeOutput:
        """Write it."""
        path = saved_lora(run, filename, graph_of(cls))
        return io.NodeOutput(str(path), ui={"text": (f"saved {path}",)})
