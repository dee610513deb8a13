"""Many texts in little memory: a hundred thousand names as Python strings take ten times their letters."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor


class Texts(Sequence[str]):
    """Texts that are kept as one run of bytes and taken out as they are asked for."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])
        for text in texts:
            self.append(text)

    @classmethod
    def of(cls, content: np.ndarray, ends: np.ndarray) -> Texts:
        """The texts that `tensors` were made of."""
        texts = cls()
        texts._bytes = bytearray(content.tobytes())
        texts._ends = array("q", ends.astype(np.int64).tobytes())
        return texts

    def tensors(self) -> dict[str, Tensor]:
        """``bytes`` and ``ends``: what a file keeps of them."""
        content = torch.from_numpy(np.frombuffer(self._bytes, dtype=np.uint8).copy())
        return {"bytes": content, "ends": torch.from_numpy(np.frombuffer(self._ends, dtype=np.int64).copy())}

    def append(self, text: str) -> None:
        """Put `text` at the end."""
        self._bytes += text.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._bytes))

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[str, ...]: ...
    def __getitem__(self, i: int | slice) -> str | tuple[str, ...]:
        if isinstance(i, slice):
            return tuple(self._text(k) for k in range(*i.indices(len(self))))
        if not -len(self) <= i < len(self):
            raise IndexError(f"there are {len(self)} texts, not number {i}")
        return self._text(i % len(self))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        return map(self._text, range(len(self)))

    def _text(self, i: int) -> str:
        return self._bytes[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogateescape")


class Keys(Sequence[str]):
    """Hex digests of 32 digits, each kept as 16 bytes."""

    WIDTH = 16

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        for key in keys:
            self.append(key)

    def append(self, key: str) -> None:
        """Put `key` at the end."""
        self._bytes += bytes.fromhex(key)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[str, ...]: ...
    def __getitem__(self, i: int | slice) -> str | tuple[str, ...]:
        if isinstance(i, slice):
            return tuple(self[k] for k in range(*i.indices(len(self))))
        if not -len(self) <= i < len(self):
            raise IndexError(f"there are {len(self)} keys, not number {i}")
        start = i % len(self) * self.WIDTH
        return self._bytes[start : start + self.WIDTH].hex()

    def __len__(self) -> int:
        return len(self._bytes) // self.WIDTH
