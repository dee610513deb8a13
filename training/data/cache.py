"""Tensors on disk by key: complete and intact, or not there."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import write_tensors

logger = logging.getLogger(__name__)


def cache_key(*parts: object) -> str:
    """Hex digest of `parts` (strings, numbers, lists of them)."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class TensorCache:
    """A folder of safetensors files, one for each key; without a folder, nothing is kept.

    A key must say all that its tensors depend on. Files that are cut off or altered count as absent.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def fetch(self, key: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The tensors of `key`, made by `make` and kept if they are not there.

        Raises:
            OSError: the folder cannot be written.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{key}.safetensors"
        tensors = self._read(path)
        if tensors is None:
            tensors = {name: value.detach().cpu() for name, value in make().items()}
            write_tensors(path, tensors, {"digest": _digest(tensors)})
        return tensors

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                # Cloned: what safetensors returns may be a view of the file, which may be replaced.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                digest = (file.metadata() or {}).get("digest")
        except (SafetensorError, OSError) as err:
            logger.warning("cache file %s is made anew: %s", path, err)
            return None
        if digest != _digest(tensors):
            logger.warning("cache file %s is made anew: its content has changed", path)
            return None
        return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
