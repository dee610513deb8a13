"""All settings of a run, and its random streams."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch

from ..checks import check_choice, check_range
from ..lora.adapter import LoRAConfig
from ..models.source import ModelSource
from ..objective.config import RolloutConfig
from ..objective.losses import LossConfig
from ..objective.rollout import expected_extra_forwards
from ..objective.timesteps import TimestepConfig
from .optim import OptimizerConfig

Autocast = Literal["off", "bf16", "fp16"]


STREAMS = ("order", "timesteps", "noise", "captions", "rollout", "reuse", "dropout")
"""The random streams of a run, one per purpose, each seeded from the run's seed and saved with its state."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run."""

    steps: int = 500
    """Optimiser steps that the run is planned for; learning-rate schedules end there."""
    batch_size: int = 1
    """Samples of one forward pass."""
    accumulation: int = 1
    """Forward and backward passes per optimiser step; their gradients are averaged."""
    seed: int = 0
    """Of every random stream and of the adapter's first weights."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    caption_dropout: float = 0.0
    """Chance per sample, 0..1, of training without its caption; what classifier-free guidance needs."""
    autocast: Autocast = "off"
    """Precision inside the model: off (the base's own), bf16 or fp16 (with loss scaling)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a step takes about 1.5 times as long."""
    ema_decay: float = 0.0
    """Decay of the moving average of the adapter, which is then what is saved and sampled; 0 is off."""
    save_every: int = 0
    """Optimiser steps between saved states within a stage; 0 saves at its end alone."""
    keep: int = 3
    """Such states that are kept, newest first; 0 keeps all."""
    max_nonfinite: int = 10
    """Steps in a row with a non-finite loss or gradient after which the run stops."""
    validate_every: int = 0
    """Optimiser steps between validation losses; 0 is off. Needs validation data."""
    preview_every: int = 0
    """Optimiser steps between films of a rollout, from the stage's begin; 0 is off. See `training.film`."""
    rollout_from: int = 0
    """Optimiser step from which the steps of `rollout` count: where the first stage with these settings began."""

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1)
        check_range("batch_size", self.batch_size, 1)
        check_range("accumulation", self.accumulation, 1)
        check_range("caption_dropout", self.caption_dropout, 0, 1)
        check_choice("autocast", self.autocast, get_args(Autocast))
        check_range("ema_decay", self.ema_decay, 0, 0.99999)
        for name in ("save_every", "keep", "validate_every", "preview_every", "rollout_from"):
            check_range(name, getattr(self, name), 0)
        check_range("max_nonfinite", self.max_nonfinite, 1)


def resolved(config: TrainConfig, source: ModelSource) -> TrainConfig:
    """The settings with the model family's own defaults filled in."""
    if config.lora.targets:
        return config
    return replace(config, lora=replace(config.lora, targets=source.default_lora_targets))


def streams(seed: int) -> dict[str, torch.Generator]:
    """The run's random streams, on the CPU so that a run is the same on any device."""
    states = np.random.SeedSequence(seed).generate_state(len(STREAMS), np.uint64)
    return {name: torch.Generator().manual_seed(int(s)) for name, s in zip(STREAMS, states, strict=True)}


def cost(config: TrainConfig, source: ModelSource) -> float:
    """Expected no-grad forwards per sample and step at the run's highest rollout probability."""
    return expected_extra_forwards(config.rollout, config.rollout.reflexflow.active(source.prediction))
