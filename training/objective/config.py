"""Scheduled sampling and ReflexFlow settings: frozen, validated, exchanged as ``config.json`` keys.

The fields below say what each option means; README, "How it works", how they work together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from ...samplers import SAMPLERS
from ..checks import check_choice, check_range
from ..forms import Prediction
from .targets import TARGETS

RampShape = Literal["linear", "cosine"]
Strategy = Literal["uniform", "biased_early", "biased_late"]
Switch = Literal["auto", "on", "off"]
FCNorm = Literal["mean", "l1"]

PREFIX = "scheduled_sampling_"
ORIGIN_DEFAULTS = {"steps_per_trajectory": 1000, "target": "clean"}
"""What a file without our own keys means: one rollout step is one training timestep, the target is u."""


@dataclass(frozen=True)
class ReflexFlowConfig:
    """Anti-drift rectification (ADR) and frequency compensation (FC) on rolled rows of flow models."""

    enabled: Switch = "auto"
    """auto: on for flow models while scheduled sampling is on."""
    alpha: float = 1.0
    """FC strength, at least 0; 0 leaves the base loss unweighted."""
    beta1: float = 10.0
    """ADR weight, at least 0. 10 is some five times the base loss; shipped workflows use 0.1."""
    beta2: float = 1.0
    """Weight of the FC-weighted base loss, at least 0."""
    fc_norm: FCNorm = "mean"
    """mean: exposure relative to its per-sample mean; l1: relative to its sum, as in the config's origin."""

    def __post_init__(self) -> None:
        check_choice("reflexflow", self.enabled, get_args(Switch))
        check_range("reflexflow_alpha", self.alpha, 0)
        check_range("reflexflow_beta1", self.beta1, 0)
        check_range("reflexflow_beta2", self.beta2, 0)
        check_choice("reflexflow_fc_norm", self.fc_norm, get_args(FCNorm))

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

    max_step_offset: int = 0
    """Longest rollout in steps; 0 turns scheduled sampling off."""
    probability: float = 0.0
    """Chance per sample, 0..1, that it is rolled out. Not used while `ramp_steps` > 0."""
    ramp_steps: int = 0
    """> 0: the probability goes from `prob_start` to `prob_end` over so many optimiser steps."""
    prob_start: float = 0.0
    """Probability at the begin of the ramp, 0..1."""
    prob_end: float = 0.5
    """Probability at the end of the ramp, 0..1."""
    start_step: int = 0
    """Optimiser step, counted from where these settings begin, at which the ramp begins; without a ramp, the first
    step with rollouts."""
    ramp_shape: RampShape = "linear"
    """How the ramp rises: linear, or cosine (slow at both ends)."""
    sampler: str = "unipc"
    """Solver of the rollout: unipc, euler, dpm or rk4."""
    order: int = 2
    """Order of unipc and dpm, 1..3; euler is 1 and rk4 is 4 whatever stands here."""
    strategy: Strategy = "uniform"
    """How lengths 0..max_step_offset are drawn; biased_early favours short ones, biased_late long ones."""
    steps_per_trajectory: int = 50
    """Solver steps of a whole trajectory: one rollout step is 1 / steps_per_trajectory of u."""
    target: str = "residual"
    """What is asked of the model at a rolled row: residual, solver_error, clean or corrective."""
    reuse: int = 1
    """Optimiser steps for which the states of one rollout are drawn from; 1 rolls out anew each step."""
    reflexflow: ReflexFlowConfig = field(default_factory=ReflexFlowConfig)

    def __post_init__(self) -> None:
        check_range("max_step_offset", self.max_step_offset, 0, 1000)
        for name in ("probability", "prob_start", "prob_end"):
            check_range(name, getattr(self, name), 0, 1)
        for name in ("ramp_steps", "start_step"):
            check_range(name, getattr(self, name), 0)
        check_choice("ramp_shape", self.ramp_shape, get_args(RampShape))
        check_choice("sampler", self.sampler, tuple(SAMPLERS))
        check_range("order", self.order, 1, 3)
        check_choice("strategy", self.strategy, get_args(Strategy))
        check_range("steps_per_trajectory", self.steps_per_trajectory, 1, 10000)
        check_choice("target", self.target, tuple(TARGETS))
        check_range("reuse", self.reuse, 1, 1000)
        if self.max_step_offset > self.steps_per_trajectory:
            raise ValueError(
                f"max_step_offset must be at most steps_per_trajectory ({self.steps_per_trajectory}), "
                f"got {self.max_step_offset}; a rollout cannot be longer than the trajectory"
            )

        if self.reuse > 1 and self.target == "solver_error":
            raise ValueError(
                f"reuse must be 1 with the target solver_error, got {self.reuse}; it makes no path to reuse"
            )

    def probability_at(self, step: int) -> float:
        """Chance that a sample is rolled out at optimiser step `step` (from 0)."""
        if self.max_step_offset == 0:
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
        if self.max_step_offset == 0:
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

        A file without our own keys means what its origin means (`ORIGIN_DEFAULTS`).

        Raises:
            ValueError: an unknown ``scheduled_sampling_*`` key, or a value of the wrong type or out of range.
        """
        given = {k.removeprefix(PREFIX): v for k, v in config.items() if k.startswith(PREFIX)}
        names = {f.name for f in fields(cls)} - {"reflexflow"}
        reflex_names = {f.name for f in fields(ReflexFlowConfig)} - {"enabled"}
        reflex: dict[str, Any] = {"enabled": _switch(given.pop("reflexflow", None))}
        values: dict[str, Any] = dict(ORIGIN_DEFAULTS)
        for key, value in given.items():
            inner = key.removeprefix("reflexflow_")
            if key in names:
                values[key] = _typed(PREFIX + key, value, getattr(cls, key))
            elif inner != key and inner in reflex_names:
                reflex[inner] = _typed(PREFIX + key, value, getattr(ReflexFlowConfig, inner))
            else:
                raise ValueError(f"{PREFIX}{key} must be a known option, got an unknown key; remove it")
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
        return replace(self, max_step_offset=0)


def _switch(value: Any) -> Switch:
    for given, switch in ((None, "auto"), (True, "on"), (False, "off")):
        if value is given or value == switch:
            return switch  # type: ignore[return-value]
    raise ValueError(f"{PREFIX}reflexflow must be true, false or null, got {value!r}")


def _typed(name: str, value: Any, default: Any) -> Any:
    """Return `value` as the type of `default`; JSON writes 1 for 1.0, but never "1" or true for 1."""
    kind = type(default)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is str and isinstance(value, str):
        return value
    if kind is float and number:
        return float(value)
    if kind is int and number and float(value).is_integer():
        return int(value)
    raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}")
