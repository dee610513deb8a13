"""Nested values, as optimisers keep them, as named tensors and strict JSON; and back, exactly.

JSON holds neither tensors nor inf, nan, tuples and keys that are no strings. Such a value becomes an object with one
key that begins with ``$``: ``{"$tensor": name}``, ``{"$float": "inf"}``, ``{"$tuple": [...]}``, ``{"$dict": [[key,
value], ...]}``, ``{"$dtype": "float32"}``; everything else is written as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as strict JSON holds it; its tensors go into `tensors`, under names that begin with `name`.

    Raises:
        TypeError: a value of a kind that cannot be written exactly.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"$tensor": name}
    if type(value) in (list, tuple):
        items = [pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return items if type(value) is list else {"$tuple": items}
    if isinstance(value, dict):
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        packed = [[pack(k, name, {}), pack(v, f"{name}.{k}", tensors)] for k, v in value.items()]
        return {key: item for key, item in packed} if plain else {"$dict": packed}  # noqa: C416
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    raise TypeError(f"{name} must be of a kind that a state can hold exactly, got {type(value).__name__}")


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors; one that lies in the memory of another is copied: a safetensors file refuses those."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return out


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of `pack`. Lists and plain values of states that were written without it come back as they are.

    Raises:
        KeyError: a tensor that is named is not there.
    """
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    single: tuple[str, Any] = next(iter(value.items())) if len(value) == 1 else ("", None)
    tag, inner = single
    if tag == "$tensor":
        return tensors[inner]
    if tag == "$float":
        return float(inner)
    if tag == "$tuple":
        return tuple(unpack(item, tensors) for item in inner)
    if tag == "$dict":
        return {_key(unpack(k, tensors)): unpack(v, tensors) for k, v in inner}
    if tag == "$dtype":
        return getattr(torch, inner)
    return {key: unpack(item, tensors) for key, item in value.items()}


def _key(key: Any) -> Any:
    """A dictionary's key: what was a list there cannot have been one."""
    return tuple(key) if isinstance(key, list) else key
