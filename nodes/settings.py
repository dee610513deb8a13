"""Nodes that hold settings: each builds one frozen config, whose fields are its widgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from ..host import current, io
from ..samplers import SAMPLERS
from ..training.lora.adapter import AdapterKind, LoRAConfig
from ..training.objective.config import FCNorm, RampShape, ReflexFlowConfig, RolloutConfig, Strategy, Switch
from ..training.objective.losses import LossConfig, LossKind
from ..training.objective.targets import TARGETS
from ..training.objective.timesteps import Distribution, TimestepConfig
from ..training.trainer.optim import LRSchedule, OptimizerConfig, OptimizerName
from . import sockets


class RolloutLoRASettings(io.ComfyNode):
    """Shape of the adapter and where it goes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutLoRASettings",
            display_name="LoRA Settings",
            category=sockets.CATEGORY,
            description="The adapter that is trained: its kind, size and the layers it is put on.",
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=list(get_args(AdapterKind)),
                    default="lora",
                    tooltip="lora is the common one; dora also learns row norms (slower, often a little better); "
                    "loha and lokr spend the same parameters on a higher rank.",
                ),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Size of the adapter. 4 to 16 for a style, 16 to 64 for much new content; more overfits.",
                ),
                io.Float.Input(
                    "alpha",
                    default=16.0,
                    min=0.01,
                    max=4096.0,
                    step=0.5,
                    tooltip="The update is scaled by alpha / rank; equal to rank is neutral.",
                ),
                io.Float.Input(
                    "dropout",
                    default=0.0,
                    min=0.0,
                    max=0.9,
                    step=0.01,
                    tooltip="Share of the adapter's input switched off at random while training; 0.05 to 0.2 "
                    "against overfitting on small sets. Rollouts and samples never use it.",
                ),
                io.String.Input(
                    "targets",
                    default="",
                    multiline=True,
                    tooltip="Layers that get the adapter: regular expressions searched in module names, one per "
                    "line. Empty takes the preset of the model family (attention projections).",
                ),
            ],
            outputs=[sockets.LoRA.Output(display_name="lora")],
        )

    @classmethod
    def execute(
        cls, kind: AdapterKind, rank: int, alpha: float, dropout: float, targets: str
    ) -> io.NodeOutput:
        """Build the config."""
        patterns = tuple(line.strip() for line in targets.splitlines() if line.strip())
        return io.NodeOutput(LoRAConfig(kind, rank, alpha, dropout, patterns))


class RolloutOptimizerSettings(io.ComfyNode):
    """The optimiser and its learning rate over the run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutOptimizerSettings",
            display_name="Optimizer Settings",
            category=sockets.CATEGORY,
            description="The optimizer and its learning rate over the run.",
            inputs=[
                io.Combo.Input(
                    "optimizer",
                    options=list(get_args(OptimizerName)),
                    default="adamw",
                    tooltip="adamw is a safe choice; adafactor keeps less state; adamw8bit needs bitsandbytes; "
                    "prodigy (prodigyopt) finds the rate itself, set learning_rate to 1.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=1e-8,
                    max=10.0,
                    step=1e-6,
                    round=1e-9,
                    tooltip="Peak rate. 1e-4 suits most LoRAs of large models; tiny models take 1e-3 and more.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(get_args(LRSchedule)),
                    default="constant",
                    tooltip="After the warm-up: constant, or down to final_rate at the planned last step.",
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Steps over which the rate rises from 0; 10 to 100 calm the start.",
                ),
                io.Float.Input(
                    "final_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the peak rate at the end of linear and cosine; not used by constant.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=0.01,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    tooltip="Pulls the adapter towards zero; 0 to 0.1.",
                ),
                io.Float.Input(
                    "beta1",
                    default=0.9,
                    min=0.0,
                    max=0.9999,
                    step=0.01,
                    tooltip="Memory of the mean gradient.",
                ),
                io.Float.Input(
                    "beta2",
                    default=0.99,
                    min=0.0,
                    max=0.99999,
                    step=0.001,
                    tooltip="Memory of the squared gradient; 0.99 suits short runs, 0.999 long ones.",
                ),
                io.Float.Input(
                    "grad_clip",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Largest gradient norm; a greater one is scaled down. 1 is usual, 0 is off.",
                ),
            ],
            outputs=[sockets.Optimizer.Output(display_name="optimizer")],
        )

    @classmethod
    def execute(
        cls,
        optimizer: OptimizerName,
        learning_rate: float,
        schedule: LRSchedule,
        warmup_steps: int,
        final_rate: float,
        weight_decay: float,
        beta1: float,
        beta2: float,
        grad_clip: float,
    ) -> io.NodeOutput:
        """Build the config."""
        return io.NodeOutput(
            OptimizerConfig(
                name=optimizer,
                lr=learning_rate,
                weight_decay=weight_decay,
                beta1=beta1,
                beta2=beta2,
                schedule=schedule,
                warmup_steps=warmup_steps,
                final_lr=final_rate,
                grad_clip=grad_clip,
            )
        )


class RolloutTimestepSettings(io.ComfyNode):
    """Which noise levels are trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutTimestepSettings",
            display_name="Timestep Settings",
            category=sockets.CATEGORY,
            description="How often each noise level is trained, as a fraction of the trajectory: 1 is pure noise.",
            inputs=[
                io.Combo.Input(
                    "distribution",
                    options=list(get_args(Distribution)),
                    default="uniform",
                    tooltip="uniform; logit_normal favours the middle; shifted favours noise. "
                    "The model's own shift is applied after this.",
                ),
                io.Float.Input(
                    "mean",
                    default=0.0,
                    min=-5.0,
                    max=5.0,
                    step=0.1,
                    tooltip="logit_normal: above 0 favours noise (composition), below 0 detail.",
                ),
                io.Float.Input(
                    "std",
                    default=1.0,
                    min=0.01,
                    max=10.0,
                    step=0.1,
                    tooltip="logit_normal: width of the hill.",
                ),
                io.Float.Input(
                    "shift",
                    default=3.0,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    tooltip="shifted: above 1 favours noise; 3 is SD3's.",
                ),
                io.Float.Input(
                    "low", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="Least fraction that is trained."
                ),
                io.Float.Input(
                    "high",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Greatest fraction that is trained.",
                ),
            ],
            outputs=[sockets.Timesteps.Output(display_name="timesteps")],
        )

    @classmethod
    def execute(
        cls, distribution: Distribution, mean: float, std: float, shift: float, low: float, high: float
    ) -> io.NodeOutput:
        """Build the config."""
        return io.NodeOutput(TimestepConfig(distribution, mean, std, shift, low, high))


class RolloutLossSettings(io.ComfyNode):
    """How the error of the prediction becomes a number."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutLossSettings",
            display_name="Loss Settings",
            category=sockets.CATEGORY,
            description="How the error of the prediction becomes a number.",
            inputs=[
                io.Combo.Input(
                    "loss",
                    options=list(get_args(LossKind)),
                    default="mse",
                    tooltip="mse; huber forgives outliers, for small or messy sets.",
                ),
                io.Float.Input(
                    "huber_delta",
                    default=1.0,
                    min=0.001,
                    max=100.0,
                    step=0.05,
                    tooltip="huber: error above which it grows linearly.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="epsilon and v models: caps the weight of low noise levels; 5 is usual, 0 is off. "
                    "Flow models do not use it.",
                ),
            ],
            outputs=[sockets.LossSettings.Output(display_name="loss")],
        )

    @classmethod
    def execute(cls, loss: LossKind, huber_delta: float, min_snr_gamma: float) -> io.NodeOutput:
        """Build the config."""
        return io.NodeOutput(LossConfig(loss, huber_delta, min_snr_gamma))


class RolloutReflexFlow(io.ComfyNode):
    """ReflexFlow on rolled rows of flow models."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutReflexFlow",
            display_name="ReflexFlow",
            category=sockets.CATEGORY,
            description="Two extra loss terms on rolled rows of flow models: frequency compensation weighs the loss "
            "where the drifted prediction falls short, anti-drift rectification turns it back towards the data. "
            "One more forward per rolled row.",
            inputs=[
                io.Combo.Input(
                    "enabled",
                    options=list(get_args(Switch)),
                    default="auto",
                    tooltip="auto: on for flow models while scheduled sampling is on; on refuses other models.",
                ),
                io.Float.Input(
                    "alpha",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Strength of frequency compensation; 1 is usual, 0 turns it off.",
                ),
                io.Float.Input(
                    "beta1",
                    default=10.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Weight of anti-drift rectification. It aims where the target 'corrective' aims; the "
                    "published 10 is some five times the base loss, the shipped workflows use 0.1.",
                ),
                io.Float.Input(
                    "beta2",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Weight of the compensated base loss on rolled rows; 1 is neutral.",
                ),
                io.Combo.Input(
                    "fc_norm",
                    options=list(get_args(FCNorm)),
                    default="mean",
                    tooltip="mean: alpha means the same at every picture size; l1: the origin's, which does next to "
                    "nothing on large latents.",
                ),
            ],
            outputs=[sockets.ReflexFlow.Output(display_name="reflexflow")],
        )

    @classmethod
    def execute(
        cls, enabled: Switch, alpha: float, beta1: float, beta2: float, fc_norm: FCNorm
    ) -> io.NodeOutput:
        """Build the config."""
        return io.NodeOutput(ReflexFlowConfig(enabled, alpha, beta1, beta2, fc_norm))


class RolloutScheduledSampling(io.ComfyNode):
    """Scheduled sampling: who is rolled out, how far, with which solver, and what is asked there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        default = RolloutConfig()
        return io.Schema(
            node_id="RolloutScheduledSampling",
            display_name="Scheduled Sampling",
            category=sockets.CATEGORY,
            description="Rollout: some samples start at a noisier step, the model denoises them itself with its "
            "current weights, and trains on what it reached. It then learns to correct its own errors. Costs up to "
            "max_step_offset extra forwards for each rolled sample.",
            inputs=[
                io.Int.Input(
                    "max_step_offset",
                    default=5,
                    min=0,
                    max=1000,
                    tooltip="Longest rollout in steps; each sample draws its own length from 0 to this. "
                    "0 turns scheduled sampling off; 2 to 10 are sane.",
                ),
                io.Float.Input(
                    "probability",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Chance that a sample is rolled out. Not used while ramp_steps is above 0.",
                ),
                io.Int.Input(
                    "ramp_steps",
                    default=0,
                    min=0,
                    max=1000000,
                    tooltip="Above 0: the probability goes from prob_start to prob_end over so many steps.",
                ),
                io.Float.Input(
                    "prob_start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Probability when the ramp begins.",
                ),
                io.Float.Input(
                    "prob_end",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Probability when the ramp ends.",
                ),
                io.Int.Input(
                    "start_step",
                    default=0,
                    min=0,
                    max=1000000,
                    tooltip="Training step at which the ramp begins; without a ramp, the first step with rollouts.",
                ),
                io.Combo.Input(
                    "ramp_shape",
                    options=list(get_args(RampShape)),
                    default=default.ramp_shape,
                    tooltip="linear, or cosine: slow at both ends.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=list(SAMPLERS),
                    default=default.sampler,
                    tooltip="Solver of the rollout, the same as in Rollout Sampler. unipc, euler and dpm cost one "
                    "forward per step, rk4 four.",
                ),
                io.Int.Input(
                    "order",
                    default=default.order,
                    min=1,
                    max=3,
                    tooltip="Order of unipc and dpm; 2 is a good choice. euler is 1 and rk4 is 4 whatever stands here.",
                ),
                io.Combo.Input(
                    "strategy",
                    options=list(get_args(Strategy)),
                    default=default.strategy,
                    tooltip="How lengths are drawn: uniform, biased_early (more short ones), biased_late (more long).",
                ),
                io.Int.Input(
                    "steps_per_trajectory",
                    default=default.steps_per_trajectory,
                    min=1,
                    max=10000,
                    tooltip="Steps of a whole trajectory from noise to picture; a rollout step is one of these. "
                    "Use the step count you sample with, 20 to 50.",
                ),
                io.Combo.Input(
                    "target",
                    options=list(TARGETS),
                    default=default.target,
                    tooltip="What is asked at a rolled state. residual keeps a right model right; solver_error "
                    "teaches against the solver's own error (experimental); clean is the origin's and flattens; "
                    "corrective points straight at the data (experimental).",
                ),
                io.Int.Input(
                    "reuse",
                    default=default.reuse,
                    min=1,
                    max=1000,
                    tooltip="Train on the states of one rollout for so many steps: the extra cost falls towards "
                    "1 / reuse. 1 rolls out anew each step; 2 to 4 are sane. Not with solver_error.",
                ),
                sockets.ReflexFlow.Input(
                    "reflexflow", optional=True, tooltip="ReflexFlow settings; without it, ReflexFlow is off."
                ),
            ],
            outputs=[sockets.ScheduledSampling.Output(display_name="scheduled_sampling")],
        )

    @classmethod
    def execute(
        cls,
        max_step_offset: int,
        probability: float,
        ramp_steps: int,
        prob_start: float,
        prob_end: float,
        start_step: int,
        ramp_shape: RampShape,
        sampler: str,
        order: int,
        strategy: Strategy,
        steps_per_trajectory: int,
        target: str,
        reuse: int,
        reflexflow: ReflexFlowConfig | None = None,
    ) -> io.NodeOutput:
        """Build the config."""
        return io.NodeOutput(
            RolloutConfig(
                max_step_offset=max_step_offset,
                probability=probability,
                ramp_steps=ramp_steps,
                prob_start=prob_start,
                prob_end=prob_end,
                start_step=start_step,
                ramp_shape=ramp_shape,
                sampler=sampler,
                order=order,
                strategy=strategy,
                steps_per_trajectory=steps_per_trajectory,
                target=target,
                reuse=reuse,
                reflexflow=reflexflow or ReflexFlowConfig(enabled="off"),
            )
        )


class RolloutSettingsFromJSON(io.ComfyNode):
    """Scheduled sampling from a config.json."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutSettingsFromJSON",
            display_name="Scheduled Sampling from JSON",
            category=sockets.CATEGORY,
            description="Reads the scheduled_sampling_* keys of a config.json, ReflexFlow's among them. A file "
            "without our own keys means what it meant where it comes from: target clean, 1000 steps per trajectory.",
            inputs=[
                io.String.Input(
                    "config",
                    default='{\n  "scheduled_sampling_max_step_offset": 10,\n'
                    '  "scheduled_sampling_probability": 1.0,\n  "scheduled_sampling_sampler": "unipc"\n}',
                    multiline=True,
                    tooltip="The text of a config.json, or the path of one.",
                )
            ],
            outputs=[sockets.ScheduledSampling.Output(display_name="scheduled_sampling")],
        )

    @classmethod
    def execute(cls, config: str) -> io.NodeOutput:
        """Parse and validate."""
        return io.NodeOutput(RolloutConfig.from_config_json(read_json(config)))


class RolloutSettingsToJSON(io.ComfyNode):
    """Scheduled sampling as a config.json."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RolloutSettingsToJSON",
            display_name="Scheduled Sampling to JSON",
            category=sockets.CATEGORY,
            description="Writes scheduled sampling and ReflexFlow as the scheduled_sampling_* keys of a config.json.",
            inputs=[sockets.ScheduledSampling.Input("scheduled_sampling", tooltip="The settings to write.")],
            outputs=[io.String.Output(display_name="config")],
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
                f"config must be JSON text or the path of a file, got {text.strip()!r}; there is none"
            )
        text = path.read_text()
    try:
        return dict(json.loads(text))
    except ValueError as err:
        raise ValueError(f"config must be valid JSON, got an error: {err}") from err
