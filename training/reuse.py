"""Amortised rollouts: the states that a rollout passed through serve as training inputs of later steps.

With ``reuse = r`` a rollout is made at most every r optimiser steps; in between, rolled rows are drawn, each state
once, from the states that its rows passed on their way. The extra cost per step falls towards 1 / r. A state is at
most r - 1 steps older than the weights that train on it; each keeps its own source's velocity, so `residual` stays
what it is. The states lie on rollouts' way, so their noise levels are higher than those that the timestep sampler
draws, by half a rollout's length on average.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .inputs import Inputs, States, join

_COND = "cond."


class StatePool:
    """States of past rollouts, each to be trained on once.

    Args:
        reuse: optimiser steps for which states may be drawn; 1 keeps none.
    """

    def __init__(self, reuse: int) -> None:
        self.reuse = reuse
        self.states: States | None = None
        self.born = 0  # optimiser step of the rollout

    def take(self, step: int, n: int, inputs: Inputs, generator: torch.Generator) -> States | None:
        """Draw `n` states without replacement; None when a rollout is due.

        It is due when the states are too old, too few, or of another size than the batch.
        """
        states = self.states
        if states is None or step - self.born >= self.reuse or len(states) < n:
            return None
        if states.x_hat.shape[1:] != inputs.x.shape[1:]:
            return None
        order = torch.randperm(len(states), generator=generator)
        self.states = states.rows(order[n:])
        return states.rows(order[:n])

    def add(self, step: int, passed: States | None) -> None:
        """Keep the states that a rollout at optimiser step `step` passed through; older ones go."""
        fresh = step == self.born and self.states is not None and passed is not None
        if fresh and self.states.x_hat.shape[1:] == passed.x_hat.shape[1:]:  # type: ignore[union-attr]
            passed = join([self.states, passed])  # type: ignore[list-item]
        self.states, self.born = passed, step

    def tensors(self) -> dict[str, Tensor]:
        """The states for a saved state."""
        if self.states is None:
            return {}
        out: dict[str, Tensor] = {}
        for name, value in vars(self.states).items():
            if isinstance(value, Tensor):
                out[name] = value
        return out | {_COND + name: value for name, value in self.states.cond.items()}

    def load(self, tensors: Mapping[str, Tensor], born: int, device: torch.device) -> None:
        """Inverse of `tensors`."""
        self.born = born
        own: dict[str, Any] = {k: v.to(device) for k, v in tensors.items() if not k.startswith(_COND)}
        cond = {k.removeprefix(_COND): v.to(device) for k, v in tensors.items() if k.startswith(_COND)}
        self.states = States(**{"mask": None, **own}, cond=cond) if own else None
