"""Training: the whole in one node, or in stages with pictures in between; and the file at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from ..host import current, io
from ..training.data.dataset import LatentDataset
from ..training.lora.adapter import LoRAConfig
from ..training.models.source import LoadedModel
from ..training.objective.config import RolloutConfig
from ..training.objective.losses import LossConfig
from ..training.objective.rollout import step_time_factor
from ..training.objective.timesteps import TimestepConfig
from ..training.runs.export import save_lora
from ..training.runs.folder import RunFolder
from ..training.runs.live import Live
from ..training.runs.report import describe, report
from ..training.runs.run import Run, reopen, start, train, validate
from ..training.runs.stages import branch
from ..training.trainer.config import Autocast, TrainConfig, cost
from ..training.trainer.optim import OptimizerConfig
from ..training.trainer.trainer import Progress
from . import sockets


def setup_inputs() -> list[io.Input]:
    """What starting a run takes; `RolloutTrainLoRA` and `RolloutInitTraining` share it."""
    return [
        sockets.Model.Input(
            "model",
            tooltip="The base model; it stays as it is. With an adapter on it, training goes on from that.",
        ),
        sockets.Data.Input("data", tooltip="What to train on."),
        io.Int.Input(
            "steps",
            default=500,
            min=1,
            max=10_000_000,
            tooltip="Training steps that the run is planned for; learning-rate schedules end there.",
        ),
        io.Int.Input(
            "batch_size",
            default=1,
            min=1,
            max=1024,
            tooltip="Samples per forward pass. More is steadier and needs more memory.",
        ),
        io.Int.Input(
            "accumulation",
            default=1,
            min=1,
            max=1024,
            tooltip="Passes per step whose gradients are averaged: a larger batch in the same memory.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,  # the front end would randomise it: each queue would train anew
            tooltip="Of everything random in the run: the same seed trains the same LoRA.",
        ),
        io.Float.Input(
            "caption_dropout",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Chance that a sample is trained without its caption; 0.05 to 0.1 keeps guidance (CFG) working.",
        ),
        io.Combo.Input(
            "autocast",
            options=list(get_args(Autocast)),
            default="off",
            tooltip="Precision inside the model: bf16 on recent GPUs and CPUs, fp16 on older GPUs, off for the "
            "model's own.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=False,
            tooltip="Recompute in the backward pass: much less memory, a step takes about 1.5 times as long.",
        ),
        io.Float.Input(
            "ema_decay",
            default=0.0,
            min=0.0,
            max=0.99999,
            step=0.001,
            round=0.00001,
            tooltip="Average the adapter over time and use the average: 0.99 for short runs, 0.999 for long ones, "
            "0 is off.",
        ),
        io.Int.Input(
            "save_every",
            default=0,
            min=0,
            max=1_000_000,
            tooltip="Steps between saved states while a stage runs; each stage saves at its end and when stopped.",
        ),
        io.Int.Input("keep", default=3, min=0, max=1000, tooltip="How many of those to keep; 0 keeps all."),
        io.String.Input("run_name", default="rollout", tooltip="Name of the run's folder; it gets a number."),
        io.Int.Input(
            "validate_every",
            default=0,
            min=0,
            max=1_000_000,
            tooltip="Steps between validation losses on the validation data; 0 is off. Always the same pictures, "
            "noise and noise levels, never rolled out.",
        ),
        io.Int.Input(
            "preview_every",
            optional=True,
            default=0,
            min=0,
            max=1_000_000,
            tooltip="Steps between films in the panel: one picture of the data rolled out by the LoRA as it is then, "
            "with its drift. Each costs about as much as a few steps; 0 is off, and a button takes one at any time.",
        ),
        sockets.LoRA.Input(
            "lora",
            optional=True,
            tooltip="LoRA settings; without them rank 16, alpha 16, or those of the adapter that the model has.",
        ),
        sockets.Optimizer.Input(
            "optimizer", optional=True, tooltip="Optimizer settings; without them: AdamW at 1e-4."
        ),
        sockets.Timesteps.Input(
            "timesteps", optional=True, tooltip="Which noise levels; without it: uniform."
        ),
        sockets.LossSettings.Input("loss", optional=True, tooltip="Loss settings; without them: mse."),
        sockets.ScheduledSampling.Input(
            "scheduled_sampling", optional=True, tooltip="Rollouts; without it the training is the usual one."
        ),
        sockets.Data.Input("validation", optional=True, tooltip="Pictures that are not trained on."),
    ]


def begin(
    model: LoadedModel,
    data: LatentDataset,
    run_name: str,
    lora: LoRAConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    timesteps: TimestepConfig | None = None,
    loss: LossConfig | None = None,
    scheduled_sampling: RolloutConfig | None = None,
    validation: LatentDataset | None = None,
    **own: Any,
) -> Run:
    """Start a run; `own` are the widgets that are fields of `TrainConfig`."""
    own_lora = model.adapter.config if model.adapter is not None else LoRAConfig()
    config = TrainConfig(
        lora=lora or own_lora,
        optimizer=optimizer or OptimizerConfig(),
        timesteps=timesteps or TimestepConfig(),
        loss=loss or LossConfig(),
        rollout=scheduled_sampling or RolloutConfig(),
        **own,
    )
    if config.validate_every and validation is None:
        raise ValueError(
            f"validate_every must be 0 without validation data, got {config.validate_every}; wire some"
        )
    return start(current().runs_dir(), run_name, model.source, data, config, validation, model.adapter)


def train_watched(run: Run, steps: int) -> io.NodeOutput:
    """Train with the host's progress bar and the node's panel; tell first what rollouts will cost."""
    progress, live = current().progress(steps, run.folder), Live(run, steps)
    extra = cost(run.config, run.source)
    if extra:
        factor = step_time_factor(extra, run.config.gradient_checkpointing)
        progress.update(
            0, f"about {extra:.1f} extra forwards per sample, {factor:.1f}x the time of a plain step"
        )
    first = run.step

    def watch(now: Progress) -> None:
        live.add(now)
        text = f"loss {now.loss:.4f}, {now.steps_per_second:.1f} steps/s"
        if now.probability:
            text += f", rollouts {now.probability:.0%}"
        picture = None if now.film is None else now.film.frames[-1]
        progress.update(now.step - first, text, picture, live.facts)

    try:
        run = train(run, steps, watch, progress.asked)
    except BaseException:
        live.saved()
        progress.end(live.facts, "stopped")
        current().report({"saved": str(run.folder.state_path(live.step))})
        raise
    live.saved()
    progress.end(live.facts, "done")
    measured = report(run)
    current().report(measured)
    return outputs(run, measured, live.facts())


RUN_OUTPUTS = (
    sockets.Run.Output(display_name="run"),
    sockets.Model.Output(display_name="model"),
    io.String.Output(display_name="summary"),
)


def outputs(
    run: Run, measured: dict[str, Any] | None = None, facts: Mapping[str, Any] | None = None
) -> io.NodeOutput:
    """What every training node gives: the handle, the model with its adapter, a text, and facts for its panel.

    Args:
        measured: the run's report, where it was made already.
    """
    text = describe(run, measured or report(run))
    shown = {"text": (text,)} | ({"rollout_trainer": (facts,)} if facts else {})
    return io.NodeOutput(run, run.model, text, ui=shown)


class RolloutTrainLoRA(io.ComfyNode):
    """The whole training in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutTrainLoRA",
            display_name="Train LoRA",
            category=sockets.CATEGORY,
            description="Trains a LoRA, with rollouts where scheduled sampling is wired. Cancel at any time: the run "
            "is saved and can be resumed.",
            inputs=setup_inputs(),
            outputs=list(RUN_OUTPUTS),
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Start and train."""
        return train_watched(begin(**inputs), inputs["steps"])


class RolloutInitTraining(io.ComfyNode):
    """The begin of a staged training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutInitTraining",
            display_name="Init Training",
            category=sockets.CATEGORY,
            description="Starts a run without training; chain Train Steps after it, with previews in between.",
            inputs=setup_inputs(),
            outputs=list(RUN_OUTPUTS),
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Start."""
        return outputs(begin(**inputs))


class RolloutTrainSteps(io.ComfyNode):
    """One stage of a staged training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutTrainSteps",
            display_name="Train Steps",
            category=sockets.CATEGORY,
            description="Trains on from the state that comes in. The input stays what it is: two Train Steps may go "
            "on from one state, and queueing again starts where the input says. A stage with other settings than "
            "the run's goes on in a run folder of its own.",
            inputs=[
                sockets.Run.Input("run", tooltip="The state to go on from."),
                io.Int.Input(
                    "steps", default=100, min=1, max=10_000_000, tooltip="Training steps of this stage."
                ),
                io.Int.Input(
                    "until_step",
                    optional=True,
                    default=0,
                    min=0,
                    max=10_000_000,
                    tooltip="Above 0: train until the run has so many steps instead, nothing if it has them; for use "
                    "after Resume Training, which may open a later state each time.",
                ),
                io.Float.Input(
                    "learning_rate",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=1e-6,
                    round=1e-9,
                    tooltip="Above 0: another peak rate from this stage on, a third of the first for the end for "
                    "instance; 0 keeps the run's.",
                ),
                sockets.ScheduledSampling.Input(
                    "scheduled_sampling",
                    optional=True,
                    tooltip="Other rollouts from this stage on; without it the run's stay. Their ramp_steps and "
                    "start_step count from the begin of the first stage that has them.",
                ),
            ],
            outputs=list(RUN_OUTPUTS),
        )

    @classmethod
    def execute(
        cls,
        run: Run,
        steps: int,
        until_step: int = 0,
        learning_rate: float = 0.0,
        scheduled_sampling: RolloutConfig | None = None,
    ) -> io.NodeOutput:
        """Train."""
        if until_step:
            steps = until_step - run.step
            if steps <= 0:
                return outputs(run)
        return train_watched(branch(run, scheduled_sampling, learning_rate or None), steps)


class RolloutResumeTraining(io.ComfyNode):
    """A saved state of an earlier run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutResumeTraining",
            display_name="Resume Training",
            category=sockets.CATEGORY,
            description="Opens a run folder again; chain Train Steps after it. The resumed run is the same as one "
            "that was never stopped.",
            inputs=[
                sockets.Model.Input("model", tooltip="The base model that the run was made with."),
                sockets.Data.Input("data", tooltip="The data that the run was made with."),
                io.String.Input(
                    "folder", default="", tooltip="The run's folder, as the trainer's summary names it."
                ),
                io.Int.Input(
                    "step",
                    default=-1,
                    min=-1,
                    max=10_000_000,
                    tooltip="Which saved step; -1 is the last one.",
                ),
            ],
            outputs=list(RUN_OUTPUTS),
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **inputs: Any) -> str:
        """A folder that got another state since is another input; None: its name comes through a link."""
        folder = folder or current().linked_text("folder")
        if not folder:
            return ""
        path = current().resolve_path(folder)
        return ",".join(map(str, RunFolder(path).steps()))

    @classmethod
    def execute(cls, model: LoadedModel, data: LatentDataset, folder: str, step: int) -> io.NodeOutput:
        """Open it."""
        return outputs(reopen(current().resolve_path(folder), model.source, data, step))


class RolloutValidate(io.ComfyNode):
    """The validation loss of one state."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutValidate",
            display_name="Validate",
            category=sockets.CATEGORY,
            description="Mean loss on data that is not trained on: always the same pictures, noise and noise levels, "
            "never rolled out. Falls while the LoRA generalises, rises when it begins to memorise.",
            inputs=[
                sockets.Run.Input("run", tooltip="The state to measure."),
                sockets.Data.Input("data", tooltip="Pictures that are not trained on."),
            ],
            outputs=[io.Float.Output(display_name="loss")],
        )

    @classmethod
    def execute(cls, run: Run, data: LatentDataset) -> io.NodeOutput:
        """Measure it."""
        loss = validate(run, data)
        current().report({"validation": {str(run.step): loss}})
        return io.NodeOutput(loss, ui={"text": (f"step {run.step}: {loss:.5f}",)})


class RolloutSaveLoRA(io.ComfyNode):
    """The adapter as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutSaveLoRA",
            display_name="Save LoRA",
            category=sockets.CATEGORY,
            description="Writes the LoRA where the host's LoRA loader finds it, with all settings in its header. "
            "Never overwrites: a taken name gets a number.",
            inputs=[
                sockets.Run.Input("run", tooltip="The state whose adapter is saved."),
                io.String.Input(
                    "filename", default="rollout_lora", tooltip="Name without ending; may have a folder."
                ),
            ],
            outputs=[io.String.Output(display_name="path")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, run: Run, filename: str) -> io.NodeOutput:
        """Write it."""
        path = save_lora(run, current().loras_dir(), filename)
        current().report({"lora": str(path)})
        return io.NodeOutput(str(path), ui={"text": (f"saved {path}",)})
