"""Frames of a clip that is too long to be held: worked out as they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Frames:
    """Stands for a tensor [F, ...] that is cut along its first axis, best from front to back.

    Args:
        shape: of the whole.
        read: gives the frames from a number up to another, [n, ...].
    """

    def __init__(self, shape: tuple[int, ...], read: Callable[[int, int], Tensor]) -> None:
        self.shape = tuple(shape)
        self._read = read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Tensor:
        first, last, _ = part.indices(len(self))
        return self._read(first, last)

    def movedim(self, source: int, destination: int) -> Frames:
        """With an axis at another place."""
        return self._each(lambda x: x.movedim(source, destination))

    def flip(self, axis: int) -> Frames:
        """Turned round along an axis."""
        return self._each(lambda x: x.flip(axis))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Frames:
        shape = change(torch.empty(self.shape, device="meta")).shape
        return Frames(shape, lambda first, last: change(self._read(first, last)))
