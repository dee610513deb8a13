"""A run with everything on, what it means that two states are the same, and a model that is a function."""

import pytest
import torch

from rollout_trainer.samplers import FlowSchedule
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.models.source import Denoiser
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.objective.rollout import roll_out
from rollout_trainer.training.objective.targets import TARGETS
from rollout_trainer.training.objective.timesteps import TimestepConfig
from rollout_trainer.training.trainer.optim import OptimizerConfig

FLOW = FlowSchedule(3.0)


class Given(Denoiser):
    """A model that answers with ``function(x, sigma, cond)``, in its own prediction form."""

    def __init__(self, function, prediction="flow", schedule=FLOW):
        self.predict = function
        self.prediction = prediction
        self.schedule = schedule


def rolled_out(plan, config, model, inputs):
    """`roll_out` as a training step calls it, with the config's own target."""
    return roll_out(plan, config, TARGETS[config.target], model, inputs, lambda rows: None)


ROLLOUT = RolloutConfig(max_step_offset=4, probability=0.7, steps_per_trajectory=20)


def same(a, b):
    """Whether two states are equal bit for bit; NaN equals NaN."""
    assert a.tensors.keys() == b.tensors.keys()
    wrong = [
        k for k in a.tensors if not torch.equal(a.tensors[k].nan_to_num(-7), b.tensors[k].nan_to_num(-7))
    ]
    return not wrong or pytest.fail(f"differ: {wrong}")


EVERYTHING = {
    "lora": LoRAConfig(rank=2, alpha=2.0, dropout=0.3),
    "ema_decay": 0.9,
    "accumulation": 2,
    "caption_dropout": 0.2,
    "optimizer": OptimizerConfig(lr=1e-2, schedule="cosine", warmup_steps=5),
    "timesteps": TimestepConfig("logit_normal"),
    "rollout": RolloutConfig(
        max_step_offset=4, ramp_steps=12, prob_start=0.1, prob_end=0.9, steps_per_trajectory=20, reuse=3
    ),
}
