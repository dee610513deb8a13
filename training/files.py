"""Files that appear whole, on the disk, or not at all: bytes, JSON, tensors; and digests of tensors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..messages import one_line

SAMPLE = 1024
"""Values of each tensor that a fingerprint looks at, evenly spread: the whole of a large model takes minutes."""
DEEPEST = 100
"""Levels of values in values that a JSON file of ours may have."""
SEAL = "rollout_trainer_digest"
"""Where in its header a LoRA file has the digest of `sealed`."""
_PARTIAL = re.compile(r".+\.(\d+)-[0-9a-f]{8}\.partial")
"""Names of files that are being written: whose process, and a number of its own."""


def partial_path(path: Path) -> Path:
    """Where `path` is written before it gets its name: no other process or thread writes there."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def replace_file(path: Path, content: Sequence[memoryview]) -> None:
    """Write the parts of `content` beside `path`, and give it that name once it is on the disk.

    Raises:
        OSError: the place cannot be written; `path` is as it was and nothing is left beside it.
    """
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            for part in content:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def claim_name(made: Path, names: Iterable[Path]) -> Path:
    """Give the whole file `made` the first of `names` that nobody has, and return that.

    Raises:
        OSError: the place cannot be written; FileExistsError: all names are taken.
    """
    for path in names:
        try:
            os.link(made, path)  # fails where the name is taken, whoever takes it at this moment
        except FileExistsError:
            continue
        except OSError:  # a file system without links: take the name, then fill it
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            made.replace(path)
            return path
        made.unlink()
        return path
    raise FileExistsError(f"all names like {made} are taken")


def sweep_partials(folder: Path, old: bool = False) -> None:
    """Take away the unfinished files that processes which are gone left directly in `folder`.

    Args:
        old: those too that earlier versions left, which do not name their process; where all files are ours.
    """
    with suppress(OSError):
        for path in folder.glob("*.partial"):
            match = _PARTIAL.fullmatch(path.name)
            if (old and not match) or (match and not _is_alive(int(match[1]), path)):
                path.unlink(missing_ok=True)


def _is_alive(pid: int, path: Path) -> bool:
    """Whether the process may still be writing `path`."""
    if os.name == "nt":  # where asking a process by signal 0 would end it
        return time.time() - path.stat().st_mtime < 24 * 3600
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return False
    except OSError:
        return True
    return True


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file; one that has not changed is read once."""
    stat = path.stat()
    return _file_sha256(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _file_sha256(path: str, size: int, modified: int) -> str:
    """The same; `size` and `modified` (ns) make a changed file a new entry of the cache."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            sha.update(block)
    return sha.hexdigest()


def digest(tensors: Iterable[tuple[str, Tensor]], sample: int | None = SAMPLE) -> str:
    """Hex digest of named tensors: names, sizes, types, and about `sample` values of each (None: all)."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        step = max(1, len(flat) // sample) if sample else 1
        values = flat[::step].contiguous().cpu()
        sha.update(bytes_of(values))
    return sha.hexdigest()[:16]


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a LoRA file, and its header.

    Raises:
        ValueError: it cannot be read, or is not as `sealed` described it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as err:
        raise ValueError(
            f"LoRA file {path} must be a readable safetensors file, got: {one_line(err):.150}"
        ) from err
    if SEAL in header and sealed(tensors, header)[SEAL] != header[SEAL]:
        raise ValueError(
            f"LoRA file {path} must be as it was saved, but its content is not that of its digest; it is damaged, or "
            "another tool changed it and kept the digest: use the original"
        )
    return tensors, header


def sealed(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> dict[str, str]:
    """`header` with a digest of all of it and of all tensors, to the last bit."""
    own = {name: value for name, value in header.items() if name != SEAL}
    text = json.dumps([sorted(own.items()), digest(tensors.items(), sample=None)])
    return own | {SEAL: hashlib.sha256(text.encode()).hexdigest()[:16]}


def hashed(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The hashes by which other tools know a LoRA file: sha256 of all that follows its header, as sd-scripts has it."""
    _, *parts = tensor_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {})
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    own = sha.hexdigest()
    return {"sshs_model_hash": own, "modelspec.hash_sha256": f"0x{own}"}


def lora_header(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> dict[str, str]:
    """The header of a LoRA file: `header`, what other tools know the file by, and our digest."""
    return sealed(tensors, {**header, **hashed(tensors)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that `path` is either complete or as it was before.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    replace_file(path, tensor_file(whole, metadata))


DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The safetensors format's names of types, in the order in which it lays out tensors."""


def tensor_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[memoryview]:
    """The parts of a safetensors file, laid out as that package does; all but the first are the tensors' own memory.

    The package's `save` builds the file in memory, twice.

    Args:
        tensors: contiguous, on the CPU.

    Raises:
        KeyError: a type that such a file cannot hold.
    """
    places = {dtype: place for place, dtype in enumerate(DTYPES)}
    order = sorted(tensors, key=lambda name: (places[tensors[name].dtype], name.encode()))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name in order:
        tensor = tensors[name]
        end = begin + tensor.nbytes
        own = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        header[name], begin = own, end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [memoryview(len(text).to_bytes(8, "little") + text), *(bytes_of(tensors[name]) for name in order)]


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    if not tensor.numel():
        return memoryview(b"")
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def write_atomically(path: Path, content: bytes | Sequence[memoryview]) -> None:
    """Write `content`, whole or in parts, to `path`: the file appears whole, on the disk, or not at all.

    Raises:
        RuntimeError: the place cannot be written.
    """
    parts = [memoryview(content)] if isinstance(content, bytes) else content
    try:
        replace_file(path, parts)
    except OSError as err:
        need = _need(path, err, sum(part.nbytes for part in parts))
        raise RuntimeError(
            f"{path} must be writable, got {err.strerror or err}{need}; free space or choose another folder"
        ) from err


def is_full(err: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a disk without space."""
    codes = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    return err is not None and (getattr(err, "errno", None) in codes or is_full(err.__cause__))


def _need(path: Path, err: OSError, size: int) -> str:
    """What a full disk lacks, for the message."""
    if not is_full(err):
        return ""
    with suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        return f" ({size / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free)"
    return f" ({size / 1e6:.1f} MB needed)"


def read_json(path: Path, folder: Path) -> Any:
    """The JSON value in a file of ours in `folder`, numbers that JSON does not have as None.

    People and other programs put things into folders, and what is read here may be shown to whoever reaches a server.

    Raises:
        OSError: it is no file, or a link that leads out of `folder`.
        ValueError: it is not JSON, or nested deeper than `DEEPEST`.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise PermissionError(errno.EPERM, "it is a link to elsewhere", str(path))
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path))
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except RecursionError as err:
        raise ValueError(f"{path.name} must be nested at most {DEEPEST} deep") from err
    level = [value]
    for _ in range(DEEPEST):
        level = [v for own in level for v in _members(own) if isinstance(v, (dict, list))]
        if not level:
            return value
    raise ValueError(f"{path.name} must be nested at most {DEEPEST} deep")


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False).encode())
