"""All settings of a run, and its random streams."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch

from ..checks import check_settings, setting
from ..lora.adapter import LoRAConfig
from ..lora.presets import preset_targets
from ..models.source import ModelSource
from ..objective.config import RolloutConfig
from ..objective.losses import LossConfig
from ..objective.preserve import expected_evaluations
from ..objective.rollout import expected_extra_forwards
from ..objective.timesteps import TimestepConfig
from .optim import OptimizerConfig

Autocast = Literal["off", "bf16", "fp16"]


STREAMS = ("order", "timesteps", "noise", "captions", "rollout", "reuse", "dropout")
"""The random streams of a run, one per purpose, each seeded from the run's seed and saved with its state."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run."""

    steps: int = setting(
        500,
        "Training steps that the run is planned for; learning-rate schedules end there.",
        low=1,
    )
    batch_size: int = setting(
        1,
        "Samples per call of the model. More make training steadier and need more memory.",
        low=1,
    )
    accumulation: int = setting(
        1,
        "Batches per training step, their gradients averaged: the effect of a larger batch in the same memory.",
        low=1,
    )
    seed: int = setting(
        0,
        "For everything random in the run: the same seed trains the same LoRA.",
        low=0,
        high=0xFFFFFFFFFFFFFFFF,
    )
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    caption_dropout: float = setting(
        0.0,
        "Chance that a sample is trained without its caption; 0.05 to 0.1 keeps guidance (CFG) working.",
        low=0,
        high=1,
        step=0.01,
    )
    autocast: Autocast = setting(
        "off",
        "Precision of calculations in the model: bf16 for recent GPUs and CPUs, fp16 for older GPUs, off for the "
        "precision that the model was loaded with.",
        choices=get_args(Autocast),
    )
    gradient_checkpointing: bool = setting(
        False,
        "Calculates parts of the model twice instead of keeping them: needs much less memory, a step takes about 1.5 "
        "times as long.",
    )
    ema_decay: float = setting(
        0.0,
        "Keeps a moving average of the LoRA, and saves and samples that: steadier. 0.99 for short runs, 0.999 for long "
        "ones, 0 is off.",
        low=0,
        high=0.99999,
        step=0.001,
        round=1e-5,
    )
    save_every: int = setting(
        0,
        "Training steps between saved states. A stage saves when it ends or is cancelled as well; with 0 only then.",
        low=0,
    )
    keep: int = setting(
        3,
        "How many of the states that save_every saved are kept, the newest first; 0 keeps all.",
        low=0,
    )
    max_nonfinite: int = setting(
        10,
        "Training steps in a row whose loss or gradient is not a finite number, after which the run stops.",
        low=1,
    )
    validate_every: int = setting(
        0,
        "Training steps between measurements of the loss on the validation data; 0 is off. Always with the same "
        "pictures, noise and noise levels, never rolled out.",
        low=0,
    )
    preview_every: int = setting(
        0,
        "Training steps between films in the panel; 0 is off, and a button takes one at any time. A film rolls out one "
        "picture of the data with the LoRA as it is then and shows its drift; it takes as long as a few steps.",
        low=0,
    )
    hold_out: float = setting(
        0.0,
        "Share of the pictures that is not trained on but measured every validate_every steps: 0.1 to 0.2, and at "
        "least ten pictures, tell when the LoRA begins to memorise. The same pictures every time, chosen by their "
        "names. 0 is off; connect other pictures to validation instead.",
        low=0,
        high=0.9,
        step=0.05,
    )
    patience: int = setting(
        0,
        "Above 0: keeps the best moment, the state with the least validation loss, and ends the training once that "
        "loss has not fallen for this many measurements; 3 to 6 are sensible. 0 trains to the end and keeps the last "
        "state.",
        low=0,
    )
    save_minutes: float = setting(
        10.0,
        "Minutes after which a state is saved whatever save_every says, so that a crash loses no more; 0 is off.",
        low=0,
    )
    lr_from: int = setting(
        0,
        "Training step where the learning rate's schedule starts: that of the first stage with a rate of its own.",
        low=0,
    )
    lr_steps: int = setting(
        0,
        "Training steps over which that schedule runs; 0 is up to the planned steps.",
        low=0,
    )
    rollout_from: int = setting(
        0,
        "Training step from which the steps of the rollout settings count: where the first stage with them started.",
        low=0,
    )
    activation_offload: bool = setting(
        False,
        "Keeps what the model calculated for the backward pass in the computer's memory: needs less memory on the GPU, "
        "a step takes longer. Best together with gradient_checkpointing. On a CPU nothing changes.",
    )
    compile: bool = setting(
        False,
        "Compiles the model's repeated blocks before it trains (torch.compile): steps are then faster, but it takes a "
        "minute or more before the first one. For long runs. Needs Triton on a GPU and a C++ compiler on a CPU; where "
        "blocks cannot be compiled, the training says so and goes on without.",
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def evaluations(self) -> int:
        """Forward evaluations of training a row: its passes; with checkpointing the forward one is made again."""
        return 3 if self.gradient_checkpointing else 2

    @property
    def lr_ends(self) -> int:
        """The optimiser step at which the learning rate's schedule has ended."""
        return self.lr_from + self.lr_steps if self.lr_steps else self.steps

    def lr_at(self, step: int) -> float:
        """Learning rate of optimiser step `step` (from 0)."""
        return self.optimizer.lr_at(step - self.lr_from, self.lr_ends - self.lr_from)


def check_validation(config: TrainConfig, given: bool) -> None:
    """Refuse settings of validation that contradict each other or have nothing to measure on.

    Args:
        given: whether there are pictures to validate on, beside those that the run may hold out itself.

    Raises:
        ValueError: it says which.
    """
    if config.patience and not (given or config.hold_out):
        raise ValueError(
            f"patience must be 0 without validation data, got {config.patience}; connect some to validation, or set "
            "hold_out to 0.1 or more"
        )
    if given and config.hold_out:
        raise ValueError(
            f"hold_out must be 0 with other pictures at validation, got {config.hold_out:g}; use one of the two"
        )
    for name in ("hold_out", "patience"):
        if getattr(config, name) and not config.validate_every:
            raise ValueError(
                f"{name} must be 0 while validate_every is 0, got {getattr(config, name):g}; set validate_every to the "
                "steps between two measurements, for example a twentieth of the run"
            )


def resolved(config: TrainConfig, source: ModelSource) -> TrainConfig:
    """`config` with the layers that its preset means in this model."""
    if config.lora.targets:
        return config
    module, attention = source.denoiser().module, source.default_lora_targets
    targets = preset_targets(config.lora.preset, module, attention)
    return replace(config, lora=replace(config.lora, targets=targets))


def streams(seed: int) -> dict[str, torch.Generator]:
    """The run's random streams, on the CPU so that a run is the same on any device."""
    states = np.random.SeedSequence(seed).generate_state(len(STREAMS), np.uint64)
    return {name: torch.Generator().manual_seed(int(s)) for name, s in zip(STREAMS, states, strict=True)}


def preserve_stream(seed: int) -> torch.Generator:
    """The random stream of preservation, which only runs that preserve have: states without it stay what they were."""
    states = np.random.SeedSequence(seed).generate_state(len(STREAMS) + 1, np.uint64)
    return torch.Generator().manual_seed(int(states[-1]))


def cost(config: TrainConfig, source: ModelSource) -> float:
    """Expected forwards per sample and step beside its training, at the run's highest rollout probability."""
    extra = expected_extra_forwards(config.rollout, config.rollout.reflexflow.active(source.prediction))
    return extra + expected_evaluations(config.rollout, config.evaluations) / config.batch_size
