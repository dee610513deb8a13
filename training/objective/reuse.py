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

from .states import RolledStates, Trail

_ENDS, _COND = "ends.", "ends.cond."


class StatePool:
    """The states of the last rollout.

    Args:
        reuse: optimiser steps for which states may be drawn; 1 keeps none.
    """

    def __init__(self, reuse: int) -> None:
        self.reuse = reuse
        self.trail: Trail | None = None
        self.born = 0
        """Optimiser step of the rollout."""

    def forget(self, step: int) -> None:
        """Let go of states that are too old to be drawn at optimiser step `step`."""
        if step - self.born >= self.reuse:
            self.trail = None

    def draw(self, step: int, n: int, x: Tensor, generator: torch.Generator) -> RolledStates | None:
        """Draw `n` states for the batch `x` [B, ...]; None when a rollout is due.

        It is due when there are no states, when they are too old or of another size than the batch, and for every
        batch of the optimiser step that rolls out.
        """
        trail = self.trail
        if trail is None or not 0 < step - self.born < self.reuse:
            return None
        if trail.x_hat.shape[1:] != x.shape[1:]:
            return None
        order = torch.randperm(len(trail), generator=generator)
        if n > len(trail):  # a rollout of few or short rows: some states serve twice
            more = torch.randint(len(trail), (n - len(trail),), generator=generator)
            order = torch.cat([order, more])
        return trail.at(order[:n])

    def add(self, step: int, trail: Trail) -> None:
        """Keep the states of a rollout at optimiser step `step`; those of earlier steps go."""
        if self.reuse == 1:
            return
        own = self.trail
        if own is not None and self.born == step and own.x_hat.shape[1:] == trail.x_hat.shape[1:]:
            trail = own.join(trail)
        self.trail, self.born = trail, step

    def tensors(self) -> dict[str, Tensor]:
        """The states for a saved state."""
        if self.trail is None:
            return {}
        trail, ends = self.trail, vars(self.trail.ends)
        out = {"x_hat": trail.x_hat, "sigma": trail.sigma, "row": trail.row}
        out |= {_ENDS + name: value for name, value in ends.items() if isinstance(value, Tensor)}
        return out | {_COND + name: value for name, value in trail.ends.cond.items()}

    def load(self, tensors: Mapping[str, Tensor], born: int, device: torch.device) -> None:
        """Inverse of `tensors`."""
        self.born, self.trail = born, None
        if not tensors:
            return
        own: dict[str, Any] = {"mask": None, "cond": {}}
        for name, value in tensors.items():
            if name.startswith(_COND):
                own["cond"][name.removeprefix(_COND)] = value
            elif name.startswith(_ENDS):
                own[name.removeprefix(_ENDS)] = value
        trail = Trail(RolledStates(**own), tensors["x_hat"], tensors["sigma"], tensors["row"])
        self.trail = trail.to(device)
