"""Amortised rollouts: the states along a rollout serve as training inputs of later steps.

With ``reuse = r`` rollouts are made in one of r optimiser steps; in the others, rolled rows are drawn from the states
that the last rollout's rows passed, their targets included. The extra cost per step falls towards 1 / r. A state is at
most r - 1 steps older than the weights that train on it; each keeps its own source's velocity, so `residual` stays
what it is. States on the way lie above the noise level that the timestep sampler drew, by half a rollout's length on
average, and the same pictures come again for r steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .inputs import Inputs, States, join

_COND = "cond."


class StatePool:
    """The states of the last rollout.

    Args:
        reuse: optimiser steps for which states may be drawn; 1 keeps none.
    """

    def __init__(self, reuse: int) -> None:
        self.reuse = reuse
        self.states: States | None = None
        self.born = 0
        """Optimiser step of the rollout."""

    def draw(self, step: int, n: int, inputs: Inputs, generator: torch.Generator) -> States | None:
        """Draw `n` states; None when a rollout is due.

        It is due when there are no states, when they are too old or of another size than the batch, and for every
        batch of the optimiser step that rolls out.
        """
        states = self.states
        if states is None or not 0 < step - self.born < self.reuse:
            return None
        if states.x_hat.shape[1:] != inputs.x.shape[1:]:
            return None
        order = torch.randperm(len(states), generator=generator)
        if n > len(states):  # a rollout of few or short rows: some states serve twice
            more = torch.randint(len(states), (n - len(states),), generator=generator)
            order = torch.cat([order, more])
        return states.rows(order[:n])

    def add(self, step: int, states: States) -> None:
        """Keep the states of a rollout at optimiser step `step`; those of earlier steps go."""
        if self.reuse == 1:
            return
        own = self.states
        if own is not None and self.born == step and own.x_hat.shape[1:] == states.x_hat.shape[1:]:
            states = join([own, states])
        self.states, self.born = states, step

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
