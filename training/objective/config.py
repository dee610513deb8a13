"""Scheduled sampling and ReflexFlow settings: frozen, validated, exchanged as ``config.json`` keys.

Each field says what its option means; README, "How it works", how they work together. A step is an optimiser step.
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from ...messages import one_line
from ...samplers import SAMPLERS
from ..checks import check_settings, setting
from ..forms import Prediction
from .targets import TARGETS

RampShape = Literal["linear", "cosine"]
Strategy = Literal["uniform", "biased_early", "biased_late"]
Switch = Literal["auto", "on", "off"]
FCNorm = Literal["mean", "l1"]

PREFIX = "scheduled_sampling_"
SIMPLETUNER_DEFAULTS = {"steps_per_trajectory": 1000, "target": "clean"}
"""What a file without our own keys means, as in SimpleTuner, whose keys these are: one rollout step is one training
timestep, the target is u."""


@dataclass(frozen=True)
class ReflexFlowConfig:
    """Anti-drift rectification (ADR) and frequency compensation (FC) on rolled rows of flow models."""

    enabled: Switch = setting(
        "auto",
        "auto: on for flow models (SD3, Flux, Wan and others) while scheduled sampling is on. on: the same, and an "
        "error with other models.",
        choices=get_args(Switch),
        called="reflexflow",
    )
    alpha: float = setting(
        1.0,
        "Frequency compensation: how much more the loss counts where the model falls short because it started from a "
        "state of its own. 1 is usual, 0 is off.",
        low=0,
        step=0.1,
        called="reflexflow_alpha",
    )
    beta1: float = setting(
        10.0,
        "Anti-drift rectification: weight of the term that turns the model back towards the training picture, where "
        "the target corrective points too. The published 10 is about five times the base loss; the workflows that "
        "come with the pack use 0.1.",
        low=0,
        step=0.1,
        called="reflexflow_beta1",
    )
    beta2: float = setting(
        1.0,
        "Weight of the base loss, with frequency compensation, on samples that were rolled out; 1 is neutral.",
        low=0,
        step=0.1,
        called="reflexflow_beta2",
    )
    fc_norm: FCNorm = setting(
        "mean",
        "What alpha is measured by. mean: alpha does the same at every picture size. l1: SimpleTuner's way, which does "
        "next to nothing at usual picture sizes.",
        choices=get_args(FCNorm),
        called="reflexflow_fc_norm",
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def active(self, prediction: Prediction) -> bool:
        """Whether rolled rows of a model with this `prediction` get the ReflexFlow terms.

        Raises:
            ValueError: ReflexFlow is forced on for a model that is not a flow model.
        """
        if self.enabled == "on" and prediction != "flow":
            raise ValueError(
                f"reflexflow must be auto or off for a model that predicts {prediction}, got on; "
                "ReflexFlow is defined for flow models only"
            )
        return self.enabled != "off" and prediction == "flow"


@dataclass(frozen=True)
class RolloutConfig:
    """Scheduled sampling: who is rolled out, how far, with which solver, and what is asked there."""

    max_step_offset: int = setting(
        0,
        "Longest rollout, in steps; each sample draws its own length from 0 to this. 2 to 10 are sensible, 0 turns "
        "scheduled sampling off.",
        low=0,
        high=1000,
    )
    probability: float = setting(
        0.0,
        "Chance that a sample is rolled out. Not used while ramp_steps is above 0.",
        low=0,
        high=1,
        step=0.05,
    )
    ramp_steps: int = setting(
        0,
        "Above 0: the chance of a rollout goes from prob_start to prob_end over this many training steps.",
        low=0,
    )
    prob_start: float = setting(
        0.0, "Chance of a rollout at the start of the ramp.", low=0, high=1, step=0.05
    )
    prob_end: float = setting(
        0.5, "Chance of a rollout from the end of the ramp on.", low=0, high=1, step=0.05
    )
    start_step: int = setting(
        0,
        "Training step at which the ramp starts; without a ramp, the first step with rollouts. Counted from the stage "
        "that first has these settings.",
        low=0,
    )
    ramp_shape: RampShape = setting(
        "linear",
        "linear: the chance changes evenly; cosine: slowly at both ends.",
        choices=get_args(RampShape),
    )
    sampler: str = setting(
        "unipc",
        "Solver of the rollout, the same as in Rollout Sampler. unipc, euler and dpm call the model once a step, rk4 "
        "four times.",
        choices=SAMPLERS,
    )
    order: int = setting(
        2,
        "Order of accuracy of unipc and dpm; 2 is a good choice. Ignored by euler (order 1) and rk4 (order 4).",
        low=1,
        high=3,
    )
    strategy: Strategy = setting(
        "uniform",
        "Which lengths of rollout are drawn more often. uniform: all alike; biased_early: short ones; biased_late: "
        "long ones.",
        choices=get_args(Strategy),
    )
    steps_per_trajectory: int = setting(
        50,
        "Number of steps from pure noise to the picture; a rollout step is one of these. Use the number of steps that "
        "you sample with, 20 to 50.",
        low=1,
        high=10000,
    )
    target: str = setting(
        "residual",
        "What the model is asked for at the state it reached. residual (the best choice) leaves a correct model as it "
        "is. clean is SimpleTuner's and makes results flatter. Experimental: solver_error corrects the solver's own "
        "error, corrective points straight at the training picture. mixflow rolls nothing out and costs nothing: it "
        "trains on pictures noisier than the model is told, see gamma; in the study it helped at one fixed CFG alone.",
        choices=TARGETS,
    )
    reuse: int = setting(
        1,
        "Number of training steps that use the states of one rollout: its extra cost falls towards 1 / reuse. 1 rolls "
        "out anew in each step; 2 to 4 are sensible. Must be 1 with the targets solver_error and "
        "mixflow.",
        low=1,
        high=1000,
    )
    gamma: float = setting(
        0.2,
        "For the target mixflow alone: how much noisier than told a picture is at most, as a share of the way that is "
        "left to pure noise. 0.2 was measured, 0 is off. Set probability to 1; max_step_offset, sampler and lengths "
        "are not used.",
        low=0,
        high=1,
        step=0.05,
    )
    guidance: float = setting(
        1.0,
        "Guidance (CFG) of the rollout's own steps, for the target residual: 2 to 5, what you sample with, makes the "
        "states of training those of use and doubles the cost of rollouts. 1 is off.",
        low=1,
        high=30,
        step=0.1,
    )
    preserve: str = setting(
        "",
        "Against bleeding: prompts without your trigger word, one per line, whose pictures shall stay as they are. "
        "10 to 50 are sensible, of all that you use the model for and near to what you teach. No pictures are needed. "
        "Empty is off.",
    )
    preserve_weight: float = setting(
        1.0,
        "With preserve: how much it counts beside the training pictures. Higher holds the model more firmly and learns "
        "more slowly; 0.5 to 4 are sensible.",
        low=0,
        step=0.1,
    )
    preserve_rows: int = setting(
        1,
        "With preserve: prompts drawn for each batch. Each costs as much as about three training pictures, at 6 "
        "preserve_steps; 1 for 8 pictures of batch_size is a good start.",
        low=1,
        high=64,
    )
    preserve_steps: int = setting(
        6,
        "With preserve: steps from pure noise to a picture; a prompt stops at a random place on the way. 4 to 10 are "
        "sensible, with the sampler above.",
        low=1,
        high=1000,
    )
    reflexflow: ReflexFlowConfig = field(default_factory=ReflexFlowConfig)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.max_step_offset > self.steps_per_trajectory:
            raise ValueError(
                f"max_step_offset must be at most steps_per_trajectory ({self.steps_per_trajectory}), "
                f"got {self.max_step_offset}; a rollout cannot be longer than the trajectory"
            )
        if self.reuse > 1 and self.target in ("solver_error", "mixflow"):
            raise ValueError(
                f"reuse must be 1 with the target {self.target}, got {self.reuse}; it makes no path to reuse"
            )
        if self.guidance > 1 and self.target != "residual":
            raise ValueError(
                f"guidance must be 1 with the target {self.target}, got {self.guidance:g}; only residual stays right "
                "at guided states"
            )
        if self.slowed and self.reflexflow.enabled == "on":
            raise ValueError(
                "reflexflow must be auto or off with the target mixflow, got on; it rolls nothing out"
            )

    @property
    def preserved(self) -> tuple[str, ...]:
        """The prompts whose pictures shall stay as they are."""
        return tuple(line.strip() for line in self.preserve.splitlines() if line.strip())

    @property
    def preserves(self) -> bool:
        """Whether there are such prompts, and they count."""
        return bool(self.preserved) and self.preserve_weight > 0

    @property
    def slowed(self) -> bool:
        """Whether the target takes no rolled states but noisier interpolants (`targets.slowed_interpolant`)."""
        return TARGETS[self.target].slowed

    @property
    def rolls_out(self) -> bool:
        """Whether there are rollouts, at some probability."""
        return self.max_step_offset > 0 and not self.slowed

    @property
    def idle(self) -> bool:
        """Whether every sample is trained as usual, whatever the probability."""
        return self.gamma == 0 if self.slowed else self.max_step_offset == 0

    def probability_at(self, step: int) -> float:
        """Chance that a sample is rolled out, or slowed, at optimiser step `step` (from 0)."""
        if self.idle:
            return 0.0
        if self.ramp_steps == 0:
            return self.probability if step >= self.start_step else 0.0
        done = min(max((step - self.start_step) / self.ramp_steps, 0.0), 1.0)
        if self.ramp_shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.prob_start + (self.prob_end - self.prob_start) * done

    @property
    def peak_probability(self) -> float:
        """The highest probability that any step of a long run has."""
        if self.idle:
            return 0.0
        return max(self.prob_start, self.prob_end) if self.ramp_steps else self.probability

    def length_weights(self) -> list[float]:
        """Relative frequency of the lengths 0..max_step_offset, before they are cut at pure noise."""
        n = self.max_step_offset + 1
        if self.strategy == "uniform":
            return [1.0] * n
        rising = [float(k + 1) for k in range(n)]
        return rising if self.strategy == "biased_late" else rising[::-1]

    @property
    def mean_length(self) -> float:
        """Expected steps of a sample that is rolled out, before lengths are cut at pure noise."""
        weights = self.length_weights()
        return sum(k * w for k, w in enumerate(weights)) / sum(weights)

    @classmethod
    def from_config_json(cls, config: Mapping[str, Any]) -> RolloutConfig:
        """Read the ``scheduled_sampling_*`` keys of a config; other keys are ignored.

        A file without our own keys means what it means in SimpleTuner (`SIMPLETUNER_DEFAULTS`).

        Raises:
            ValueError: an unknown ``scheduled_sampling_*`` key, or a value of the wrong type or out of range.
        """
        given = {k.removeprefix(PREFIX): v for k, v in config.items() if k.startswith(PREFIX)}
        names = {f.name for f in fields(cls)} - {"reflexflow"}
        reflex_names = {f.name for f in fields(ReflexFlowConfig)} - {"enabled"}
        reflex: dict[str, Any] = {"enabled": _switch(given.pop("reflexflow", None))}
        values: dict[str, Any] = dict(SIMPLETUNER_DEFAULTS)
        for key, value in given.items():
            inner = key.removeprefix("reflexflow_")
            if key in names:
                values[key] = _typed(PREFIX + key, value, getattr(cls, key))
            elif inner != key and inner in reflex_names:
                reflex[inner] = _typed(PREFIX + key, value, getattr(ReflexFlowConfig, inner))
            else:
                raise ValueError(
                    one_line(f"{PREFIX}{key} must be a known option, got an unknown key; remove it")
                )
        return cls(**values, reflexflow=ReflexFlowConfig(**reflex))

    def to_config_json(self) -> dict[str, Any]:
        """Write every option as ``scheduled_sampling_*`` keys; `from_config_json` reads it back exactly."""
        out = {PREFIX + f.name: getattr(self, f.name) for f in fields(self) if f.name != "reflexflow"}
        reflex = self.reflexflow
        out[PREFIX + "reflexflow"] = {"auto": None, "on": True, "off": False}[reflex.enabled]
        for f in fields(reflex):
            if f.name != "enabled":
                out[f"{PREFIX}reflexflow_{f.name}"] = getattr(reflex, f.name)
        return out

    def off(self) -> RolloutConfig:
        """The same settings with scheduled sampling turned off."""
        off = {"gamma": 0.0} if self.slowed else {"max_step_offset": 0}
        return replace(self, preserve="", **off)


def _switch(value: Any) -> Switch:
    for given, switch in ((None, "auto"), (True, "on"), (False, "off")):
        if value is given or value == switch:
            return switch  # type: ignore[return-value]
    raise ValueError(f"{PREFIX}reflexflow must be true, false or null, got {reprlib.repr(value)}")


def _typed(name: str, value: Any, default: Any) -> Any:
    """`value` as the type of `default`; JSON writes 1 for 1.0, but never "1" or true for 1."""
    kind = type(default)
    number = isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)
    if kind is str and isinstance(value, str):
        return value
    if kind is float and number:
        return float(value)
    if kind is int and number and float(value).is_integer():
        return int(value)
    raise ValueError(f"{name} must be of type {kind.__name__}, got {reprlib.repr(value)}")
