"""Checks of settings, and settings as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar, get_type_hints


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless ``low <= value <= high`` (NaN is refused as well)."""
    if not low <= value <= high:
        bound = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be {bound}, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


T = TypeVar("T")


def to_plain(config: Any) -> dict[str, Any]:
    """A config (nested dataclasses) as plain JSON values."""
    return asdict(config)


def from_plain(kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a config of `kind` from what `to_plain` wrote; validation runs again.

    Raises:
        ValueError: an unknown name, or a value that the config refuses.
    """
    hints = get_type_hints(kind)
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise ValueError(f"{kind.__name__} must have known options only, got {', '.join(unknown)}")
    given = {}
    for name, value in values.items():
        if is_dataclass(hints[name]):
            value = from_plain(hints[name], value)
        given[name] = tuple(value) if isinstance(value, list) else value
    return kind(**given)
