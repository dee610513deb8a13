"""Nodes that hold settings: each builds one frozen config, whose fields are its widgets.

The tables say which widget sets which field, in the order in which workflow files store the widgets: append only.
Default, range and tooltip of a widget are those of the field.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..host import current, io
from ..messages import one_line
from ..training.lora.adapter import LoRAConfig, Preset
from ..training.objective.config import ReflexFlowConfig, RolloutConfig
from ..training.objective.losses import LossConfig
from ..training.objective.timesteps import TimestepConfig
from ..training.trainer.optim import OptimizerConfig
from . import sockets
from .base import Node
from .schemas import schema
from .widgets import added, config_of, same, tooltip, widget, widgets

LORA = same("kind", "rank", "alpha", "dropout")
OPTIMIZER = {
    "optimizer": "name",
    "learning_rate": "lr",
    "schedule": "schedule",
    "warmup_steps": "warmup_steps",
    "final_rate": "final_lr",
    **same("weight_decay", "beta1", "beta2", "grad_clip"),
}
TIMESTEPS = same("distribution", "mean", "std", "shift", "low", "high")
LEVELS = same("sigma_low", "sigma_high")
"""Widgets of the same node that were added later."""
LOSS = {"loss": "kind", **same("huber_delta", "min_snr_gamma")}
REFLEXFLOW = same("enabled", "alpha", "beta1", "beta2", "fc_norm")
ROLLOUT = same(
    *("max_step_offset", "probability", "ramp_steps", "prob_start", "prob_end", "start_step", "ramp_shape"),
    *("sampler", "order", "strategy", "steps_per_trajectory", "target", "reuse"),
)
METHODS = same("gamma", "guidance")
"""Of the rollout too, but younger than its socket: such widgets come last."""
PRESERVE = same("preserve_weight", "preserve_rows", "preserve_steps")
ROLLOUT_ON: dict[str, dict[str, Any]] = {"max_step_offset": {"default": 5}, "probability": {"default": 0.5}}
"""A config does nothing by default; the node is put into a graph to roll out."""


class RolloutLoRASettings(Node):
    """Shape of the adapter and where it goes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutLoRASettings",
            display_name="LoRA Settings",
            description="The LoRA that is trained: its kind, its size and the layers that get it.",
            inputs=[
                *widgets(LoRAConfig, LORA),
                io.String.Input(
                    "targets", default="", multiline=True, tooltip=tooltip(LoRAConfig, "targets")
                ),
                added(widget(LoRAConfig, "preset", optional=True), before="attention"),
            ],
            outputs=[
                sockets.LoRA.Output(
                    display_name="lora", tooltip="For the input lora of Train LoRA or Init Training."
                )
            ],
        )

    @classmethod
    def execute(cls, targets: str, preset: Preset = "attention", **values: Any) -> io.NodeOutput:
        """Build the config; without a preset, what a graph had before there was one."""
        patterns = tuple(line.strip() for line in targets.splitlines() if line.strip())
        return io.NodeOutput(config_of(LoRAConfig, LORA, values, targets=patterns, preset=preset))


class RolloutOptimizerSettings(Node):
    """The optimiser and its learning rate over the run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutOptimizerSettings",
            display_name="Optimizer Settings",
            description="The optimizer and its learning rate over the run.",
            inputs=widgets(OptimizerConfig, OPTIMIZER),
            outputs=[
                sockets.Optimizer.Output(
                    display_name="optimizer",
                    tooltip="For the input optimizer of Train LoRA or Init Training.",
                )
            ],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Build the config."""
        return io.NodeOutput(config_of(OptimizerConfig, OPTIMIZER, values))


class RolloutTimestepSettings(Node):
    """Which noise levels are trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutTimestepSettings",
            display_name="Timestep Settings",
            description="How often each noise level is trained, from the clean picture (0) to pure noise (1).",
            inputs=[
                *widgets(TimestepConfig, TIMESTEPS),
                *widgets(TimestepConfig, LEVELS, {id: {"optional": True} for id in LEVELS}),
            ],
            outputs=[
                sockets.Timesteps.Output(
                    display_name="timesteps",
                    tooltip="For the input timesteps of Train LoRA or Init Training.",
                )
            ],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Build the config."""
        return io.NodeOutput(config_of(TimestepConfig, TIMESTEPS | LEVELS, values))


class RolloutLossSettings(Node):
    """How the error of the prediction becomes a number."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutLossSettings",
            display_name="Loss Settings",
            description="How an error of the model is counted: the loss, which training makes smaller.",
            inputs=widgets(LossConfig, LOSS),
            outputs=[
                sockets.LossSettings.Output(
                    display_name="loss", tooltip="For the input loss of Train LoRA or Init Training."
                )
            ],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Build the config."""
        return io.NodeOutput(config_of(LossConfig, LOSS, values))


class RolloutReflexFlow(Node):
    """ReflexFlow on rolled rows of flow models."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutReflexFlow",
            display_name="ReflexFlow",
            description="Two additions to the loss of rolled-out samples, for flow models: frequency compensation "
            "counts the error more where the model falls short because it started from a state of its own, anti-drift "
            "rectification turns it back towards the training picture. Costs one more call of the model per "
            "rolled-out sample.",
            inputs=widgets(ReflexFlowConfig, REFLEXFLOW),
            outputs=[
                sockets.ReflexFlow.Output(
                    display_name="reflexflow", tooltip="For the input reflexflow of Scheduled Sampling."
                )
            ],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Build the config."""
        return io.NodeOutput(config_of(ReflexFlowConfig, REFLEXFLOW, values))


class RolloutScheduledSampling(Node):
    """Scheduled sampling: who is rolled out, how far, with which solver, and what is asked there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutScheduledSampling",
            display_name="Scheduled Sampling",
            description="Rollout: some samples start noisier, the model as trained so far takes a few denoising "
            "steps itself, and trains on what it reached. So it learns to correct its own errors. Costs up to "
            "max_step_offset more calls of the model per rolled-out sample.",
            inputs=[
                *widgets(RolloutConfig, ROLLOUT, ROLLOUT_ON),
                sockets.ReflexFlow.Input(
                    "reflexflow",
                    optional=True,
                    tooltip="ReflexFlow settings; without them ReflexFlow is off.",
                ),
                *widgets(RolloutConfig, METHODS, {id: {"optional": True} for id in METHODS}),
                io.String.Input(
                    "preserve",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip=tooltip(RolloutConfig, "preserve"),
                ),
                *widgets(RolloutConfig, PRESERVE, {id: {"optional": True} for id in PRESERVE}),
            ],
            outputs=[
                sockets.ScheduledSampling.Output(
                    display_name="scheduled_sampling",
                    tooltip="For the input scheduled_sampling of Train LoRA, Init Training or Train "
                    "Steps, and of Preview Rollout.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, reflexflow: ReflexFlowConfig | None = None, preserve: str = "", **values: Any
    ) -> io.NodeOutput:
        """Build the config."""
        more = {"reflexflow": reflexflow or ReflexFlowConfig(enabled="off"), "preserve": preserve}
        return io.NodeOutput(config_of(RolloutConfig, ROLLOUT | METHODS | PRESERVE, values, **more))


class RolloutSettingsFromJSON(Node):
    """Scheduled sampling from a config.json."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutSettingsFromJSON",
            display_name="Scheduled Sampling from JSON",
            description="Reads the scheduled_sampling_* keys of a config.json, including ReflexFlow's. A file "
            "without this pack's own keys means what it means in SimpleTuner: target clean, 1000 steps per "
            "trajectory.",
            inputs=[
                io.String.Input(
                    "config",
                    default='{\n  "scheduled_sampling_max_step_offset": 10,\n'
                    '  "scheduled_sampling_probability": 1.0,\n  "scheduled_sampling_sampler": "unipc"\n}',
                    multiline=True,
                    tooltip="The text of a config.json, or the path of one.",
                )
            ],
            outputs=[
                sockets.ScheduledSampling.Output(
                    display_name="scheduled_sampling",
                    tooltip="The settings that were read: for the input scheduled_sampling of Train LoRA, "
                    "Init Training or Train Steps.",
                )
            ],
        )

    @classmethod
    def execute(cls, config: str) -> io.NodeOutput:
        """Parse and validate."""
        return io.NodeOutput(RolloutConfig.from_config_json(read_json(config)))


class RolloutSettingsToJSON(Node):
    """Scheduled sampling as a config.json."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutSettingsToJSON",
            display_name="Scheduled Sampling to JSON",
            description="Writes scheduled sampling and ReflexFlow as the scheduled_sampling_* keys of a config.json.",
            inputs=[sockets.ScheduledSampling.Input("scheduled_sampling", tooltip="The settings to write.")],
            outputs=[
                io.String.Output(
                    display_name="config",
                    tooltip="The settings as JSON text with scheduled_sampling_ keys, as SimpleTuner "
                    "reads them.",
                )
            ],
        )

    @classmethod
    def execute(cls, scheduled_sampling: RolloutConfig) -> io.NodeOutput:
        """Write every option."""
        return io.NodeOutput(json.dumps(scheduled_sampling.to_config_json(), indent=2))


def read_json(text: str) -> dict[str, Any]:
    """Parse the text of a config.json, or the file that `text` names.

    Raises:
        ValueError: neither, or not a JSON object.
    """
    if not text.lstrip().startswith("{"):
        path = Path(current().resolve_path(text.strip()))
        if not path.is_file():
            raise ValueError(
                f"config must be JSON text or the path of a file, got {text.strip()!r:.120}; there is none"
            )
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as err:
            raise ValueError(f"config must be a file of text in UTF-8, but {path.name} is not") from err
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as err:
        why = (
            one_line(err)
            if isinstance(err, json.JSONDecodeError)
            else "it is nested too deep or has a number too long"
        )
        raise ValueError(f"config must be valid JSON, but: {why}") from err
    if not isinstance(value, dict):
        raise ValueError(f"config must be a JSON object with names and values, got {type(value).__name__}")
    return value
