"""What a run has measured, and everything that its next step depends on: plain tensors and values."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class History:
    """What a run measured, one value per optimiser step and column; NaN where there was nothing to measure.

    Columns are arrays of float64, which a save copies as they are: a list of 100,000 numbers takes milliseconds.
    """

    columns: dict[str, array[float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return max((len(c) for c in self.columns.values()), default=0)

    def append(self, values: Mapping[str, float]) -> None:
        """Add one step. A column that is new was NaN before."""
        for name in values:
            self._begin(name)
        for name, column in self.columns.items():
            column.append(float(values.get(name, math.nan)))

    def note(self, name: str, value: float) -> None:
        """Put `value` into the newest step's row."""
        self._begin(name)
        self.columns[name][-1] = float(value)

    def _begin(self, name: str) -> None:
        if name not in self.columns:
            self.columns[name] = array("d", [math.nan]) * len(self)

    def last(self, name: str) -> float:
        """The newest value of a column, NaN if there is none."""
        column = self.columns.get(name)
        return column[-1] if column else math.nan

    def recent(self, name: str, steps: int = 50) -> float:
        """Mean of what was measured in the last `steps` steps, which one step's noise does not move; NaN if nothing."""
        measured = [value for value in self.columns.get(name, ())[-steps:] if math.isfinite(value)]
        return sum(measured) / len(measured) if measured else math.nan

    def newest(self) -> dict[str, float]:
        """The newest step's row."""
        return {name: column[-1] for name, column in self.columns.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The columns as float64 tensors."""
        return {name: torch.from_numpy(np.array(c)) for name, c in self.columns.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> History:
        """Inverse of `tensors`."""
        return cls({name: array("d", c.numpy().tobytes()) for name, c in tensors.items()})


@dataclass(frozen=True)
class RunState:
    """Everything a step needs to go on."""

    step: int
    """Optimiser steps done."""
    tensors: Mapping[str, Tensor]
    """By dotted name: ``adapter.*``, ``optimizer.*``, ``ema.*``, ``rng.*``, ``order.*``, ``history.*`` ..."""
    values: Mapping[str, Any]
    """Plain JSON values."""

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below ``prefix.``, with the prefix taken off."""
        start = prefix + "."
        return {k[len(start) :]: v for k, v in self.tensors.items() if k.startswith(start)}
