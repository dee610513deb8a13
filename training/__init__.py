"""Train LoRAs from Python, without a graph: the names that a program may rely on.

>>> from rollout_trainer.training import TrainConfig, encode, load_diffusers, read_image_folder, starting
>>> model = load_diffusers("demo/model")
>>> data = encode(read_image_folder("demo/data"), model)
>>> with starting("runs", "faces", model, data, TrainConfig(steps=300)) as stage:
...     run = stage.train(300)

Conventions: latents are ``[B, C, h, w]`` (``[B, C, frames, h, w]`` for video models) in float32, as the network sees
them; pictures are ``[N, 3, H, W]`` in [0, 1]; a noise level sigma is ``[B]``, in [0, 1] for flow models and the VE
noise level for epsilon and v models; steps are optimiser steps, lengths of rollouts are solver steps, sides are pixels.
Settings are frozen and checked when they are made: `ValueError` names the one that is wrong. `RuntimeError` is a place
on the disk or a package that is missing, `FloatingPointError` a loss that stayed non-finite.

What is not named here may change. `docs/python.md` has the names by what they are for, ``demo/train_folder.py`` a
whole program. Nothing is imported before its name is asked for, and nothing inside the pack imports through here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.dataset import LatentDataset as LatentDataset
    from .data.encoding import encode as encode
    from .data.folders import read_image_folder as read_image_folder
    from .data.images import ImageDataset as ImageDataset
    from .lora.adapter import AdapterState as AdapterState
    from .lora.adapter import LoRAConfig as LoRAConfig
    from .lora.reading import read_lora as read_lora
    from .models.families import load_diffusers as load_diffusers
    from .models.source import LoadedModel as LoadedModel
    from .models.source import ModelSource as ModelSource
    from .objective.config import ReflexFlowConfig as ReflexFlowConfig
    from .objective.config import RolloutConfig as RolloutConfig
    from .objective.losses import LossConfig as LossConfig
    from .objective.timesteps import TimestepConfig as TimestepConfig
    from .pictures.sampling import sample as sample
    from .runs.export import save_lora as save_lora
    from .runs.report import report as report
    from .runs.run import Run as Run
    from .runs.run import Stage as Stage
    from .runs.run import reopen as reopen
    from .runs.run import resuming as resuming
    from .runs.run import start as start
    from .runs.run import starting as starting
    from .runs.run import train as train
    from .runs.run import validate as validate
    from .runs.stages import branch as branch
    from .trainer.config import TrainConfig as TrainConfig
    from .trainer.optim import OptimizerConfig as OptimizerConfig
    from .trainer.trainer import StepReport as StepReport

_HOME = {
    "AdapterState": ".lora.adapter",
    "ImageDataset": ".data.images",
    "LatentDataset": ".data.dataset",
    "LoRAConfig": ".lora.adapter",
    "LoadedModel": ".models.source",
    "LossConfig": ".objective.losses",
    "ModelSource": ".models.source",
    "OptimizerConfig": ".trainer.optim",
    "ReflexFlowConfig": ".objective.config",
    "RolloutConfig": ".objective.config",
    "Run": ".runs.run",
    "Stage": ".runs.run",
    "StepReport": ".trainer.trainer",
    "TimestepConfig": ".objective.timesteps",
    "TrainConfig": ".trainer.config",
    "branch": ".runs.stages",
    "encode": ".data.encoding",
    "load_diffusers": ".models.families",
    "read_image_folder": ".data.folders",
    "read_lora": ".lora.reading",
    "reopen": ".runs.run",
    "report": ".runs.report",
    "resuming": ".runs.run",
    "sample": ".pictures.sampling",
    "save_lora": ".runs.export",
    "start": ".runs.run",
    "starting": ".runs.run",
    "train": ".runs.run",
    "validate": ".runs.run",
}
"""Where each public name lives."""

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """The public name `name`, from its module."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
