"""Files that appear whole, on the disk, or not at all: bytes, JSON, tensors; and digests of tensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

SAMPLE = 1024
"""Values of each tensor that a fingerprint looks at, evenly spread: the whole of a large model takes minutes."""
_PARTIAL = ".partial"


def replace_file(path: Path, content: bytes, partial: Path) -> None:
    """Write `content` to `partial`, in the folder of `path`, and give it that name once it is on the disk.

    Raises:
        OSError: the place cannot be written; `path` is as it was and nothing is left of `partial`.
    """
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def digest(tensors: Iterable[tuple[str, Tensor]], sample: int | None = SAMPLE) -> str:
    """Hex digest of named tensors: names, sizes, types, and about `sample` values of each (None: all)."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        step = max(1, len(flat) // sample) if sample else 1
        values = flat[::step].contiguous().cpu()
        sha.update(values.view(torch.uint8).numpy().tobytes() if len(values) else b"")
    return sha.hexdigest()[:16]


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a LoRA file, and its header.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (OSError, SafetensorError) as err:
        raise ValueError(f"LoRA file {path} must be a readable safetensors file, got: {err}") from err


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that `path` is either complete or as it was before.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, dict(metadata))
    # Two processes may fill one cache: each has a partial file of its own.
    replace_file(path, content, path.with_name(f"{path.name}.{os.getpid()}.tmp"))


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`: the file appears whole, on the disk, or not at all.

    Raises:
        RuntimeError: the place cannot be written.
    """
    try:
        replace_file(path, content, path.with_name(path.name + _PARTIAL))
    except OSError as err:
        raise RuntimeError(
            f"{path} must be writable, got {err.strerror}; free space or choose another folder"
        ) from err


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False).encode())
