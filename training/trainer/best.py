"""The best moment of a run: where its validation loss was least, and how long that is ago."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Best:
    """What the validations of a run have come to so far."""

    step: int = 0
    """Optimiser steps done where the loss was least; 0: nothing finite was measured yet."""
    loss: float = math.inf
    waited: int = 0
    """Validations since."""

    def after(self, step: int, loss: float) -> Best:
        """The same after one more validation; a loss that is not finite is no improvement."""
        if loss < self.loss:
            return Best(step, loss)
        return replace(self, waited=self.waited + 1)

    def exhausted(self, patience: int) -> bool:
        """Whether the loss has not fallen for `patience` validations; never where that is 0, off."""
        return 0 < patience <= self.waited

    def plain(self) -> dict[str, Any]:
        """As a state's plain values have it."""
        return {
            "step": self.step,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "waited": self.waited,
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any] | None) -> Best:
        """Inverse of `plain`; None, of a state from before there was any, is the beginning."""
        if values is None:
            return cls()
        return cls(values["step"], math.inf if values["loss"] is None else values["loss"], values["waited"])
