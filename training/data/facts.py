"""What is known of the files of a folder, so that only new and changed ones are looked at.

A picture is decoded once to be sure of it, and its content is hashed; after that its size and times tell whether it is
the same. What is known of a folder is one small file; without it everything is looked at again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import UnidentifiedImageError
from safetensors import SafetensorError, safe_open

from ..files import sweep_partials, write_tensors
from .columns import Numbered, Texts

logger = logging.getLogger(__name__)

Stamp = tuple[int, int, int]
"""Size in bytes, and the times of the last change of content and of anything, in ns."""
Fact = dict[str, Any]
"""Plain values."""
VERSION = "1"
"""Raised when a file would be judged otherwise than before."""


def stamp(stat: os.stat_result) -> Stamp:
    """How a file looks from outside."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def line_of(err: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(err, UnidentifiedImageError):
        return "no known kind of picture is in it"
    return str(err).strip().partition("\n")[0] or type(err).__name__


class Facts:
    """Facts of the files of one folder.

    Args:
        folder: the folder.
        place: where such knowledge is kept, one file for each folder; None keeps nothing.
    """

    def __init__(self, folder: Path, place: Path | None) -> None:
        name = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()[:32]
        self._file = None if place is None else place / name
        self._old = Numbered(Texts())
        self._stamps = array("q")
        self._facts = Texts()
        self._names, self._new_stamps, self._new = Texts(), array("q"), Texts()
        self._changed = False
        if self._file is not None:
            sweep_partials(self._file.parent)
            self._read(self._file)

    def of(self, name: str, stamp: Stamp, look: Callable[[], Fact]) -> Fact:
        """What is known of the file `name`, by `look` if it has changed; what `look` raises is not kept."""
        row = self._old.of(name)
        if row is not None and tuple(self._stamps[3 * row : 3 * row + 3]) == stamp:
            text = self._facts[row]
            fact: Fact = json.loads(text)
        else:
            fact = look()
            text = json.dumps(fact)
            self._changed = True
        self._names.append(name)
        self._new_stamps.extend(stamp)
        self._new.append(text)
        return fact

    def close(self) -> None:
        """Keep what was asked for, and forget the rest.

        Where it cannot be written, that is a line in the log: it saves time the next time, no more.
        """
        if self._file is None or not (self._changed or len(self._names) != len(self._old.texts)):
            return
        tensors = {
            "stamps": torch.from_numpy(np.frombuffer(self._new_stamps, dtype=np.int64).copy()),
            **{f"names.{k}": v for k, v in self._names.tensors().items()},
            **{f"facts.{k}": v for k, v in self._new.tensors().items()},
        }
        try:
            write_tensors(self._file, tensors, {"version": VERSION})
        except OSError as err:
            logger.warning("what is known of a folder is not kept in %s: %s", self._file, err)

    def _read(self, file: Path) -> None:
        try:
            with safe_open(file, framework="np") as opened:
                if (opened.metadata() or {}).get("version") != VERSION:
                    return
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            names = Texts.of(found["names.bytes"], found["names.ends"])
            self._facts = Texts.of(found["facts.bytes"], found["facts.ends"])
            if len(names) != len(self._facts) or len(found["stamps"]) != 3 * len(names):
                raise ValueError("its parts are not of one length")
            self._stamps.frombytes(found["stamps"].astype(np.int64).tobytes())
            self._old = Numbered(names)
        except FileNotFoundError:
            return
        except (SafetensorError, OSError, KeyError, ValueError) as err:
            logger.warning("%s is made anew: %s", file, err)
