"""Settings: their declaration on the fields of config classes, their checks, and configs as plain JSON values.

A config class says everything of a setting once, in its `setting(...)`: the widgets of the nodes are built from
that, and `check_settings` checks with it. What several fields say together is checked in `__post_init__` by hand.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from numbers import Real
from typing import Any, TypeVar, get_type_hints


@dataclass(frozen=True)
class Setting:
    """What a config class declares of one field, beside its name, type and default."""

    help: str
    """What it does and which values are sensible, for people who do not read code: the widget's tooltip."""
    low: float = -math.inf
    """Lowest value."""
    high: float = math.inf
    """Highest value; infinity where there is no natural one."""
    step: float | None = None
    """By how much the widget's arrows change it."""
    round: float | None = None
    """What a value that is typed into the widget is rounded to; None leaves it to the host, which goes by `step`."""
    choices: Collection[str] = ()
    """The values it may have, where it is one of several. Kept by reference: a registry may grow."""
    called: str = ""
    """Its name in error messages, where the field's own says too little."""


def setting(
    default: Any,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    step: float | None = None,
    round: float | None = None,
    choices: Collection[str] = (),
    called: str = "",
) -> Any:
    """A dataclass field with this default and the declaration `Setting` of the other arguments."""
    return field(
        default=default, metadata={"setting": Setting(help, low, high, step, round, choices, called)}
    )


def declared(kind: type) -> dict[str, Setting]:
    """The settings that the config class `kind` declares, by field, in the order of the fields."""
    return {f.name: f.metadata["setting"] for f in fields(kind) if "setting" in f.metadata}


def check_settings(config: Any) -> None:
    """Check every field of `config` by its declaration.

    Raises:
        ValueError: a number out of its range (NaN too), no number where one belongs, or none of the choices.
    """
    for name, own in declared(type(config)).items():
        value, default = getattr(config, name), getattr(type(config), name)
        called = own.called or name
        if own.choices:
            check_choice(called, value, tuple(own.choices))
        elif isinstance(default, (int, float)) and not isinstance(default, bool):
            is_number = isinstance(value, Real)
            if not is_number:
                raise ValueError(f"{called} must be a number, got {value!r:.100}")
            check_range(called, value, own.low, own.high)


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless ``low <= value <= high`` (NaN is refused as well)."""
    if not low <= value <= high:
        bound = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be {bound}, got {value}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r:.100}")


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
