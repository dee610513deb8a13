"""Many texts in little memory: a hundred thousand names as Python strings take ten times their letters."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

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

    @classmethod
    def of(cls, content: bytes) -> Keys:
        """The keys whose `content` this is."""
        keys = cls()
        keys._bytes += content
        return keys

    @property
    def content(self) -> bytes:
        """All of them, 16 bytes each."""
        return bytes(self._bytes)

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


T = TypeVar("T", Texts, Keys)


class Numbered(Generic[T]):
    """The number of each of many texts, looked for behind the one that was found last.

    Whoever asks in the order of the texts needs no table of them, which for a hundred thousand takes 15 MB and more.
    """

    def __init__(self, texts: T) -> None:
        self.texts: T = texts
        self._next = 0
        self._table: dict[str, int] | None = None

    def of(self, text: str) -> int | None:
        """The number of `text`, None if it is not there."""
        number: int | None = self._next
        if self._next >= len(self.texts) or self.texts[self._next] != text:
            if self._table is None:
                self._table = {own: i for i, own in enumerate(self.texts)}
            number = self._table.get(text)
        if number is not None:
            self._next = number + 1
        return number

    def put(self, text: str) -> int:
        """The number of `text`, at the end if it is not there."""
        number = self.of(text)
        if number is None:
            number = len(self.texts)
            self.texts.append(text)
            assert self._table is not None
            self._table[text] = number
        return number
