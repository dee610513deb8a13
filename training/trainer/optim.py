"""Optimisers, learning-rate schedules and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check_settings, setting
from .packing import apart, pack, unpack

OptimizerName = Literal["adamw", "adamw8bit", "adafactor", "prodigy"]
LRSchedule = Literal["constant", "linear", "cosine"]
_NESTED = "nested"
"""What names of tensors begin with that lie deeper in an optimiser's state than directly in a slot of a parameter."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its learning rate over the run."""

    name: OptimizerName = setting(
        "adamw",
        "adamw is a safe choice. adafactor and adamw8bit need less memory, adamw8bit also the package bitsandbytes. "
        "prodigy (package prodigyopt) finds the learning rate itself: set learning_rate to 1.",
        choices=get_args(OptimizerName),
        called="optimizer",
    )
    lr: float = setting(
        1e-4,
        "Highest learning rate of the run. 1e-4 suits most LoRAs of large models; tiny models take 1e-3 and more. "
        "With prodigy set 1.",
        low=1e-10,
        high=100,
        step=1e-6,
        round=1e-10,
    )
    weight_decay: float = setting(
        0.01,
        "Pulls the LoRA's weights towards zero, against overfitting; 0 to 0.1.",
        low=0,
        step=0.001,
    )
    beta1: float = setting(
        0.9,
        "How slowly past gradients are forgotten; 0.9 is usual. Not used by adafactor.",
        low=0,
        high=0.9999,
        step=0.01,
        round=1e-4,
    )
    beta2: float = setting(
        0.99,
        "How slowly the size of past gradients is forgotten: 0.99 suits short runs, 0.999 long ones. Not used by "
        "adafactor.",
        low=0,
        high=0.99999,
        step=0.001,
        round=1e-5,
    )
    schedule: LRSchedule = setting(
        "constant",
        "Learning rate after the warm-up. constant: stays; linear, cosine: falls to final_rate by the planned last "
        "step, evenly or slowly at both ends.",
        choices=get_args(LRSchedule),
        called="lr_schedule",
    )
    warmup_steps: int = setting(
        0,
        "Training steps in which the learning rate rises from 0; 10 to 100 make the start calmer.",
        low=0,
    )
    final_lr: float = setting(
        0.0,
        "Where linear and cosine end, as a share of the highest learning rate: 0.1 is a tenth. Not used by constant.",
        low=0,
        high=1,
        step=0.01,
    )
    grad_clip: float = setting(
        1.0,
        "Largest size (norm) of a gradient; a larger one is scaled down to it. 1 is usual, 0 is off.",
        low=0,
        step=0.1,
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of optimiser step `step` (from 0) in a run planned for `total` steps."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        done = min((step - self.warmup_steps) / max(total - self.warmup_steps, 1), 1.0)
        fall = done if self.schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
        return self.lr * (1 - (1 - self.final_lr) * fall)


def _imported(package: str, attribute: str, name: str) -> Any:
    """An optimiser class of an optional package."""
    try:
        return getattr(import_module(package), attribute)
    except ImportError as err:
        raise RuntimeError(f"optimizer {name} needs the package {package.partition('.')[0]}, which is not installed; "
                           f"run `pip install {package.partition('.')[0]}` or choose adamw") from err  # fmt: skip


def build_optimizer(config: OptimizerConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimiser over `parameters`.

    Raises:
        RuntimeError: the optimiser's package is not installed.
    """
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    betas = (config.beta1, config.beta2)
    if config.name == "adafactor":
        return torch.optim.Adafactor(parameters, **common)
    if config.name == "adamw8bit":
        optimizer = _imported("bitsandbytes.optim", "AdamW8bit", config.name)
        return optimizer(parameters, betas=betas, **common)
    if config.name == "prodigy":
        optimizer = _imported("prodigyopt", "Prodigy", config.name)
        return optimizer(parameters, betas=betas, safeguard_warmup=True, **common)
    return torch.optim.AdamW(parameters, betas=betas, fused=True, **common)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class EMA:
    """Exponential moving average of weights, float32.

    Args:
        decay: 0..1; the early average is warmed up as ``min(decay, (1 + n) / (10 + n))``.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.parameters = list(parameters)
        self.average = [p.detach().clone() for p in parameters]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, self.parameters, 1 - decay)  # type: ignore[arg-type]

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average; a second call undoes it."""
        for p, a in zip(self.parameters, self.average, strict=True):
            kept = p.detach().clone()
            p.copy_(a)
            a.copy_(kept)


def grad_norm_clip(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Clip the gradient norm to `limit` (0: only measure); return the norm before, a scalar on the device."""
    return nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else math.inf, foreach=True)


def split(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain values apart."""
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    return tensors, {k: v for k, v in state.items() if k not in tensors}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors by name and strict JSON, whatever it keeps there.

    Raises:
        TypeError: it keeps something that cannot be written exactly.
    """
    packed = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    slots: dict[str, Any] = {}
    for index, own in packed["state"].items():
        for name, value in own.items():
            slot = f"{index}.{name}"
            if isinstance(value, Tensor):
                tensors[slot] = value.detach()
            else:
                slots[slot] = pack(value, f"{_NESTED}.{slot}", tensors)
    groups = pack(packed["param_groups"], f"{_NESTED}.groups", tensors)
    return apart(tensors), {"slots": slots, "groups": groups}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]
) -> None:
    """Inverse of `pack_optimizer`."""
    direct = {key: value for key, value in tensors.items() if not key.startswith(f"{_NESTED}.")}
    state: dict[int, dict[str, Any]] = {}
    for key, value in (direct | unpack(values["slots"], tensors)).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = [_with_tuples(group) for group in unpack(values["groups"], tensors)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    _restore_types(optimizer, state)


def _with_tuples(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group; the betas of states that were written as plain JSON are lists there."""
    return group | ({"betas": tuple(group["betas"])} if group.get("betas") else {})


def _restore_types(optimizer: torch.optim.Optimizer, saved: dict[int, dict[str, Any]]) -> None:
    """Give tensors that loading cast to their parameter's type the type and values that were saved."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, own in saved.items():
        loaded = optimizer.state[parameters[index]]
        for name, value in own.items():
            now = loaded.get(name)
            if isinstance(value, Tensor) and isinstance(now, Tensor) and now.dtype != value.dtype:
                loaded[name] = value.to(now.device, copy=True)
