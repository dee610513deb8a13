"""From a batch of data to what the model is trained on: noise levels, noise, and rolled rows put in place."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ...samplers import sent
from ..conditioning import Cond, placed, role
from ..forms import Prediction, add_noise, from_velocity, to_velocity, true_velocity
from .targets import Rolled, Target


@dataclass(frozen=True)
class Inputs:
    """What one forward and backward pass is made of. B rows."""

    x: Tensor
    """[B, ...] the model's input: the clean interpolant, or a rolled state."""
    sigma: Tensor
    """[B] noise level."""
    x0: Tensor
    """[B, ...] data."""
    noise: Tensor
    """[B, ...]."""
    cond: Cond
    mask: Tensor | None
    """[B, 1, ...] weight of each place in the loss."""


def teacher_forced(
    prediction: Prediction, x0: Tensor, noise: Tensor, sigma: Tensor, cond: Cond, mask: Tensor | None
) -> Inputs:
    """The usual training input: the clean interpolant at `sigma`."""
    return Inputs(add_noise(prediction, x0, noise, sigma), sigma, x0, noise, cond, mask)


def drop_captions(cond: Cond, empty: Cond, probability: float, generator: torch.Generator) -> Cond:
    """`cond`, the text of each row replaced by the empty caption's with the given chance; controls stay.

    Args:
        empty: named tensors [1, ...], with at least the text of `cond`.
    """
    if probability == 0:
        return cond
    rows = len(next(iter(cond.values())))
    drop = torch.rand(rows, generator=generator, dtype=torch.float64) < probability

    def dropped(name: str, c: Tensor) -> Tensor:
        return torch.where(drop.to(c.device).reshape(-1, *[1] * (c.ndim - 1)), empty[name].to(c), c)

    return {name: dropped(name, c) if role(name) == "text" else c for name, c in cond.items()}


def without_captions(cond: Cond, empty: Cond) -> Cond:
    """`cond`, the text of every row replaced by the empty caption's; controls stay.

    Args:
        empty: named tensors [1, ...], with at least the text of `cond`.
    """
    return {
        name: sent(empty[name], c.device, c.dtype).expand_as(c) if role(name) == "text" else c
        for name, c in cond.items()
    }


@dataclass(frozen=True)
class RolledStates:
    """R rolled states with everything that training on them needs; they may come from different rollouts."""

    x_hat: Tensor
    """[R, ...] the training input."""
    sigma: Tensor
    """[R] its noise level."""
    velocity_source: Tensor
    """[R, ...] the model's own velocity at the source, the rollout's first forward."""
    x0: Tensor
    """[R, ...] data."""
    noise: Tensor
    """[R, ...]."""
    cond: Cond
    """Named tensors [R, ...]."""
    mask: Tensor | None
    """[R, 1, ...] weight of each place in the loss."""

    def __len__(self) -> int:
        return len(self.sigma)

    def at(self, index: Tensor) -> RolledStates:
        """The states at `index: LongTensor [A]`."""
        return self.map(lambda t: t.index_select(0, sent(index, t.device)))

    def map(self, function: object) -> RolledStates:
        """The same of what `function` makes of every tensor."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        out = {k: function(v) for k, v in values.items() if isinstance(v, Tensor)}  # type: ignore[operator]
        out["cond"] = {k: function(v) for k, v in self.cond.items()}  # type: ignore[operator]
        return replace(self, **out)

    def to(self, device: torch.device) -> RolledStates:
        """The states on `device`, but for conditioning that stays on the CPU."""
        return replace(self.map(lambda t: t.to(device)), cond=placed(self.cond, device))

    def rolled(self, prediction: Prediction) -> Rolled:
        """What the target functions see of these states."""
        u = true_velocity(prediction, self.x0, self.noise)
        process = "flow" if prediction == "flow" else "ve"
        return Rolled(self.x_hat, self.sigma, self.velocity_source, self.x0, u, process)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Trail:
    """The states that R rolled rows passed, S of them; what belongs to a row is held once."""

    ends: RolledStates
    """The R rows, at their targets."""
    x_hat: Tensor
    """[S, ...]"""
    sigma: Tensor
    """[S]"""
    row: Tensor
    """LongTensor [S]: the row of each state; on the CPU."""

    def __len__(self) -> int:
        return len(self.row)

    def at(self, index: Tensor) -> RolledStates:
        """The states at `index: LongTensor [A]`."""
        own = sent(index, self.x_hat.device)
        return replace(self.ends.at(self.row[index]), x_hat=self.x_hat[own], sigma=self.sigma[own])

    def to(self, device: torch.device) -> Trail:
        """The states on `device`."""
        return Trail(self.ends.to(device), self.x_hat.to(device), self.sigma.to(device), self.row)

    def join(self, other: Trail) -> Trail:
        """The states of both."""
        x_hat, sigma = torch.cat([self.x_hat, other.x_hat]), torch.cat([self.sigma, other.sigma])
        row = torch.cat([self.row, other.row + len(self.ends)])
        return Trail(join([self.ends, other.ends]), x_hat, sigma, row)


def join(parts: list[RolledStates]) -> RolledStates:
    """Put the rows of several `RolledStates` together."""
    first = parts[0]
    if len(parts) == 1:
        return first
    tensors = {
        f.name: torch.cat([getattr(p, f.name) for p in parts])
        for f in fields(first)
        if isinstance(getattr(first, f.name), Tensor)
    }
    cond = {name: torch.cat([p.cond[name] for p in parts]) for name in first.cond}
    return replace(first, **tensors, cond=cond)


@dataclass(frozen=True)
class RolledRows:
    """The rows of a batch that are trained at states of the model's own: which they are, and what goes with them."""

    rows: Tensor
    """LongTensor [R] indices into the batch; on the CPU."""
    states: RolledStates
    """Of R rows."""
    clean: Tensor | None
    """[R, ...] ``v_clean``, the model's output at the clean interpolants; None without ReflexFlow."""


def put(inputs: Inputs, rolled: RolledRows) -> Inputs:
    """A batch, its rolled rows replaced by their states."""
    states = rolled.states

    def replaced(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, sent(rolled.rows, old.device), new.to(old))

    mask = inputs.mask
    if mask is not None and states.mask is not None:
        mask = replaced(mask, states.mask)
    return Inputs(
        replaced(inputs.x, states.x_hat),
        replaced(inputs.sigma, states.sigma),
        replaced(inputs.x0, states.x0),
        replaced(inputs.noise, states.noise),
        {name: replaced(c, states.cond[name]) for name, c in inputs.cond.items()},
        mask,
    )


def true_output(prediction: Prediction, inputs: Inputs) -> Tensor:
    """The model output, [B, ...], that means the true velocity of every row."""
    v = true_velocity(prediction, inputs.x0, inputs.noise)
    return from_velocity(prediction, inputs.x, inputs.sigma, v)


@dataclass(frozen=True)
class Goal:
    """What the loss of a batch is measured against."""

    output: Tensor
    """[B, ...] what is asked of the model, in its own prediction form."""
    weight: Tensor | None = None
    """[B] of each row's base loss; None is 1."""


def training_goal(
    prediction: Prediction, inputs: Inputs, target: Target, rolled: RolledRows | None, output: Tensor
) -> Goal:
    """What is asked of the model at every row: the true velocity, and of rolled rows what `target` says.

    Args:
        inputs: [B, ...], rolled rows in their places.
        output: [B, ...] the model's at `inputs`; no gradient goes through it here.
    """
    v, weight = true_velocity(prediction, inputs.x0, inputs.noise), None
    if rolled is not None:
        rows, states = sent(rolled.rows, output.device), rolled.states
        seen = states.rolled(prediction)
        v_hat = to_velocity(prediction, states.x_hat, states.sigma, output.detach()[rows])
        v = v.index_copy(0, rows, target.velocity(seen, v_hat).to(v))
        if target.weight is not None:
            weight = torch.ones_like(inputs.sigma).index_copy(0, rows, target.weight(seen))
    return Goal(from_velocity(prediction, inputs.x, inputs.sigma, v), weight)
