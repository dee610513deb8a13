"""Tensors on disk by key: complete and intact, or not there.

Beside the files lies an index: what each holds, and the size and time that it had when its content was last checked.
A file that is still as the index says is not read until a training asks for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import DTYPES, bytes_of, sweep_partials, write_tensors
from .columns import Keys, Numbered

logger = logging.getLogger(__name__)

INDEX = "index"
"""Name of the index, beside files that are named by key."""
MOST_HEADER = 100_000_000
"""Bytes of the longest header that safetensors reads."""

Layout = tuple[tuple[str, str, tuple[int, ...]], ...]
"""What a file holds: name, dtype and shape of each tensor, by name."""
NAMED = {name: dtype for dtype, name in DTYPES.items()}
"""Types by the safetensors format's names."""


def cache_key(*parts: object) -> str:
    """Hex digest of `parts` (strings, numbers, lists of them)."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def layout(tensors: Mapping[str, Tensor]) -> Layout:
    """What a file of these tensors holds."""
    return tuple(
        (name, str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for name, value in sorted(tensors.items())
    )


class TensorCache:
    """A folder of safetensors files, one for each key; without a folder, the tensors are kept in memory.

    A key must say all that its tensors depend on. Files that are cut off or altered count as absent. Several
    processes may use one folder: a file is replaced by another of the same content, and who writes the index last
    leaves the others' files out of it, which costs reading them once more.
    """

    lost = 0
    """Files of all caches that a training asked for in vain: another process has deleted or damaged them."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._held: dict[str, Mapping[str, Tensor]] = {}  # without a folder
        self._index: _Index | None = None

    def ensure(self, key: str, make: Callable[[], Mapping[str, Tensor]]) -> Layout:
        """Have the tensors of `key` made by `make` and kept if they are not there; return what they are.

        Raises:
            RuntimeError: the folder cannot be written.
        """
        if self.folder is None:
            if key not in self._held:
                self._held[key] = _plain(make())
            return layout(self._held[key])
        if self._index is None:
            sweep_partials(self.folder)
            self._index = _Index.read(self.folder / INDEX)
        known = self._index.get(key, _stamp(f"{self.folder}/{key}.safetensors"))
        if known is None:
            path = self.folder / f"{key}.safetensors"
            found = layout(self._whole(path, make))
            known = self._index.put(key, _stamp(path), found)
        return known

    def fetch(self, key: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The tensors of `key`, made by `make` and kept if they are not there, checked if they are.

        Raises:
            RuntimeError: the folder cannot be written.
        """
        if self.folder is None:
            return self._held.get(key) or _plain(make())
        return self._whole(self.folder / f"{key}.safetensors", make)

    def read(self, key: str) -> Mapping[str, Tensor]:
        """The tensors of a key that was ensured.

        Raises:
            RuntimeError: they are not there any more.
        """
        if self.folder is None:
            return self._held[key]
        path = self.folder / f"{key}.safetensors"
        try:
            return _load(path)[0]
        except (SafetensorError, OSError) as err:
            raise self._gone(path, err) from err

    def rows(self, keys: Sequence[str]) -> dict[str, Tensor] | None:
        """The tensors of keys that were ensured, [B, ...], read to where they stay; None: they are not all alike.

        Raises:
            RuntimeError: they are not there any more.
        """
        if self.folder is None:
            return None
        out: dict[str, Tensor] = {}
        for i, key in enumerate(keys):
            path = f"{self.folder}/{key}.safetensors"
            try:
                with open(path, "rb", buffering=0) as file:
                    places = _places(file)
                    if i == 0 and places is not None:
                        out = {
                            name: torch.empty(len(keys), *shape, dtype=dtype)
                            for name, (dtype, shape, _) in places.items()
                        }
                    if places is None or not _same(out, places):
                        return None
                    for name, (_, _, offset) in places.items():
                        _fill(file, offset, out[name][i])
            except (OSError, ValueError) as err:
                raise self._gone(path, err) from err
        return out

    @staticmethod
    def _gone(path: str | Path, err: Exception) -> RuntimeError:
        TensorCache.lost += 1
        return RuntimeError(
            f"cache file {path} must stay as it is while a training reads it, but it cannot be read ({err}); "
            "queue again: Encode Dataset makes it anew"
        )

    def close_index(self) -> None:
        """Write the index if it has changed, and let go of it.

        One that cannot be written is a line in the log: it saves time the next time, no more.
        """
        index, self._index = self._index, None
        if self.folder is None or index is None or not index.changed:
            return
        try:
            index.write(self.folder / INDEX)
        except OSError as err:
            logger.warning("cache index %s is not kept: %s", self.folder / INDEX, err)

    def _whole(self, path: Path, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        tensors = self._checked(path)
        if tensors is None:
            tensors = _plain(make())
            try:
                write_tensors(path, tensors, {"digest": _digest(tensors)})
            except OSError as err:
                raise RuntimeError(
                    f"cache folder {path.parent} must be writable, got {err.strerror}; free space and queue again, "
                    "what is encoded so far is kept"
                ) from err
        return tensors

    def _checked(self, path: Path) -> dict[str, Tensor] | None:
        if not path.is_file():
            return None
        try:
            tensors, digest = _load(path)
        except (SafetensorError, OSError) as err:
            logger.warning("cache file %s is made anew: %s", path, err)
            return None
        if digest != _digest(tensors):
            logger.warning("cache file %s is made anew: its content has changed", path)
            return None
        return tensors


class _Index:
    """Which files a cache folder held and how they looked: size in bytes, time in ns, and what is in them."""

    VERSION = "1"

    def __init__(self) -> None:
        self.rows = Numbered(Keys())
        self.numbers = array("q")  # of each row: size, time, layout
        self.layouts: dict[Layout, int] = {}
        self.by_number: list[Layout] = []
        self.changed = False

    @classmethod
    def read(cls, path: Path) -> _Index:
        """The index in a file; an empty one if it cannot be used, for its files are then looked at again."""
        index = cls()
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                keys, numbers = file.get_tensor("keys"), file.get_tensor("numbers")
            if metadata.get("version") != cls.VERSION:
                return index
            for given in json.loads(metadata["layouts"]):
                index._number(tuple((name, dtype, tuple(shape)) for name, dtype, shape in given))
        except FileNotFoundError:
            return index
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as err:
            logger.warning("cache index %s is made anew: %s", path, err)
            return cls()
        index.rows = Numbered(Keys.of(keys.tobytes()))
        index.numbers.frombytes(numbers.astype(np.int64).tobytes())
        if len(index.numbers) != 3 * len(index.rows.texts):
            logger.warning("cache index %s is made anew: its parts are not of one length", path)
            return cls()
        return index

    def get(self, key: str, stamp: tuple[int, int] | None) -> Layout | None:
        """What the file of `key` holds if it still looks as it did."""
        row = self.rows.of(key)
        if row is None or stamp is None or tuple(self.numbers[3 * row : 3 * row + 2]) != stamp:
            return None
        return self.by_number[self.numbers[3 * row + 2]]

    def put(self, key: str, stamp: tuple[int, int] | None, found: Layout) -> Layout:
        """Note a file that was looked at; None: it is gone again."""
        number = self._number(found)
        if stamp is not None:
            self.changed = True
            row = self.rows.put(key)
            self.numbers[3 * row : 3 * row + 3] = array("q", [*stamp, number])
        return self.by_number[number]

    def write(self, path: Path) -> None:
        """Raises OSError if the folder cannot be written."""
        keys = torch.frombuffer(bytearray(self.rows.texts.content), dtype=torch.uint8)
        numbers = torch.frombuffer(bytearray(self.numbers.tobytes()), dtype=torch.int64)
        metadata = {"version": self.VERSION, "layouts": json.dumps(self.by_number)}
        write_tensors(path, {"keys": keys, "numbers": numbers}, metadata)

    def _number(self, found: Layout) -> int:
        if found not in self.layouts:
            self.layouts[found] = len(self.by_number)
            self.by_number.append(found)
        return self.layouts[found]


def _stamp(path: str | Path) -> tuple[int, int] | None:
    """Size and time of a file; None if there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _load(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file, and the digest that was written beside them."""
    with safe_open(path, framework="pt") as file:
        # Cloned: what safetensors returns may be a view of the file, which may be replaced.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return tensors, (file.metadata() or {}).get("digest")


def _places(file: FileIO) -> dict[str, tuple[torch.dtype, tuple[int, ...], int]] | None:
    """Of each tensor in a safetensors file: its dtype, its shape, where it begins; None: of a dtype not known here.

    Raises:
        OSError, ValueError: the file cannot be read, or is of something else or not whole.
    """
    head = file.read(4096) or b""
    size = int.from_bytes(head[:8], "little")
    if len(head) < 8 or size > MOST_HEADER:
        raise ValueError("it is no safetensors file")
    while len(head) < 8 + size:
        more = file.read(8 + size - len(head))
        if not more:
            raise ValueError("it is cut off")
        head += more
    parsed = json.loads(head[8 : 8 + size])
    parsed.pop("__metadata__", None)
    if os.fstat(file.fileno()).st_size < 8 + size + max(
        (t["data_offsets"][1] for t in parsed.values()), default=0
    ):
        raise ValueError("it is cut off")
    if any(t["dtype"] not in NAMED for t in parsed.values()):
        return None
    return {
        name: (NAMED[t["dtype"]], tuple(t["shape"]), 8 + size + t["data_offsets"][0])
        for name, t in parsed.items()
    }


def _same(out: Mapping[str, Tensor], places: Mapping[str, tuple[torch.dtype, tuple[int, ...], int]]) -> bool:
    """Whether rows of `out` are of what lies at `places`."""
    return out.keys() == places.keys() and all(
        (out[name].dtype, tuple(out[name].shape[1:])) == place[:2] for name, place in places.items()
    )


def _fill(file: FileIO, offset: int, row: Tensor) -> None:
    """Read a tensor from a file to where it stays; other threads go on meanwhile."""
    left = bytes_of(row)  # a row of a whole tensor lies in one piece
    file.seek(offset)
    while left:
        count = file.readinto(left)
        if not count:
            raise ValueError("it is cut off")
        left = left[count:]


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
